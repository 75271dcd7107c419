"""Texts to ids word by word: each distinct word is tokenised once, the rest is array work.

A sentencepiece model that splits at white space never lets a piece reach across a space, so the ids of a text are
those of its words, end to end. The words of a language repeat: a twentieth of a corpus reaches the model. Only where
two cuts of a word score the same may the whole text come out otherwise, as float32 sums then round by what stands
before (`PPP` as `PP P` or `P PP`: 28 of 184,502 paragraphs of an encyclopedia); word by word the cut is always the
same, as it is in the fast tokenizers of Hugging Face, which split at spaces first too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPACE = "▁"  # sentencepiece's mark of a word's beginning
KEPT_WORDS = 500_000  # words remembered; then the memory starts anew (about 25 MB)
KEPT_IDS = 16_000_000  # their ids: scripts without spaces have few words and long ones


def splits_at_spaces(pieces: Sequence[str], encode: Callable[[list[str]], list[list[int]]]) -> bool:
    """Whether a model's ids of a text are those of its words.

    Args:
        pieces: the model's pieces.
        encode: texts to lists of ids.
    """
    if any(SPACE in piece[1:] for piece in pieces):
        return False
    spaced, plain, one, two = encode([" a  b ", "a b", "a", "b"])
    return spaced == plain == one + two


class WordEncoder:
    """Encodes texts word by word and remembers the words.

    Args:
        encode: words to lists of ids, each word by itself.
    """

    def __init__(self, encode: Callable[[list[str]], list[list[int]]]) -> None:
        self._encode = encode
        self._forget()

    def _forget(self) -> None:
        import pyarrow as pa

        self._words: Any = pa.array([], pa.large_string())  # [W]
        self._starts = np.zeros(1, np.int64)  # [W + 1] where each word's ids start
        self._ids = np.zeros(0, np.int32)  # of all words, end to end

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids of N texts, end to end.

        Args:
            texts: strings that can be written as UTF-8, below 2**31 ids together.

        Returns:
            int32 [L], and int64 [N + 1]: where each text starts.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        split = pc.split_pattern(pa.array(texts, pa.large_string()), " ")
        coded = split.values.dictionary_encode()
        rows = self._rows(coded.dictionary)
        # First per distinct word, then per word: the table of distinct words is small and stays in the cache.
        first_of = self._starts[rows].astype(np.int32)  # 32 bits, as this is a matter of memory traffic
        lengths_of = (self._starts[rows + 1] - self._starts[rows]).astype(np.int32)
        words = np.asarray(coded.indices)
        lengths = lengths_of[words]
        ends = np.cumsum(lengths, dtype=np.int32)
        # Place j of the result is the (j - start)-th id of its word.
        places = np.repeat(first_of[words] - (ends - lengths), lengths)
        places += np.arange(len(places), dtype=np.int32)
        starts = np.concatenate([np.zeros(1, np.int64), ends])[np.asarray(split.offsets)]
        return np.take(self._ids, places), starts

    def _rows(self, words: Any) -> NDArray[np.int64]:
        """Rows of distinct words in the table, those of new words after they were encoded."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if len(self._words) > KEPT_WORDS or len(self._ids) > KEPT_IDS:
            self._forget()
        found = pc.index_in(words, value_set=self._words)
        rows = np.array(found.fill_null(-1), np.int64)
        places = np.flatnonzero(rows < 0)
        if len(places):
            new = words.take(pa.array(places))
            lists = self._encode(new.to_pylist())
            rows[places] = np.arange(len(self._words), len(self._words) + len(new))
            self._words = pa.concat_arrays([self._words, new])
            lengths = np.fromiter(map(len, lists), np.int64, len(lists))
            flat = np.fromiter(itertools.chain.from_iterable(lists), np.int32, int(lengths.sum()))
            self._starts = np.concatenate([self._starts, self._starts[-1] + np.cumsum(lengths)])
            self._ids = np.concatenate([self._ids, flat])
        return rows
