"""Which units are too alike to stand beside each other in one example: judged on their first tokens.

Two cut units are alike where they share 80 % or more of their distinct tokens (Jaccard: those that both have, of
those that either has). To find the few such pairs among many, each unit has a sketch: a bitmap in which every token
sets one bit by its hash. Where A and B are the sets of distinct tokens of two units, the bits in which the bitmaps
differ are at most |A xor B|, and a Jaccard index of 0.8 means that 9 |A xor B| <= |A| + |B|, so every pair whose
bitmaps differ in more bits than a ninth of the tokens is not alike; the others (about 1 in 3,000 of one document, next
to none of two) are looked at token by token. Nothing is missed, and nothing is taken for alike that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from corpora.common.mapped import map_file
from corpora.common.rng import generator
from corpora.store import SentenceStore

Bool = NDArray[np.bool_]
Int64 = NDArray[np.int64]
Units = NDArray[np.integer]
UInt64 = NDArray[np.uint64]

ALIKE = 4, 5  # Jaccard index from which two units are alike, as a fraction
RANGE = 1 << 16  # units of a piece of sketching

_AT_ONCE = 1 << 10  # units sketched, or pairs looked at, together: what the processor's caches hold
_BITS = 57  # of a word that are bitmap; the 7 above are the unit's tokens, so caps go up to 127
_SHIFT = np.uint64(_BITS)
_MASK = np.uint64((1 << _BITS) - 1)
_ONE_WORD = 50  # cap up to which one word tells nearly all pairs apart; longer units take two


def words(cap: int) -> int:
    """How many words of 64 bits the sketch of units cut at `cap` tokens has."""
    return 1 if cap <= _ONE_WORD else 2


@dataclass(frozen=True)
class Sketches:
    """Sketches of all units of a store, for some caps."""

    store: SentenceStore
    bits: Mapping[int, UInt64]  # by cap: [words, U]

    def unusable(self, cap: int, options: Units) -> Bool:
        """Which options may not stand in their example, as they are rendered.

        Args:
            cap: tokens after which an option is cut.
            options: [n, B] units, the right one of each example first.

        Returns:
            [n, B], true for a wrong option that is alike the right one, or the same ids as one above it.
        """
        seen = self.bits[cap][0].take(options)
        found = np.zeros(seen.shape, np.bool_)
        found[1:] = self._alike(cap, options[1:], options[:1], seen[1:], seen[:1])
        above, below, column = [], [], []
        for k in range(2, len(seen)):
            maybe = seen[1:k] == seen[k]
            if maybe.any():
                rows, columns = _where(maybe)
                above.append(rows + 1)
                below.append(np.full(len(rows), k))
                column.append(columns)
        if column:
            rows, lower, columns = (np.concatenate(parts) for parts in (above, below, column))
            equal = self._judged(cap, options[rows, columns], options[lower, columns], _equal)
            found[lower[equal], columns[equal]] = True
        return found

    def alike(self, cap: int, one: Units, two: Units) -> Bool:
        """Whether units, cut at `cap` tokens, share 80 % or more of their distinct tokens.

        `one` and `two` may have any shapes that broadcast.
        """
        bits = self.bits[cap][0]
        return self._alike(cap, one, two, bits[one], bits[two])

    def _alike(self, cap: int, one: Units, two: Units, left: UInt64, right: UInt64) -> Bool:
        """As `alike`, given the first words of the sketches."""
        # At most so many distinct tokens are in one of the two only, and so at most so many bits.
        room = ((left >> _SHIFT).astype(np.uint8) + (right >> _SHIFT).astype(np.uint8)) // np.uint8(9)
        differ = np.bitwise_count((left ^ right) & _MASK)
        found = differ <= room
        if not found.any():
            return found
        at = _where(found)
        one, two = (np.broadcast_to(units, found.shape)[at] for units in (one, two))
        bits, room = differ[at], room[at]
        for word in self.bits[cap][1:]:
            bits += np.bitwise_count(word[one] ^ word[two])
        maybe = np.flatnonzero(bits <= room)
        sure = np.zeros(len(one), np.bool_)
        sure[maybe] = self._judged(cap, one[maybe], two[maybe], _alike)
        found[at] = sure
        return found

    def _judged(self, cap: int, one: Units, two: Units, judge: Callable[[Int64, Int64], Bool]) -> Bool:
        """Look at pairs of units [P] token by token."""
        found = one == two
        open_pairs = np.flatnonzero(~found)
        for first in range(0, len(open_pairs), _AT_ONCE):
            some = open_pairs[first : first + _AT_ONCE]
            found[some] = judge(cut_ids(self.store, one[some], cap), cut_ids(self.store, two[some], cap))
        return found


def _where(found: Bool) -> tuple[Int64, ...]:
    """As `np.nonzero`, at a tenth of its cost where little is found."""
    return np.unravel_index(np.flatnonzero(found), found.shape)


def cut_ids(store: SentenceStore, units: Units, cap: int) -> Int64:
    """The first `cap` ids of units, int64 [B, cap], filled up with -1."""
    units = units.astype(np.int64)
    start, stop = store.unit_offsets[units], store.unit_offsets[units + 1]
    place = start[:, None] + np.arange(cap)
    there = place < stop[:, None]
    return np.where(there, store.tokens[np.where(there, place, 0)].astype(np.int64), -1)


def _equal(one: Int64, two: Int64) -> Bool:
    return (one == two).all(1)


def _alike(one: Int64, two: Int64) -> Bool:
    """Jaccard index of ids [B, cap] with padding, from `ALIKE` up."""
    distinct = [_distinct(one), _distinct(two)]
    every = np.sort(np.concatenate(distinct, axis=1), axis=1)
    both = ((every[:, 1:] == every[:, :-1]) & (every[:, 1:] >= 0)).sum(1)
    either = sum((ids >= 0).sum(1) for ids in distinct) - both
    least, of = ALIKE
    return (of * both >= least * either) & (either > 0)


def _distinct(ids: Int64) -> Int64:
    """The ids [B, cap] with every one but the first of its kind turned into padding."""
    ids = np.sort(ids, axis=1)
    ids[:, 1:][ids[:, 1:] == ids[:, :-1]] = -1
    return ids


def make_sketches(store: SentenceStore, caps: Sequence[int]) -> Sketches:
    """Sketch all units of a store in memory."""
    return Sketches(store, _sketch(store, 0, store.n_units, caps))


def sketch_ranges(n_units: int) -> list[tuple[int, int]]:
    """First and last unit (not included) of the pieces that `write_sketches` is called for."""
    return [(first, min(first + RANGE, n_units)) for first in range(0, n_units, RANGE)]


def make_sketch_files(folder: Path, n_units: int, caps: Sequence[int]) -> None:
    """Make the files that `write_sketches` fills, in an existing folder."""
    for cap in caps:
        with open(_path(folder, cap), "wb") as file:
            file.truncate(words(cap) * n_units * 8)


def write_sketches(store: SentenceStore, folder: Path, caps: Sequence[int], first: int, last: int) -> None:
    """Sketch the units `first` to `last` (not included) into their place; pieces may be done in any order."""
    for cap, bits in _sketch(store, first, last, caps).items():
        with open(_path(folder, cap), "r+b") as file:
            for row, word in enumerate(bits):
                file.seek((row * store.n_units + first) * 8)
                file.write(word.data)


def open_sketches(store: SentenceStore, folder: Path, caps: Sequence[int]) -> Sketches:
    """Map what `write_sketches` wrote."""
    kind = np.dtype(np.uint64)
    bits = {cap: map_file(_path(folder, cap), kind).reshape(words(cap), store.n_units) for cap in caps}
    return Sketches(store, bits)


def _path(folder: Path, cap: int) -> Path:
    return folder / f"sketches-{cap}.bin"


def _sketch(store: SentenceStore, first: int, last: int, caps: Sequence[int]) -> dict[int, UInt64]:
    """The sketches of units `first` to `last` (not included), by cap [words, last - first]."""
    found = {cap: np.empty((words(cap), last - first), np.uint64) for cap in caps}
    groups = {n: sorted(cap for cap in caps if words(cap) == n) for n in sorted({words(cap) for cap in caps})}
    for start in range(first, last, _AT_ONCE):
        tokens, lengths = _heads(store, start, min(start + _AT_ONCE, last), max(caps))
        here = slice(start - first, start - first + len(lengths))
        for n_words, group in groups.items():
            for row, table in enumerate(_tables(n_words, 1 << int(tokens.max(initial=1)).bit_length())):
                for cap, bits in zip(group, _bitmaps(table, tokens, lengths, group), strict=True):
                    found[cap][row, here] = bits
        for cap, sketch in found.items():
            sketch[0, here] |= np.minimum(lengths, cap).astype(np.uint64) << _SHIFT
    return found


def _heads(store: SentenceStore, first: int, last: int, cap: int) -> tuple[Int64, Int64]:
    """The first `cap` ids of units `first` to `last`, end to end, and how many each has [last - first]."""
    offsets = np.asarray(store.unit_offsets[first : last + 1])
    whole = np.diff(offsets)
    lengths = np.minimum(whole, cap)
    head = np.repeat(np.tile([True, False], len(whole)), np.stack([lengths, whole - lengths], 1).ravel())
    return store.tokens[offsets[0] : offsets[-1]][head].astype(np.intp), lengths


def _bitmaps(table: UInt64, tokens: Int64, lengths: Int64, caps: Sequence[int]) -> UInt64:
    """For ascending caps, the bits that the tokens of each unit set, cut there: [caps, units]."""
    bits = np.zeros(len(tokens) + 1, np.uint64)  # one more, as a cut behind the last token has to be an index
    np.take(
        table, tokens, out=bits[:-1], mode="clip"
    )  # every id is in the table; other modes make a copy first
    ends = np.cumsum(lengths)
    cuts = np.minimum((ends - lengths)[:, None] + np.array([0, *caps]), ends[:, None])
    spans = np.bitwise_or.reduceat(bits, cuts.ravel()).reshape(cuts.shape)[:, :-1]
    spans[cuts[:, 1:] == cuts[:, :-1]] = 0  # reduceat takes one value for an empty span
    return np.bitwise_or.accumulate(spans, axis=1).T


@lru_cache(maxsize=8)
def _tables(n_words: int, size: int) -> list[UInt64]:
    """Of each word [size], the bit that each token id sets in it; every id sets one bit of one word."""
    total = _BITS + 64 * (n_words - 1)
    # Doubles, as the first of them stay the same for any size; which bits they are changes no result.
    bit = (generator(0, "sketches", n_words).random(size) * total).astype(np.int64)
    word = np.where(bit < _BITS, 0, 1 + (bit - _BITS) // 64)
    place = np.where(bit < _BITS, bit, (bit - _BITS) % 64).astype(np.uint64)
    return [np.where(word == row, np.uint64(1) << place, np.uint64(0)) for row in range(n_words)]
