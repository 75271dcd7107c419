"""The table that draws fill: unit numbers and labels, and what was dropped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Summary:
    """What people are told of a corpus."""

    train: int  # examples to train on
    held_out: int
    dropped: dict[str, int] = field(default_factory=dict)  # units or examples by reason
    details: tuple[str, ...] = ()  # lines that are printed as well
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What to print: sizes, drops, warnings."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items()) or "nothing"
        return [
            f"{self.train:,} examples to train on, {self.held_out:,} held out; dropped: {reasons}",
            *self.details,
            *(f"warning: {warning}" for warning in self.warnings),
        ]


@dataclass(frozen=True)
class Drawn:
    """N examples, as numbers of units of a store."""

    query: Int64  # [N]
    options: Int64  # flat: those of example i are options[offsets[i] : offsets[i + 1]], in their order
    offsets: Int64  # [N + 1]
    label: NDArray[np.int16]  # [N]
    validation: Bool  # [N] whether the example is held out
    dropped: dict[str, int] = field(default_factory=dict)  # units or examples by reason
    notes: dict[str, Any] = field(default_factory=dict)  # what else a manifest should say
    details: tuple[str, ...] = ()  # lines that are printed as well
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.query)

    @property
    def summary(self) -> Summary:
        """Its sizes, drops and warnings."""
        held_out = int(self.validation.sum())
        return Summary(len(self) - held_out, held_out, self.dropped, self.details, self.warnings)

    def lines(self) -> list[str]:
        """What to print of it."""
        return self.summary.lines()


@dataclass(frozen=True)
class Block:
    """Examples of one block of queries, as indices into a view."""

    query: Int64  # [M]
    options: Int64  # flat
    counts: Int64  # [M] options of each
    label: Int64  # [M]
    dropped: dict[str, int] = field(default_factory=dict)

    @classmethod
    def none(cls, dropped: dict[str, int]) -> Block:
        """A block without examples."""
        empty = np.empty(0, np.int64)
        return cls(empty, empty, empty, empty, dropped)


def add_counts(parts: Sequence[dict[str, int]]) -> dict[str, int]:
    """Sum counts by reason; reasons that never came up are left out."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return {reason: int(count) for reason, count in sorted(total.items()) if count}
