"""Tunes many soft prompts on one frozen backbone at once, each with its own examples, order, rate, stop and choice of step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from corpora.formats import Verbalizer
from corpora.rendering import Rendered
from finetune.calibrate import ItemSet, score_sets
from finetune.draws import evaluation_steps
from finetune.inputs import Item, Renderer
from finetune.memory import begin_peak, peak_bytes
from finetune.score import Scores
from pretrain.backbone import Backbone
from pretrain.batching import Count, end_to_end, example_losses, pack_flat
from pretrain.forward import PromptedBackbone, run_batch
from pretrain.prompts import PromptBank, check_prompts_train
from pretrain.side_by_side import by_micro_batch

CHECKED_AFTER = 3  # steps, after which a prompt must have felt a gradient and moved

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
    content_free: Sequence[Item] = ()  # what its scores are calibrated by; empty: they are not
    eval_every: int | None = None  # optimiser steps between dev scores; None: as the options
    same_start: str = ""  # equal in trials that have both `start_PD` and `dev` in common; empty: in none

    @property
    def verbalizer(self) -> Verbalizer:
        """Words of the labels."""
        return self.renderer.verbalizer

    def scored_at(self, options: TuneOptions) -> list[int]:
        """Steps after which dev is scored."""
        return evaluation_steps(len(self.order), self.eval_every or options.eval_every)


@dataclass
class Outcome:
    """The best step of a trial, as it goes along: highest dev score, then lower dev loss, then the earlier step."""

    best: torch.Tensor | None = None  # the prompt [P, D]; full tuning keeps its weights by itself
    step: int = 0
    dev: float = -1.0
    dev_loss: float = float("inf")
    curve: list[CurvePoint] = field(default_factory=list)
    diverged: int | None = None  # step at which the loss was no longer finite; it was not trained on
    waited: int = 0  # dev scores since the best one
    seconds: float = 0.0  # of computing; of a pass that several trials share, by their encoder tokens
    peak_bytes: int = 0  # most memory that the process held meanwhile
    losses: list[float] = field(default_factory=list)  # of the steps since the last dev score

    def train_loss(self, loss: float, step: int) -> bool:
        """Note a step's loss.

        Returns:
            Whether to go on: False where the loss is not finite.
        """
        if np.isfinite(loss):
            self.losses.append(loss)
            return True
        self.diverged = step
        return False

    def evaluated(self, step: int, scores: Scores, snapshot: Callable[[], torch.Tensor | None]) -> None:
        """Note a dev score, and keep the weights where it is the best so far."""
        dev, loss = scores.accuracy, scores.loss
        if not np.isfinite(loss):
            self.diverged = step if self.diverged is None else self.diverged
            return
        mean = float(np.mean(self.losses)) if self.losses else None
        self.losses.clear()
        self.curve.append({"step": step, "train_loss": mean, "dev": dev, "dev_loss": loss})
        self.waited += 1
        if (dev, -loss) > (self.dev, -self.dev_loss):
            self.best, self.step, self.dev, self.dev_loss, self.waited = snapshot(), step, dev, loss, 0

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether the last `patience` dev scores were no better than the best one before them."""
        return patience is not None and self.waited >= patience

    def state(self) -> dict[str, Any]:
        """Everything but `best`, as JSON keeps it; infinite losses as None."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "best"}
        return {**values, "dev_loss": self.dev_loss if np.isfinite(self.dev_loss) else None}

    @staticmethod
    def of_state(state: dict[str, Any], best: torch.Tensor | None) -> Outcome:
        """What `state` was taken from."""
        loss = float("inf") if state["dev_loss"] is None else state["dev_loss"]
        return Outcome(best=best, **{**state, "dev_loss": loss})


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
    patience: int | None = None


@dataclass
class Place:
    """A trial under way."""

    trial: Trial
    outcome: Outcome
    step: int = 0
    scored: int = -1  # step of its last dev score

    def due(self, options: TuneOptions) -> bool:
        """Whether dev is to be scored before it goes on."""
        return (
            self.scored < self.step
            and self.outcome.diverged is None
            and self.step in self.trial.scored_at(options)
        )

    def finished(self, patience: int | None) -> bool:
        """Whether it has no further step; the last one is scored before."""
        return (
            self.step == len(self.trial.order)
            or self.outcome.diverged is not None
            or self.outcome.out_of_patience(patience)
        )


class Bank:
    """Places for K trials on one backbone; what is finished leaves, what waits takes its place.

    A step takes each trial's own batch, runs all examples in micro-batches of similar length and moves every prompt
    by the mean loss over its own batch. Dev sets are scored together. A trial ends as it would alone, to rounding.
    """

    def __init__(self, net: PromptedBackbone, options: TuneOptions, places: int, prompt_len: int) -> None:
        """Make an empty bank.

        Args:
            net: the frozen model.
            options: what the trials share.
            places: K.
            prompt_len: P.
        """
        self.net, self.options = net, options
        self.backbone: Backbone = net.backbone
        shape = (places, prompt_len, self.backbone.d_model)
        empty_KPD = torch.zeros(shape, device=self.backbone.embedding_device)
        self.bank = PromptBank(
            empty_KPD, [0.0] * places, weight_decay=options.weight_decay, clip=options.clip,
            embedding_rms=self.backbone.embedding_rms,
        )  # fmt: skip
        self.places: list[Place | None] = [None] * places
        begin_peak(empty_KPD.device)

    @property
    def free(self) -> bool:
        """Whether another trial can come in."""
        return None in self.places

    @property
    def busy(self) -> bool:
        """Whether a trial is under way."""
        return any(self.places)

    def put(self, trial: Trial) -> int:
        """Begin a trial in the first free place.

        Returns:
            The place's number.

        Raises:
            ValueError: there is none (of `list.index`).
        """
        assert trial.start_PD is not None
        k = self.places.index(None)
        self.places[k] = Place(trial, Outcome())
        self.bank.place(k, trial.start_PD, trial.learning_rate)
        return k

    def round(self, advance: Callable[[int], None] = lambda n: None) -> dict[int, Outcome]:
        """Score what is due; then let go of what is finished or, where nothing is, train a step of all.

        Args:
            advance: called with the number of steps done, those that a finished trial leaves out among them.

        Returns:
            What is finished, by its place, which is free now; `best` is its prompt [P, D] at the chosen step.

        Raises:
            UserError: a prompt does not train (see `check_prompts_train`); one that diverged is no such case.
        """
        self._score_due()
        finished = {}
        for k, place in self._under_way():
            if place.finished(self.options.patience):
                advance(len(place.trial.order) - place.step)
                place.outcome.peak_bytes = peak_bytes(self.bank.prompts_KPD.device)
                finished[k] = place.outcome
                self.places[k] = None
        if not finished and self.busy:
            advance(self._train_step())
        return finished

    def _under_way(self) -> list[tuple[int, Place]]:
        return [(k, place) for k, place in enumerate(self.places) if place is not None]

    def _score_due(self) -> None:
        began = time.perf_counter()
        due = [(k, place) for k, place in self._under_way() if place.due(self.options)]
        if not due:
            return
        # Before the first step, trials of one start and one dev set (rates of a seed) have one score.
        asked = {(place.trial.same_start if place.step == 0 else "") or k: k for k, place in due}
        found = _dev_scores(self, sorted(set(asked.values())))
        for k, place in due:
            scores = found[asked[(place.trial.same_start if place.step == 0 else "") or k]]
            place.outcome.evaluated(
                place.step,
                scores,
                lambda k=k: self.bank.prompts_KPD[k].detach().clone(),  # type: ignore[misc]
            )
            place.scored = place.step
        _share_seconds(began, [(place, place.trial.dev) for _, place in due])

    def _train_step(self) -> int:
        """A step of every trial under way.

        Returns:
            How many trials there are.
        """
        began = time.perf_counter()
        active = self._under_way()
        own = [[place.trial.train[i] for i in place.trial.order[place.step]] for _, place in active]
        self.bank.zero_grad()
        losses = self._backward(active, own)
        going = {k: place.outcome.train_loss(losses[n], place.step) for n, (k, place) in enumerate(active)}
        moving = [going.get(k, False) for k in range(len(self.places))]
        self.bank.step(active_K=torch.tensor(moving, device=self.bank.prompts_KPD.device))
        for k, place in active:
            place.step += going[k]
        self._check_they_train([k for k, _ in active if going[k]])
        _share_seconds(began, [(place, items) for (_, place), items in zip(active, own, strict=True)])
        return sum(going.values())

    def _backward(self, active: Sequence[tuple[int, Place]], own: Sequence[Sequence[Item]]) -> list[float]:
        """Mean loss of each active trial's batch; gradients are left in the bank."""
        backbone, options = self.backbone, self.options
        items = [item for batch in own for item in batch]
        sizes = [len(batch) for batch in own]
        which = np.repeat(np.arange(len(own)), sizes)
        weights = 1.0 / np.repeat(np.asarray(sizes, dtype=np.float64), sizes)
        targets = [
            ids
            for (_, place), batch in zip(active, own, strict=True)
            for ids in place.trial.renderer.target_ids(batch)
        ]
        prompts_KPD = self.bank.prompts_KPD.detach()[[k for k, _ in active]]
        # A fused kernel multiplies what it masks: one prompt's NaN would be its neighbours' too.
        broken_K = ~prompts_KPD.isfinite().flatten(1).all(1)
        prompts_KPD = prompts_KPD.masked_fill(broken_K[:, None, None], 0.0)
        prompt_len, device = prompts_KPD.shape[1], prompts_KPD.device
        losses_K = torch.zeros(len(own), device=device)

        def part(group: NDArray[np.int64]) -> tuple[NDArray[np.int64], torch.Tensor, torch.Tensor]:
            # The first block reads every prompt that it is given.
            used, own_number = np.unique(which[group], return_inverse=True)
            own_KPD = prompts_KPD[used.tolist()].requires_grad_(True)
            batch = pack_flat(
                Rendered(
                    *end_to_end([items[i].input_ids for i in group]),
                    np.array([items[i].label for i in group], np.int64),
                ),
                prompt_len,
                own_number,
                *end_to_end([targets[i] for i in group]),
                weights[group],
                pad_id=backbone.pad_id,
                start_id=backbone.start_id,
                count=options.count,
            ).to(device)
            (logits_BTV,) = run_batch(self.net, own_KPD, batch, first=0 if options.count == "all" else 1)
            losses_B = example_losses(logits_BTV, batch) * batch.example_weights_B
            losses_B.sum().backward()
            assert own_KPD.grad is not None
            return used, own_KPD.grad, losses_B.detach()

        lengths = [len(item.input_ids) + prompt_len for item in items]
        places = np.array([k for k, _ in active])
        self.bank.prompts_KPD.grad = torch.zeros_like(self.bank.prompts_KPD)
        for group, (used, grad, losses_B) in by_micro_batch(part, lengths, options.batch_tokens, device):
            self.bank.prompts_KPD.grad[places[used].tolist()] += grad
            losses_K.index_add_(0, torch.from_numpy(which[group]).to(device), losses_B)
        return [float(loss) for loss in losses_K.masked_fill(broken_K, torch.nan).tolist()]

    def _check_they_train(self, moved: Iterable[int]) -> None:
        places = {k: place for k in moved if (place := self.places[k]) is not None}
        young = [k for k, place in places.items() if place.step == min(CHECKED_AFTER, len(place.trial.order))]
        if not young:
            return
        prompts_KPD = self.bank.prompts_KPD.detach()
        finite_K = prompts_KPD.isfinite().flatten(1).all(1).tolist()
        start_KPD = prompts_KPD.clone()
        for k in young:
            start_PD = places[k].trial.start_PD
            assert start_PD is not None
            start_KPD[k] = start_PD.to(start_KPD)
        names = [place.trial.name if place else "" for place in self.places]
        check_prompts_train(start_KPD, self.bank, names, only=[k for k in young if finite_K[k]])


def _share_seconds(began: float, parts: Sequence[tuple[Place, Sequence[Item]]]) -> None:
    """Divide the time since `began` among trials by their encoder tokens."""
    tokens = [sum(len(item.input_ids) for item in items) for _, items in parts]
    seconds = time.perf_counter() - began
    for (place, _), n in zip(parts, tokens, strict=True):
        place.outcome.seconds += seconds * n / max(1, sum(tokens))


def _dev_scores(bank: Bank, numbers: Sequence[int]) -> dict[int, Scores]:
    """Dev scores of the trials in some places, of all tasks together."""
    trials = [place.trial for k in numbers if (place := bank.places[k]) is not None]
    scores = score_sets(
        bank.backbone,
        [
            ItemSet(trial.dev, trial.verbalizer, number, trial.content_free)
            for number, trial in enumerate(trials)
        ],
        bank.bank.prompts_KPD.detach()[list(numbers)],
        batch_tokens=bank.options.batch_tokens,
        length_normalised=bank.options.length_normalised,
        options=bank.net.options,
    )
    return dict(zip(numbers, scores, strict=True))


def tune_prompts(
    net: PromptedBackbone,
    trials: Sequence[Trial],
    options: TuneOptions,
    places: int | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> list[Outcome]:
    """Tune prompts together, `places` at a time; each ends as it would alone, to rounding.

    Args:
        net: the frozen model.
        trials: with prompts of one length.
        options: what they share.
        places: how many at a time; None: all.
        advance: as in `Bank.round`.

    Returns:
        An outcome for each trial.

    Raises:
        UserError: as `Bank.round`.
    """
    first = trials[0].start_PD
    assert first is not None
    bank = Bank(net, options, min(places or len(trials), len(trials)), len(first))
    waiting = deque(enumerate(trials))
    in_place: dict[int, int] = {}
    found: dict[int, Outcome] = {}
    while waiting or bank.busy:
        while waiting and bank.free:
            number, trial = waiting.popleft()
            in_place[bank.put(trial)] = number
        for k, outcome in bank.round(advance).items():
            found[in_place.pop(k)] = outcome
    return [found[number] for number in range(len(trials))]
