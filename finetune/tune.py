"""Tunes many soft prompts on one frozen backbone at once, each with its own examples, order, rate and choice of step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from corpora.formats import Verbalizer
from finetune.draws import evaluation_steps
from finetune.inputs import Item, Renderer
from finetune.score import Scores, score_items
from pretrain.backbone import Backbone
from pretrain.batching import Count, collate, example_losses, micro_batches
from pretrain.prompts import PromptBank, check_prompts_train, insert_prompts

CHECKED_AFTER = 3  # steps, after which every prompt must have felt a gradient and moved

CurvePoint = dict[str, float | int | None]


@dataclass(frozen=True)
class Trial:
    """What one cell trains on and is chosen by."""

    renderer: Renderer  # of its pattern: the verbalizer is the renderer's
    train: Sequence[Item]
    dev: Sequence[Item]
    order: Sequence[NDArray[np.int64]]  # positions in `train`, one array an optimiser step
    learning_rate: float
    start_PD: torch.Tensor | None = None  # the prompt at step 0; None in full tuning
    name: str = ""  # for messages
    eval_every: int | None = None  # optimiser steps between dev scores; None: as the options

    @property
    def verbalizer(self) -> Verbalizer:
        """Words of the labels."""
        return self.renderer.verbalizer

    def due(self, options: TuneOptions) -> list[int]:
        """Steps after which dev is scored."""
        return evaluation_steps(len(self.order), self.eval_every or options.eval_every)


@dataclass
class Outcome:
    """The best step of a trial, as it goes along: highest dev score, then lower dev loss, then the earlier step."""

    best: torch.Tensor | dict[str, torch.Tensor] | None = None  # the prompt [P, D], or all weights
    step: int = 0
    dev: float = -1.0
    dev_loss: float = float("inf")
    curve: list[CurvePoint] = field(default_factory=list)
    diverged: int | None = None  # step at which the loss was no longer finite; it was not trained on
    _losses: list[float] = field(default_factory=list)

    def train_loss(self, loss: float, step: int) -> bool:
        """Note a step's loss.

        Returns:
            Whether to go on: False where the loss is not finite.
        """
        if np.isfinite(loss):
            self._losses.append(loss)
            return True
        self.diverged = step
        return False

    def evaluated(
        self, step: int, scores: Scores, snapshot: Callable[[], torch.Tensor | dict[str, torch.Tensor]]
    ) -> None:
        """Note a dev score, and keep the weights where it is the best so far."""
        dev, loss = scores.accuracy, scores.loss
        if not np.isfinite(loss):
            self.diverged = step if self.diverged is None else self.diverged
            return
        mean = float(np.mean(self._losses)) if self._losses else None
        self._losses.clear()
        self.curve.append({"step": step, "train_loss": mean, "dev": dev, "dev_loss": loss})
        if (dev, -loss) > (self.dev, -self.dev_loss):
            self.best, self.step, self.dev, self.dev_loss = snapshot(), step, dev, loss


@dataclass(frozen=True)
class TuneOptions:
    """What all trials of a run share; see `FewshotSettings` for the units."""

    eval_every: int
    batch_tokens: int
    weight_decay: float
    clip: float
    ft_weight_decay: float
    count: Count
    length_normalised: bool


def tune_prompts(
    backbone: Backbone,
    trials: Sequence[Trial],
    options: TuneOptions,
    advance: Callable[[int], None] = lambda n: None,
) -> list[Outcome]:
    """Tune K prompts together; each ends as it would alone, to rounding.

    A step takes each trial's own batch, runs all examples in micro-batches of similar length and moves every prompt by
    the mean loss over its own batch. Dev sets of all prompts are scored together.

    Args:
        backbone: the frozen model.
        trials: K trials with prompts of one shape.
        options: what they share.
        advance: called with the number of trials that did a step.

    Returns:
        An outcome for each trial; `best` is its prompt [P, D] at the chosen step.

    Raises:
        UserError: a prompt does not train (see `check_prompts_train`); one that diverged is no such case.
    """
    device = backbone.embedding_device
    starts = [trial.start_PD for trial in trials if trial.start_PD is not None]
    start_KPD = torch.stack(starts).to(device)
    bank = PromptBank(
        start_KPD,
        [trial.learning_rate for trial in trials],
        weight_decay=options.weight_decay,
        clip=options.clip,
        embedding_rms=backbone.embedding_rms,
    )
    outcomes = [Outcome() for _ in trials]
    steps = [len(trial.order) for trial in trials]
    due = [set(trial.due(options)) for trial in trials]
    for step in range(max(steps) + 1):
        scored = [k for k in range(len(trials)) if step in due[k] and outcomes[k].diverged is None]
        for k, scores in _dev_scores(backbone, trials, scored, bank.prompts_KPD.detach(), options).items():
            outcomes[k].evaluated(step, scores, lambda k=k: bank.prompts_KPD[k].detach().clone())  # type: ignore[misc]
        active = [k for k in range(len(trials)) if step < steps[k] and outcomes[k].diverged is None]
        if not active:
            if step < max(steps):
                advance(sum(n - step for n in steps if n > step))
            break
        bank.zero_grad()
        losses = _train_losses(backbone, trials, active, step, bank, options)
        going = [k in active and outcomes[k].train_loss(losses[k], step) for k in range(len(trials))]
        bank.step(active_K=torch.tensor(going, device=device))
        if step + 1 == min(CHECKED_AFTER, max(steps)):
            finite_K = bank.prompts_KPD.detach().isfinite().flatten(1).all(1).tolist()
            gone = [k for k, finite in enumerate(finite_K) if not finite or outcomes[k].diverged is not None]
            check_prompts_train(start_KPD, bank, [trial.name for trial in trials], diverged=gone)
        advance(sum(step < n for n in steps))
    return outcomes


def _train_losses(
    backbone: Backbone,
    trials: Sequence[Trial],
    active: Sequence[int],
    step: int,
    bank: PromptBank,
    options: TuneOptions,
) -> list[float]:
    """Losses of one step, gradients left in the bank; 0 for a trial that is not active."""
    device = backbone.embedding_device
    items, targets, which, weights = [], [], [], []
    for k in active:
        own = [trials[k].train[position] for position in trials[k].order[step]]
        items += own
        targets += trials[k].renderer.target_ids(own)
        which += [k] * len(own)
        weights += [1.0 / len(own)] * len(own)
    prompt_len = bank.prompts_KPD.shape[1]
    losses = [0.0] * len(trials)
    for group in micro_batches([len(item.input_ids) + prompt_len for item in items], options.batch_tokens):
        batch = collate(
            [items[i].input_ids for i in group],
            [which[i] for i in group],
            [targets[i] for i in group],
            pad_id=backbone.pad_id,
            start_id=backbone.start_id,
            count=options.count,
            example_weights=[weights[i] for i in group],
        ).to(device)
        embeds, mask = insert_prompts(
            bank.prompts_KPD, backbone.embed(batch.input_ids_BL), batch.mask_BL, batch.prompt_ids_B
        )
        losses_B = example_losses(backbone.target_logits(embeds, mask, batch.decoder_ids_BT), batch)
        losses_B = losses_B * batch.example_weights_B
        losses_B.sum().backward()
        for i, loss in zip(group, losses_B.tolist(), strict=True):
            losses[which[i]] += loss
    return losses


def _dev_scores(
    backbone: Backbone,
    trials: Sequence[Trial],
    scored: Sequence[int],
    prompts_KPD: torch.Tensor,
    options: TuneOptions,
) -> dict[int, Scores]:
    """Dev scores of the named trials; those that share a verbalizer share their batches."""
    by_words: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for k in scored:
        by_words.setdefault(trials[k].verbalizer.ids, []).append(k)
    found = {}
    for members in by_words.values():
        items = [item for k in members for item in trials[k].dev]
        which = np.repeat(members, [len(trials[k].dev) for k in members])
        scores = score_items(
            backbone,
            trials[members[0]].verbalizer,
            items,
            prompts_KPD,
            which,
            batch_tokens=options.batch_tokens,
            length_normalised=options.length_normalised,
        )
        for k in members:
            found[k] = scores.of(np.flatnonzero(which == k))
    return found
