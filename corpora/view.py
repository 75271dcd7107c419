"""What a format may draw from: the usable units of one side (training or held out) of a store."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from corpora.common.mapped import map_file
from corpora.common.rng import advanced, generator
from corpora.store import SentenceStore

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

SIDES = ("train", "validation")

# Held-out documents where 5 % would be fewer: a choice needs four other documents beside its own.
MIN_HELD_OUT = 8

_CHUNK = 1 << 18  # units looked at together
_BINS = 1 << 16  # of the draws that split documents


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
class Queries:
    """B units of a view that ask, and what stands around each."""

    index: Int64  # [B] number in the view
    doc: Int64  # [B] document
    first: Int64  # [B] first unit of that document
    size: Int64  # [B] units of that document
    previous: Bool  # [B] whether the unit before stood right before this one before any unit was dropped
    next: Bool  # [B] whether the next unit stood right behind this one

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: NDArray[Any]) -> Queries:
        return Queries(
            self.index[rows],
            self.doc[rows],
            self.first[rows],
            self.size[rows],
            self.previous[rows],
            self.next[rows],
        )

    @property
    def strangers(self) -> Int64:
        """How many units of its document are neither a unit itself nor its neighbours, int64 [B]."""
        return self.size - 1 - self.previous - self.next


@dataclass(frozen=True)
class StoreView:
    """The usable units of some documents, renumbered 0 .. N - 1 in the store's order.

    Draws work on these numbers; `units` turns them into the store's. Both arrays may be files that are mapped.
    """

    store: SentenceStore
    units: NDArray[np.integer]  # [N] number in the store
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

    def doc_of(self, index: Int64) -> Int64:
        """Documents of units [B]."""
        return np.searchsorted(self.starts, index, side="right") - 1

    def lengths_of(self, index: Int64) -> Int64:
        """Tokens of units [B]."""
        units = self.units[index].astype(np.int64)
        return self.store.unit_offsets[units + 1] - self.store.unit_offsets[units]

    def queries(self, first: int, last: int) -> Queries:
        """The units `first` to `last` (not included), and what stands around them."""
        index = np.arange(first, last)
        around = self.units[max(first - 1, 0) : last + 1].astype(np.int64)
        beside = np.diff(self.store.position[around]) == 1
        before = np.concatenate([np.zeros(1 if first == 0 else 0, np.bool_), beside])[: len(index)]
        behind = np.concatenate([beside[1 if first else 0 :], np.zeros(1, np.bool_)])[: len(index)]
        doc = self.doc_of(index)
        start = self.starts[doc]
        size = self.starts[doc + 1] - start
        return Queries(index, doc, start, size, before & (index > start), behind & (index < start + size - 1))

    def neighbour(self, queries: Queries, rng: np.random.Generator) -> Int64:
        """An adjacent unit of each: previous or next with equal chance where there are both."""
        after = rng.random(len(queries)) < 0.5
        after = np.where(queries.previous & queries.next, after, queries.next)
        return np.where(after, queries.index + 1, queries.index - 1)

    def stranger(self, queries: Queries, rng: np.random.Generator, count: int = 1) -> Int64:
        """Units of the same document, neither a unit itself nor a neighbour, each with equal chance: [count, B]."""
        near = queries.index - queries.previous  # the unit and its neighbours are consecutive
        width = queries.size - queries.strangers
        drawn = queries.first + below(rng, queries.strangers, count)
        return drawn + width * (drawn >= near)

    def other_docs(self, queries: Queries, count: int, rng: np.random.Generator) -> Int64:
        """Documents that are not the unit's own and differ from each other, int64 [count, B].

        Drawn from ever smaller ranges and moved past those taken, so nothing has to be rejected; `count` must be
        below `n_docs`.
        """
        taken = queries.doc[None]
        for k in range(count):
            drawn = rng.integers(0, self.n_docs - 1 - k, len(queries))
            for other in np.sort(taken, axis=0):
                drawn += drawn >= other
            taken = np.concatenate([taken, drawn[None]])
        return taken[1:]

    def unit_of(self, docs: Int64, rng: np.random.Generator) -> Int64:
        """A unit of each of the given documents, each with equal chance: [count, B] as `docs`."""
        first = self.starts[docs]
        return first + below(rng, (self.starts[docs + 1] - first).reshape(-1)).reshape(docs.shape)


def below(rng: np.random.Generator, ends: Int64, count: int = 1) -> Int64:
    """Draw whole numbers from 0 up to `ends` [B] (not included), int64 [count, B].

    A scaled double is a fifth of the cost of numpy's bounded draws of an array. It never reaches its end (half a unit
    in the last place is rounded down), and its chances differ by less than ends / 2 ** 53.
    """
    return (rng.random((count, len(ends))) * ends).astype(np.int64)


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
    files = {side: [io.BytesIO(), io.BytesIO()] for side in SIDES}
    dropped = _fill(files, store, limits, seed, validation)
    kind = _unit_dtype(store)
    views = {}
    for side, (units, starts) in files.items():
        views[side] = StoreView(
            store, np.frombuffer(units.getbuffer(), kind), np.frombuffer(starts.getbuffer(), np.int64), side
        )
    return views, dropped


def write_views(
    store: SentenceStore, limits: Limits, seed: int, validation: float, folder: Path
) -> dict[str, int]:
    """As `make_views`, into files of an existing folder for `open_view`; memory does not grow with the store."""
    with contextlib.ExitStack() as stack:
        files = {
            side: [stack.enter_context(open(path, "wb")) for path in _paths(folder, side)] for side in SIDES
        }
        return _fill(files, store, limits, seed, validation)


def open_view(store: SentenceStore, folder: Path, side: str) -> StoreView:
    """Map one side of what `write_views` wrote."""
    units, starts = _paths(folder, side)
    return StoreView(store, map_file(units, _unit_dtype(store)), map_file(starts, np.dtype(np.int64)), side)


def _paths(folder: Path, side: str) -> tuple[Path, Path]:
    return folder / f"{side}-units.bin", folder / f"{side}-starts.bin"


def _unit_dtype(store: SentenceStore) -> np.dtype[Any]:
    return np.dtype(np.uint32 if store.n_units <= 1 << 32 else np.int64)


@dataclass(frozen=True)
class _Chunk:
    """Whole documents of a store, as many as have about `_CHUNK` units."""

    first_unit: int
    sizes: Int64  # [d] units of each document
    long_enough: Bool  # [u] whether a unit has tokens enough
    usable: Bool  # [u] and characters enough
    per_doc: Int64  # [d] usable units of each document
    kept: Bool  # [d] whether they are enough
    draws: NDArray[np.float64]  # [d] that split the documents


def _chunks(store: SentenceStore, limits: Limits, seed: int) -> Iterator[_Chunk]:
    cuts = np.searchsorted(store.doc_offsets, np.arange(_CHUNK, store.n_units, _CHUNK))
    for first, last in itertools.pairwise(np.unique([0, *cuts, store.n_docs]).tolist()):
        offsets = np.asarray(store.doc_offsets[first : last + 1])
        start, stop = int(offsets[0]), int(offsets[-1])
        long_enough = np.diff(store.unit_offsets[start : stop + 1]) >= limits.min_tokens
        usable = long_enough & (store.n_chars[start:stop] >= limits.min_chars)
        per_doc = np.diff(np.concatenate([[0], np.cumsum(usable)])[offsets - start])
        kept = per_doc >= max(1, limits.min_units)
        draws = split_draws(seed, first, last)
        yield _Chunk(start, np.diff(offsets), long_enough, usable, per_doc, kept, draws)


def split_draws(seed: int, first: int, last: int) -> NDArray[np.float64]:
    """The draws that split the documents `first` to `last` (not included): those with the lowest are held out."""
    return advanced(generator(seed, "split"), first).random(last - first)


def _lowest(seed: int, n_docs: int, count: int) -> float:
    """The highest of the `count` lowest draws of a split (-1 where there are none), without sorting them all."""
    if count == 0:
        return -1.0
    ranges = [(first, min(first + _CHUNK, n_docs)) for first in range(0, n_docs, _CHUNK)]
    counts = np.zeros(_BINS, np.int64)
    for bounds in ranges:
        counts += np.bincount((split_draws(seed, *bounds) * _BINS).astype(np.int64), minlength=_BINS)
    ends = np.cumsum(counts)
    found = int(np.searchsorted(ends, count))  # the bin of that draw
    inside = []
    for bounds in ranges:
        draws = split_draws(seed, *bounds)
        inside.append(draws[(draws * _BINS).astype(np.int64) == found])
    rank = count - 1 - (int(ends[found]) - int(counts[found]))
    return float(np.sort(np.concatenate(inside))[rank])


def _fill(
    files: Mapping[str, Sequence[BinaryIO]],
    store: SentenceStore,
    limits: Limits,
    seed: int,
    validation: float,
) -> dict[str, int]:
    """Write the units and the starts of both sides; returns what was dropped."""
    short = small = lonely = 0
    limit = _lowest(seed, store.n_docs, round(validation * store.n_docs))
    n_kept = n_held_out = 0
    nearest = np.empty(0)
    for chunk in _chunks(store, limits, seed):
        short += int((~chunk.long_enough).sum())
        small += int((chunk.long_enough & ~chunk.usable).sum())
        lonely += int(chunk.per_doc[~chunk.kept].sum())
        draws = chunk.draws[chunk.kept]
        n_kept += len(draws)
        n_held_out += int((draws <= limit).sum())
        nearest = np.sort(np.concatenate([nearest, draws]))[:MIN_HELD_OUT]
    least = min(MIN_HELD_OUT, n_kept // 2) if validation > 0 else 0
    if n_held_out < least:
        limit = float(nearest[least - 1])
    totals = dict.fromkeys(SIDES, 0)
    for _, starts in files.values():
        starts.write(np.zeros(1, np.int64).data)
    for chunk in _chunks(store, limits, seed):
        held_out = chunk.draws <= limit
        for side, docs in (("train", chunk.kept & ~held_out), ("validation", chunk.kept & held_out)):
            units = np.flatnonzero(chunk.usable & np.repeat(docs, chunk.sizes)) + chunk.first_unit
            ends = totals[side] + np.cumsum(chunk.per_doc[docs])
            files[side][0].write(units.astype(_unit_dtype(store)).data)
            files[side][1].write(ends.astype(np.int64).data)
            totals[side] += len(units)
    return {
        f"units under {limits.min_tokens} tokens": short,
        f"units under {limits.min_chars} characters": small,
        f"units of documents left with fewer than {limits.min_units} units": lonely,
    }
