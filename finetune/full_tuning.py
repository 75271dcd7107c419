"""Full-model tuning: every weight trains, one cell at a time, each from the backbone's own weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from finetune.calibrate import ItemSet
from finetune.full_weights import FullWeights
from finetune.inputs import IntArray, Item
from finetune.memory import begin_peak, peak_bytes
from finetune.score import Scores
from finetune.settings import FewshotSettings
from finetune.sharded_weights import ShardedWeights
from finetune.tune import Outcome, Trial, TuneOptions

Rank = tuple[float, float, float]  # as `results.best_first`: the lowest is the best


class Weights(Protocol):
    """All weights of a backbone, in one process or shared among several, every one of which makes the same calls."""

    def reset(self) -> None:
        """Go back to the backbone's own weights, with a new optimiser."""

    def backward(self, items: Sequence[Item], targets: Sequence[IntArray]) -> float:
        """Mean loss of a batch; gradients are left behind."""

    def update(self, learning_rate: float) -> None:
        """Clip the gradients and take one step."""

    def discard(self) -> None:
        """Forget gradients that are no numbers; `reset` comes before any further training."""

    def score(self, items: ItemSet) -> Scores:
        """Scores of examples by the weights as they are."""

    def keep(self) -> None:
        """Remember the weights as they are, in the place of what was remembered before."""

    def recall(self) -> None:
        """Go back to what was remembered, to be scored."""

    def end(self) -> None:
        """Let go of what other libraries hold of them: nothing is called afterwards."""

    def fit_gpu(self) -> None:
        """Choose the tokens of a micro-batch by the memory that is free, alike on all processes."""

    @property
    def device(self) -> torch.device:
        """Where they are."""


def full_tuner(settings: FewshotSettings, name: str, options: TuneOptions) -> FullTuner:
    """What tunes all weights of a backbone; it is loaded once for all cells.

    Args:
        settings: of the run; with `ft_zero_stage` all processes of the job call this and what they get together.
        name: folder or hub name of the backbone.
        options: what all trials share.
    """
    weights: Weights
    if settings.ft_zero_stage is None:
        weights = FullWeights(name, settings.resolved_device, options)
    else:
        weights = ShardedWeights(
            name, settings.device or "auto", options, settings.ft_zero_stage, settings.ft_dtype
        )
    if settings.batch_tokens is None and weights.device.type == "cuda":
        weights.fit_gpu()
    return FullTuner(weights, options)


class FullTuner:
    """Trains all weights on one trial after the other, and keeps those of the best step of several."""

    def __init__(self, weights: Weights, options: TuneOptions) -> None:
        self.weights, self.options = weights, options

    def tune_rates(
        self,
        trials: Sequence[Trial],
        advance: Callable[[int], None] = lambda n: None,
        rival: Rank | None = None,
        done: Mapping[int, Outcome] | None = None,
        finished: Callable[[int, Outcome], None] = lambda number, outcome: None,
    ) -> list[Outcome]:
        """Train on trials that differ in the learning rate, one after the other.

        Args:
            trials: of which one is chosen by dev.
            advance: called with the steps done.
            rival: the best of other rates, whose weights are not wanted any more; None: there are none.
            done: outcomes of an earlier start, by the trial's number.
            finished: called with each further one.

        Returns:
            An outcome for each. What `score_best` scores are the weights of the best step of all, unless the rival is
            better than each; where they were lost with an earlier start they are made again.
        """
        done, outcomes, best = done or {}, [], None
        for number, trial in enumerate(trials):
            outcome = done.get(number)
            if outcome is None:
                outcome = self.tune(trial, advance, rival)
                finished(number, outcome)
            own = (-outcome.dev, outcome.dev_loss, trial.learning_rate)
            if rival is None or own < rival:
                rival, best = own, number
            outcomes.append(outcome)
        if best is not None and best in done:
            self.tune(trials[best])
        return outcomes

    def tune(
        self, trial: Trial, advance: Callable[[int], None] = lambda n: None, rival: Rank | None = None
    ) -> Outcome:
        """Train all weights on one trial: AdamW at a constant rate.

        Args:
            trial: what it trains on and is chosen by.
            advance: called with the steps done.
            rival: weights of steps that are no better are not kept.

        Returns:
            Its outcome, without the weights: `score_best` scores with them.
        """
        weights, options = self.weights, self.options
        began = time.perf_counter()
        begin_peak(weights.device)
        weights.reset()
        outcome = Outcome()
        due = set(trial.scored_at(options))
        for step in range(len(trial.order) + 1):
            if step in due:
                scores = weights.score(ItemSet(trial.dev, trial.verbalizer, content_free=trial.content_free))
                rank = (-scores.accuracy, scores.loss, trial.learning_rate)
                wanted = rival is None or rank < rival
                outcome.evaluated(step, scores, weights.keep if wanted else lambda: None)
            if (
                step == len(trial.order)
                or outcome.diverged is not None
                or outcome.out_of_patience(options.patience)
            ):
                advance(len(trial.order) - step)
                break
            items = [trial.train[position] for position in trial.order[step]]
            if outcome.train_loss(weights.backward(items, trial.renderer.target_ids(items)), step):
                weights.update(trial.learning_rate)
                advance(1)
            else:
                weights.discard()
                advance(len(trial.order) - step)
                break  # as in the bank: what comes after a loss that is no number is not scored
        outcome.seconds, outcome.peak_bytes = time.perf_counter() - began, peak_bytes(weights.device)
        return outcome

    def score_best(self, items: ItemSet) -> Scores:
        """Scores of examples by the weights that were kept last."""
        self.weights.recall()
        return self.weights.score(items)

    def end(self) -> None:
        """Nothing more is tuned: whoever drops this frees the weights."""
        self.weights.end()
