"""A text's words as numbers: what duplicates, downstream texts and repetition are found by, in any script.

Letters are folded (case, width, canonical form), marks that a writer may leave out and invisible characters go, and
punctuation only separates. Scripts that put no space between words give one token a character; each token weighs the
share of a word that it stands for, so that "13 words" means the same length of text in every script and in mixtures.
All arithmetic is on 64-bit integers: the numbers are the same on every machine.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint32]
Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]

# Weights are eighths of a word. Chinese: 1.6 characters a word, the ratio by which the Lancaster Corpus of Mandarin
# Chinese was sized (McEnery and Xiao 2004); Japanese is alike (172 million characters in 105 million short-unit words,
# BCCWJ, Maekawa et al. 2014). Thai, Lao, Khmer, Burmese: about 4 code points a word, vowel signs counted.
WORD = 8
HAN_CHARACTER = 5
THAI_CHARACTER = 2

MAX_NGRAM = 100  # words; 400 tokens at the most
SLICE = 1 << 16  # characters or tokens that are worked on at a time: the arrays stay in the cache
_SEPARATOR, _WORD, _HAN, _THAI, _IGNORED = range(5)
_WEIGHTS = np.array([0, WORD, HAN_CHARACTER, THAI_CHARACTER, 0], np.int64)
_HAN_RANGES = (
    (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x3100, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA000, 0xA4CF), (0xF900, 0xFAFF), (0x1B000, 0x1B16F), (0x20000, 0x3FFFF),
)  # fmt: skip
# Line_Break=SA of the Unicode Character Database: scripts whose words only a dictionary can tell.
_THAI_RANGES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0xA9E0, 0xA9FF),
    (0xAA60, 0xAADF), (0x11700, 0x1174F),
)  # fmt: skip
# Vowel points of Hebrew and Arabic, which most texts leave out, and the Arabic stretching line.
_OPTIONAL_MARKS = ((0x0591, 0x05C7), (0x0610, 0x061A), (0x0640, 0x0640), (0x064B, 0x065F), (0x0670, 0x0670), (0x06D6, 0x06ED))  # fmt: skip
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64 (the golden ratio's bits)


@dataclass(frozen=True, slots=True)
class Ngrams:
    """Runs of words: `hashes_W` of the words from `starts_W` to `ends_W`."""

    starts_W: Ints
    ends_W: Ints
    hashes_W: Hashes

    def __len__(self) -> int:
        return len(self.hashes_W)


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a text.

    Attributes:
        codes_C: folded characters of all words, without what stands between them.
        starts_T1: [T + 1] where each word starts in `codes_C`, and the end.
        hashes_T: a number for each word.
        weights_T: eighths of a word that each stands for.
        runs: what `ngrams` would give for some lengths, where `find_ngrams` has made it.
    """

    codes_C: Codes
    starts_T1: Ints
    hashes_T: Hashes
    weights_T: Ints
    runs: dict[int, Ngrams] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.hashes_T)

    @property
    def count(self) -> float:
        """How many words these are; a character of a script without spaces is a part of one."""
        return float(self.weights_T.sum()) / WORD

    def same(self, start: int, end: int, other: Words, at: int) -> bool:
        """Tell whether words `start` to `end` are those of `other` from `at` on, letter by letter."""
        there = at + end - start
        if there > len(other):
            return False
        here_E, there_E = self.starts_T1[start : end + 1], other.starts_T1[at : there + 1]
        return (
            np.array_equal(self.hashes_T[start:end], other.hashes_T[at:there])
            and np.array_equal(here_E - here_E[0], there_E - there_E[0])
            and np.array_equal(self.codes_C[here_E[0] : here_E[-1]], other.codes_C[there_E[0] : there_E[-1]])
        )


def mix(values: Hashes) -> Hashes:
    """Spread every bit over all others (the finaliser of MurmurHash3, a bijection)."""
    values = values ^ (values >> np.uint64(33))
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values


def find_words(text: str) -> Words:
    """Cut a text into words."""
    return find_all_words([text])[0]


def find_all_words(texts: Sequence[str]) -> list[Words]:
    """`find_words` of each text; short ones are worked on together, which is several times faster."""
    found: list[Words] = []
    group: list[str] = []
    size = 0
    for text in texts:
        if not text.isascii() and not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
        if group and size + len(text) > SLICE:
            found += _words_of(group)
            group, size = [], 0
        if len(text) > SLICE:
            found.append(_words_of_long(text))
        else:
            group.append(text)
            size += len(text) + 1
    return found + (_words_of(group) if group else [])


def find_ngrams(words: Sequence[Words], n: int) -> None:
    """Make the runs of `n` words of many texts together, for `ngrams` to give them."""
    low = size = 0
    for high, one in enumerate(words):
        if size and size + len(one) > SLICE:
            _ngrams_of(words[low:high], n)
            low, size = high, 0
        size += len(one)
    _ngrams_of(words[low:], n)


def ngrams(words: Words, n: int) -> Ngrams:
    """All runs of words that weigh `n` words: each the shortest from its start that weighs that much.

    Args:
        words: of one text.
        n: words, at most `MAX_NGRAM`.

    Returns:
        The runs in order; none where the text is shorter.
    """
    if n in words.runs:
        return words.runs[n]
    total, need = len(words), n * WORD
    weights = words.weights_T
    if not total:
        return Ngrams(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint64))
    if (weights == weights[0]).all():
        length = -(-need // int(weights[0]))
        starts = np.arange(max(total - length + 1, 0))
        ends = starts + length
    else:
        sums = np.concatenate([[0], np.cumsum(weights)])
        starts = np.arange(int(np.searchsorted(sums, sums[-1] - need, side="right")))
        ends = np.searchsorted(sums, sums[starts] + need, side="left")
    return Ngrams(starts, ends, _run_hashes(words.hashes_T, starts, ends))


def _ngrams_of(group: Sequence[Words], n: int) -> None:
    """Runs of words of texts laid end to end, without those that go over an end."""
    if len(group) < 2 or sum(map(len, group)) > SLICE:
        return  # `ngrams` does as well
    bounds = np.cumsum([0, *map(len, group)])
    weights = np.concatenate([one.weights_T for one in group])
    if (weights == weights[:1]).all():
        ends = np.arange(len(weights)) - (-n * WORD // int(weights[0]) if len(weights) else 0)
    else:
        sums = np.concatenate([[0], np.cumsum(weights)])
        ends = np.searchsorted(sums, sums[:-1] + n * WORD, side="left")
    starts = np.flatnonzero(ends <= np.repeat(bounds[1:], np.diff(bounds)))
    ends = ends[starts]
    hashes = _run_hashes(np.concatenate([one.hashes_T for one in group]), starts, ends)
    cuts = np.searchsorted(starts, bounds)
    for one, bound, low, high in zip(group, bounds, cuts, cuts[1:], strict=False):
        one.runs[n] = Ngrams(starts[low:high] - bound, ends[low:high] - bound, hashes[low:high])


def _words_of_long(text: str) -> Words:
    pieces, low = [], 0
    while low < len(text):
        high = low + SLICE
        if high < len(text):  # at a space, if there is one: else a word is cut, always at the same place
            high = max(text.rfind(" ", low, high), text.rfind("\n", low, high)) + 1 or high
        pieces += _words_of([text[low:high]])
        low = high
    sizes = np.cumsum([0, *(len(piece.codes_C) for piece in pieces)])
    starts = [piece.starts_T1[:-1] + size for piece, size in zip(pieces, sizes, strict=False)]
    return Words(
        np.concatenate([piece.codes_C for piece in pieces]),
        np.concatenate([*starts, sizes[-1:]]),
        np.concatenate([piece.hashes_T for piece in pieces]),
        np.concatenate([piece.weights_T for piece in pieces]),
    )


def _words_of(texts: list[str]) -> list[Words]:
    """Words of texts that are no longer than a slice together."""
    raw = np.frombuffer("\n".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")
    bounds = np.cumsum([0, *(len(text) + 1 for text in texts)])
    fold, kind_of, number = _tables()
    kinds = kind_of[raw]
    ignored = kinds == _IGNORED
    if ignored.any():
        stay = np.flatnonzero(~ignored)
        raw, kinds, bounds = raw[stay], kinds[stay], np.searchsorted(stay, bounds)
    inside = kinds != _SEPARATOR
    word = kinds == _WORD
    opens = inside.copy()
    opens[1:] &= ~(word[1:] & word[:-1])
    kept = np.flatnonzero(inside)
    codes = raw[kept]
    starts = np.append(np.flatnonzero(opens[kept]), len(kept))
    places = kept[starts[:-1]]
    folded, weights = fold[codes], _WEIGHTS[kinds[places]]
    hashes = _run_hashes(number[codes], starts[:-1], starts[1:])
    cuts = np.searchsorted(places, bounds).tolist()
    found = []
    for low, high in itertools.pairwise(cuts):
        first, last = starts[low], starts[high]
        within = starts[low : high + 1] - first
        found.append(Words(folded[first:last], within, hashes[low:high], weights[low:high]))
    return found


def _run_hashes(values: Hashes, starts: Ints, ends: Ints) -> Hashes:
    """A number for each run of `values` that depends on what is in it, not where: a polynomial modulo 2^64.

    Sums of values times powers are made once for a block of runs; a run's sum is a difference, its place is divided out.
    """
    powers, inverses = _powers()
    found = np.empty(len(starts), np.uint64)
    for low in range(0, len(starts), SLICE):
        start, end = starts[low : low + SLICE], ends[low : low + SLICE]
        first, last = int(start[0]), int(end[-1])
        sums = np.zeros(last - first + 1, np.uint64)
        np.cumsum(values[first:last] * powers[: last - first], out=sums[1:])
        found[low : low + SLICE] = (sums[end - first] - sums[start - first]) * inverses[start - first]
    return mix(found)


@functools.cache
def _powers() -> tuple[Hashes, Hashes]:
    size = SLICE + MAX_NGRAM * WORD // THAI_CHARACTER
    inverse = pow(_MULTIPLIER, -1, 1 << 64)
    tables = []
    for base in (_MULTIPLIER, inverse):
        steps = np.full(size, base, np.uint64)
        steps[0] = 1
        tables.append(np.multiply.accumulate(steps))
    return tables[0], tables[1]


@functools.cache
def _tables() -> tuple[Codes, NDArray[np.uint8], Hashes]:
    """For every code point: what it folds to, its kind, and the number of its folded form."""
    fold = np.arange(0x110000, dtype=np.uint32)
    kinds = np.zeros(0x110000, np.uint8)
    for code in range(0x20000):  # letters of higher planes are all Chinese
        folded = unicodedata.normalize("NFKC", chr(code)).lower()
        if len(folded) == 1:
            fold[code] = ord(folded)
        category = unicodedata.category(chr(int(fold[code])))
        kinds[code] = _WORD if category[0] in "LMN" else _IGNORED if category == "Cf" else _SEPARATOR
    for kind, ranges in ((_HAN, _HAN_RANGES), (_THAI, _THAI_RANGES)):
        for low, high in ranges:
            of_script: Any = (fold >= low) & (fold <= high)
            kinds[of_script & ((kinds == _WORD) | (fold >= 0x20000))] = kind
    for low, high in ((0xE0000, 0xE0FFF), (0xFE00, 0xFE0F), *_OPTIONAL_MARKS):
        within = slice(low, high + 1)
        kinds[within] = np.where(kinds[within] == _SEPARATOR, kinds[within], _IGNORED)
    kinds[0xE0000:0xE1000] = _IGNORED  # tags and variation selectors
    return fold, kinds, mix(fold.astype(np.uint64) + np.uint64(1))
