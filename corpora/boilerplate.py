"""Rules of the field that tell running text from what surrounds it on web pages.

Rules for lines are C4's (Raffel et al. 2020, section 2.2, and its published code); rules for documents are Gopher's (Rae et
al. 2021, table A1) and one of FineWeb's (Penedo et al. 2024, section 3.6). They were made for English; where a script or
its punctuation makes one senseless, it does not apply, as the comments say.
"""

from __future__ import annotations

import functools
import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from corpora.words import THAI_CHARACTER, WORD, Hashes, Words, find_words, ngrams

JAVASCRIPT = "javascript line"
POLICY = "cookie or policy line"
_POLICY_WORDS = (
    # C4's code
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
    # the same in Chinese and Japanese
    "隐私政策", "隱私政策", "隱私權政策", "使用条款", "使用條款", "プライバシーポリシー", "利用規約",
)  # fmt: skip

LOOKED_AT = 1_000_000  # characters of a document, from its start, that its rules look at
ENDED_LINES = 0.12  # share of lines that end a sentence; FineWeb drops up to this one
REPEATED_LINES = 0.30  # Gopher: share of lines that are repetitions
REPEATED_LINE_CHARS = 0.20  # Gopher: share of characters in them
BULLETS = 0.90  # Gopher: share of lines that start with a bullet
ELLIPSES = 0.30  # Gopher: share of lines that end with an ellipsis
SYMBOLS = 0.10  # Gopher: hash signs and ellipses for each word
WITH_LETTERS = 0.80  # Gopher: share of words with a letter in them
WORD_LENGTHS = (
    2.0,
    15.0,
)  # Gopher has 3 to 10 for English; Korean and Vietnamese have shorter words, Tamil longer
REPETITION_WORDS = 50  # Gopher's shortest document: in less, any repetition is a large share
TOP_BIGRAM = 0.20  # Gopher: share of characters in the most frequent run of 2 words
# Gopher: share of characters in repeated runs. It has one bound for each length from 5 to 10; the two ends are kept here.
# The short runs are for scripts with spaces: 5 words are 8 Chinese characters, and an office's title alone is as long.
REPEATED_SHORT_RUN, REPEATED_SHORT_CHARS = 5, 0.15
REPEATED_LONG_RUN, REPEATED_LONG_CHARS = 10, 0.10
REPETITION_RUNS = frozenset({2, REPEATED_SHORT_RUN})  # words of the runs that most documents are judged by

# Sentence_Terminal of Unicode for living scripts, and what closes a quotation behind it.
_ENDS = tuple(".!?…。！？．｡؟۔।॥։።፧။។៕།\"'”’»」』")
_BULLETS = ("•", "‣", "▪", "●", "■", "・", "·", "-", "*", "–")


def drop_lines(text: str) -> tuple[str, Counter[str]]:
    """Leave out lines that are no part of what a page says.

    Returns:
        The text without them, and how many went by which rule.
    """
    dropped: Counter[str] = Counter()
    lowered = text.lower()
    if "javascript" not in lowered and not any(word in lowered for word in _POLICY_WORDS):
        return text, dropped
    kept = []
    for line in text.split("\n"):
        lowered = line.lower()
        if "javascript" in lowered:
            dropped[JAVASCRIPT] += 1
        elif any(word in lowered for word in _POLICY_WORDS):
            dropped[POLICY] += 1
        else:
            kept.append(line)
    return "\n".join(kept), dropped


def fault(text: str, words: Words | None = None) -> str | None:
    """What makes a document boilerplate as a whole, by the first rule that says so, or None.

    Args:
        text: the document.
        words: its words, where the caller has them.
    """
    if words is None or len(text) > LOOKED_AT:
        text = text[:LOOKED_AT]
        words = find_words(text)
    if "lorem ipsum" in text.lower():  # C4
        return "lorem ipsum"
    return _fault_of_lines(text, words) or _fault_of_words(text, words) or _fault_of_runs(words)


def _fault_of_lines(text: str, words: Words) -> str | None:
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    if not lines:
        return None
    if sum(line.startswith(_BULLETS) for line in lines) > BULLETS * len(lines):
        return "list of bullets"
    # A Chinese ellipsis, two of the sign, ends a sentence as it should.
    if sum(line.endswith(("…", "...")) and not line.endswith("……") for line in lines) > ELLIPSES * len(lines):
        return "lines cut off by ellipses"
    # Thai, Lao, Khmer and Burmese: the first two end sentences with a space at most.
    if _share(words, THAI_CHARACTER) < 0.5 and sum(
        line.endswith(_ENDS) for line in lines
    ) <= ENDED_LINES * len(lines):
        return "few lines end a sentence"
    repeated = [line for line, count in Counter(lines).items() for _ in range(count - 1)]
    if len(repeated) > REPEATED_LINES * len(lines) or sum(map(len, repeated)) > REPEATED_LINE_CHARS * sum(
        map(len, lines)
    ):
        return "repeated lines"
    return None


def _fault_of_words(text: str, words: Words) -> str | None:
    count = words.count
    if not count:
        return "no words"
    symbols = text.count("#") + text.count("...")
    if "…" in text:
        symbols += len(_ELLIPSIS.findall(text))
    if symbols > SYMBOLS * count:
        return "many symbols"
    if _share(words, WORD) <= 0.5:  # no spaces part these words: nobody knows where one ends
        return None
    if _with_letters(text) < WITH_LETTERS:
        return "few words with letters"
    if not WORD_LENGTHS[0] <= len(words.codes_C) / len(words) <= WORD_LENGTHS[1]:
        return "words too short or too long"
    return None


def _fault_of_runs(words: Words) -> str | None:
    if words.count < REPETITION_WORDS:
        return None
    if _top_share(words, 2) > TOP_BIGRAM:
        return "one phrase again and again"
    short_runs = _share(words, WORD) > 0.5
    # What is repeated in runs of 10 is repeated in runs of 5 too: where the latter is little, both are decided.
    shares = _repeated_share(words, REPEATED_SHORT_RUN) if short_runs else 1.0
    if short_runs and shares > REPEATED_SHORT_CHARS:
        return "repeated text"
    if shares > REPEATED_LONG_CHARS and _repeated_share(words, REPEATED_LONG_RUN) > REPEATED_LONG_CHARS:
        return "repeated text"
    return None


_ELLIPSIS = re.compile("(?<!…)…(?!…)")  # two are the Chinese one, which is punctuation like any other


def _share(words: Words, weight: int) -> float:
    """Share of the tokens that are of one kind: words, or characters of scripts without spaces."""
    return float((words.weights_T == weight).mean()) if len(words) else 0.0


def _with_letters(text: str) -> float:
    """Share of what stands between spaces that has a letter in it."""
    letter, space = _letters_and_spaces()
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    between = space[codes]
    opens = ~between
    opens[1:] &= between[:-1]
    starts = np.flatnonzero(opens)
    return float(np.logical_or.reduceat(letter[codes], starts).mean()) if len(starts) else 0.0


@functools.cache
def _letters_and_spaces() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For every code point: whether it is a letter, and whether it is a space."""
    chars = [chr(code) for code in range(0x110000)]
    return np.array([char.isalpha() for char in chars]), np.array([char.isspace() for char in chars])


def _top_share(words: Words, n: int) -> float:
    """Share of the characters that stand in the most frequent run of `n` words; 0 where it is below the bound."""
    grams = ngrams(words, n)
    sizes = words.starts_T1[grams.ends_W] - words.starts_T1[grams.starts_W]
    # Most texts are far from the bound, as counts of the hash's first bits show without sorting.
    most = int(np.bincount((grams.hashes_W >> np.uint64(52)).astype(np.int64)).max())
    total = len(words.codes_C)
    if most * int(sizes.max()) <= TOP_BIGRAM * total:
        return 0.0
    in_order = np.sort(grams.hashes_W)
    edges = np.flatnonzero(np.concatenate([[True], in_order[1:] != in_order[:-1], [True]]))
    counts = np.diff(edges)
    top = int(counts.argmax())
    one = int((grams.hashes_W == in_order[edges[top]]).argmax())
    return float(counts[top] * sizes[one]) / total if counts[top] > 1 else 0.0


def _repeated_share(words: Words, n: int) -> float:
    """Share of the characters that stand in runs of `n` words that were there before; none counts twice."""
    grams = ngrams(words, n)
    again = _seen_before(grams.hashes_W)
    if not again.any():
        return 0.0
    edges = np.bincount(grams.starts_W[again], minlength=len(words) + 1)
    edges -= np.bincount(grams.ends_W[again], minlength=len(words) + 1)
    covered = np.cumsum(edges[:-1]) > 0
    return float(np.diff(words.starts_T1)[covered].sum()) / len(words.codes_C)


def _seen_before(hashes_W: Hashes) -> NDArray[np.bool_]:
    """[W] whether the same number stands at an earlier place: by a table, which is several times faster than sorting."""
    bits = max(len(hashes_W) * 8, 2).bit_length()
    places = np.arange(len(hashes_W), dtype=np.int32)
    slots = hashes_W >> np.uint64(64 - bits)
    table = np.empty(1 << bits, np.int32)
    table[slots[::-1]] = places[::-1]  # of several writes to a slot the last one stays: the earliest place
    first = table[slots]
    seen = (first != places) & (hashes_W[first] == hashes_W)
    # Where another number came first into the slot, equal ones can only be among those that met that fate.
    other = np.flatnonzero((first != places) & ~seen)
    order = other[np.argsort(hashes_W[other], kind="stable")]
    seen[order[1:]] = hashes_W[order[1:]] == hashes_W[order[:-1]]
    return seen
