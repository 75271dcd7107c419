"""What a format may draw from: the usable units of one side (training or held out) of a store."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from corpora.common.rng import generator
from corpora.store import SentenceStore

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

# Held-out documents where 5 % would be fewer: a choice needs four other documents beside its own.
MIN_HELD_OUT = 8


@dataclass(frozen=True)
class Limits:
    """Which units and documents a format uses (released code; it drops whole documents, ours single units)."""

    min_chars: int  # of a unit
    min_tokens: int  # of a unit
    min_units: int  # of a document, after units were dropped


LIMITS = {
    "sentence_pair": Limits(min_chars=5, min_tokens=5, min_units=5),
    "multiple_choice": Limits(min_chars=10, min_tokens=5, min_units=5),
    "single_text": Limits(min_chars=11, min_tokens=6, min_units=1),  # more than 10 characters and 5 tokens
    "unified": Limits(min_chars=10, min_tokens=5, min_units=6),
}


@dataclass(frozen=True)
class StoreView:
    """The usable units of some documents, renumbered 0 .. N - 1 in the store's order.

    Draws work on these numbers; `units` turns them into the store's.
    """

    store: SentenceStore
    units: Int64  # [N] number in the store
    starts: Int64  # [D + 1] first unit of each document, as an index into `units`
    side: str  # "train" or "validation"

    @property
    def n_units(self) -> int:
        """Usable units, N."""
        return len(self.units)

    @property
    def n_docs(self) -> int:
        """Documents that have them, D."""
        return len(self.starts) - 1

    @cached_property
    def sizes(self) -> Int64:
        """Units of each document, int64 [D]."""
        return np.diff(self.starts)

    @cached_property
    def doc(self) -> Int64:
        """Document of each unit, int64 [N]."""
        return np.repeat(np.arange(self.n_docs), self.sizes)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each unit, int32 [N]."""
        return self.store.lengths[self.units]

    @cached_property
    def has_next(self) -> Bool:
        """Whether the next unit stood right behind this one before any unit was dropped, bool [N]."""
        joined = np.zeros(self.n_units, np.bool_)
        position = self.store.position[self.units]
        joined[:-1] = (self.doc[1:] == self.doc[:-1]) & (position[1:] - position[:-1] == 1)
        return joined

    @cached_property
    def has_previous(self) -> Bool:
        """Whether the unit before stood right before this one before any unit was dropped, bool [N]."""
        joined = np.zeros(self.n_units, np.bool_)
        joined[1:] = self.has_next[:-1]
        return joined

    @cached_property
    def strangers(self) -> Int64:
        """How many units of its document are neither a unit itself nor its neighbours, int64 [N]."""
        return self.sizes[self.doc] - 1 - self.has_previous - self.has_next

    def neighbour(self, index: Int64, rng: np.random.Generator) -> Int64:
        """An adjacent unit of each: previous or next with equal chance where there are both."""
        after = rng.random(len(index)) < 0.5
        after = np.where(self.has_previous[index] & self.has_next[index], after, self.has_next[index])
        return np.where(after, index + 1, index - 1)

    def stranger(self, index: Int64, rng: np.random.Generator) -> Int64:
        """A unit of the same document, neither it nor a neighbour, each with equal chance."""
        first = index - self.has_previous[index]  # the unit and its neighbours are consecutive
        drawn = self.starts[self.doc[index]] + rng.integers(0, self.strangers[index])
        width = self.sizes[self.doc[index]] - self.strangers[index]
        return np.where(drawn >= first, drawn + width, drawn)

    def other_docs(self, index: Int64, count: int, rng: np.random.Generator) -> Int64:
        """Documents that are not the unit's own and differ from each other, int64 [B, count].

        Drawn from ever smaller ranges and moved past those taken, so nothing has to be rejected; `count` must be
        below `n_docs`.
        """
        taken = self.doc[index][:, None]
        for k in range(count):
            drawn = rng.integers(0, self.n_docs - 1 - k, len(index))
            for other in np.sort(taken, axis=1).T:
                drawn = drawn + (drawn >= other)
            taken = np.concatenate([taken, drawn[:, None]], axis=1)
        return taken[:, 1:]

    def unit_of(self, docs: Int64, rng: np.random.Generator) -> Int64:
        """A unit of each of the given documents, each with equal chance; shape as `docs`."""
        return self.starts[docs] + rng.integers(0, self.sizes[docs])


def make_views(
    store: SentenceStore, limits: Limits, seed: int, validation: float
) -> tuple[dict[str, StoreView], dict[str, int]]:
    """Drop what a format cannot use and split the rest by document.

    Args:
        store: all units.
        limits: which of them to keep.
        seed: of the split, which is one for all formats.
        validation: share of the store's documents held out; where fewer than `MIN_HELD_OUT` of them are usable, more
            are (half of the usable at most).

    Returns:
        The views "train" and "validation", and how many units were dropped by reason.
    """
    lengths, doc_of_unit = store.lengths, store.doc_of_unit
    long_enough = lengths >= limits.min_tokens
    usable = long_enough & (store.n_chars >= limits.min_chars)
    per_doc = np.bincount(doc_of_unit[usable], minlength=store.n_docs)
    kept_docs = np.flatnonzero(per_doc >= max(1, limits.min_units))
    dropped = {
        f"units under {limits.min_tokens} tokens": int((~long_enough).sum()),
        f"units under {limits.min_chars} characters": int((long_enough & ~usable).sum()),
        f"units of documents left with fewer than {limits.min_units} units": int(
            per_doc.sum() - per_doc[kept_docs].sum()
        ),
    }
    order = np.argsort(generator(seed, "split").random(store.n_docs), kind="stable")
    usable_docs = np.zeros(store.n_docs, np.bool_)
    usable_docs[kept_docs] = True
    n_held_out = int(usable_docs[order[: round(validation * store.n_docs)]].sum())
    if validation > 0:
        n_held_out = max(n_held_out, min(MIN_HELD_OUT, len(kept_docs) // 2))
    held_out = np.zeros(store.n_docs, np.bool_)
    held_out[order[usable_docs[order]][:n_held_out]] = True
    views = {}
    for side, docs in (("train", usable_docs & ~held_out), ("validation", held_out)):
        units = np.flatnonzero(usable & docs[doc_of_unit])
        starts = np.concatenate([[0], np.cumsum(per_doc[docs])]).astype(np.int64)
        views[side] = StoreView(store, units, starts, side)
    return views, dropped
