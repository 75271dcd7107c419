"""Pseudo-labelled single texts: of what a labeller said about every unit, keep what it is sure of, and balance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corpora.common.errors import UserError
from corpora.common.rng import generator
from corpora.drawn import Int64
from corpora.view import StoreView

KEEP = 0.2  # of each class, the surest: of a linear labeller's labels
FEW = 200  # examples of a class; with fewer, a warning


@dataclass(frozen=True)
class Labels:
    """What a labeller said about every unit of a store, and what to keep of it.

    Where `thresholds` are given (a fine-tuned classifier), a class keeps what is more probable than its threshold,
    and balancing draws at random. Without (a linear model, whose probabilities mean little on other text), a class
    keeps its surest share `keep`, and balancing takes the surest.
    """

    label: NDArray[np.integer]  # [U] most probable class; below 0: not labelled
    probability: NDArray[np.floating]  # [U] of that class
    n_classes: int
    thresholds: tuple[float, ...] | None = None
    keep: float = KEEP
    balance: bool = True  # down to the rarest class that there is


@dataclass(frozen=True)
class Kept:
    """Units of one side that became examples."""

    index: Int64  # [M] into the view, ascending
    label: Int64  # [M]
    dropped: dict[str, int]
    notes: dict[str, Any]  # by class: how many were labelled and kept, lowest probability
    warnings: tuple[str, ...]

    def line(self, side: str) -> str:
        """Each class's count and lowest probability, readable."""
        pairs = zip(self.notes["kept"], self.notes["lowest_probability"], strict=True)
        shown = ", ".join(f"{n:,}" if p is None else f"{n:,} (from {p:.2f})" for n, p in pairs)
        return f"{side}: units kept of each class, and their lowest probability: {shown}"


def select(view: StoreView, labels: Labels, seed: int) -> Kept:
    """Choose the examples of one side.

    Args:
        view: its units.
        labels: for all units of the store.
        seed: of the draw that balances a classifier's labels.

    Raises:
        UserError: labels do not belong to this store, or thresholds to the classes.
    """
    _check(view, labels)
    label, probability = labels.label[view.units], labels.probability[view.units]
    n_labelled = [int((label == c).sum()) for c in range(labels.n_classes)]
    by_class = [_sure(np.flatnonzero(label == c), probability, c, labels) for c in range(labels.n_classes)]
    n_sure = [len(found) for found in by_class]
    n = min((count for count in n_sure if count), default=0)
    if labels.balance:
        by_class = [
            found[:n]
            if labels.thresholds is None
            else generator(seed, "single_text", view.side, c).permutation(found)[:n]
            for c, found in enumerate(by_class)
        ]
    index = np.sort(np.concatenate(by_class))
    kept = [len(found) for found in by_class]
    lowest = [float(probability[found].min()) if len(found) else None for found in by_class]
    dropped = {
        "units not labelled": int((label < 0).sum()),
        "units of which the labeller is not sure": sum(n_labelled) - sum(n_sure),
        "units above the number of the rarest class": sum(n_sure) - sum(kept),
    }
    notes = {"labelled": n_labelled, "sure": n_sure, "kept": kept, "lowest_probability": lowest}
    return Kept(index, label[index].astype(np.int64), dropped, notes, _warnings(view.side, kept))


def _check(view: StoreView, labels: Labels) -> None:
    if not len(labels.label) == len(labels.probability) == view.store.n_units:
        raise UserError(
            f"{len(labels.label)} pseudo-labels for a store of {view.store.n_units} units; label this store again"
        )
    if labels.thresholds is not None and len(labels.thresholds) != labels.n_classes:
        raise UserError(
            f"{len(labels.thresholds)} thresholds for {labels.n_classes} classes; expected one for each class"
        )
    if not 0 < labels.keep <= 1:
        raise UserError(f"keep is {labels.keep}; expected a share above 0 and at most 1")


def _sure(units: Int64, probability: NDArray[np.floating], c: int, labels: Labels) -> Int64:
    """Units of class `c` that are kept, the surest first (ties in the store's order)."""
    if labels.thresholds is not None:
        units = units[probability[units] > labels.thresholds[c]]
    units = units[np.argsort(-probability[units], kind="stable")]
    return units if labels.thresholds is not None else units[: int(np.ceil(labels.keep * len(units)))]


def _warnings(side: str, kept: list[int]) -> tuple[str, ...]:
    """Only the training side: a twentieth of it is naturally small."""
    if side != "train":
        return ()
    found = [f"no unit was labelled with class {c}" for c, count in enumerate(kept) if not count]
    if min(kept) < FEW:
        found.append(f"the rarest class has {min(kept)} examples, fewer than {FEW}; give more text")
    return tuple(found)
