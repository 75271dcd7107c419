"""Decontamination: which rows of downstream sets stand in the pre-training text.

A row is found where a run of `n` of its words stands in a document, word for word (13 words: Brown et al. 2020, appendix
C; in scripts without spaces as much text as that, see `corpora.words`). A text shorter than that has to stand
there whole, and is not looked for below `SHORTEST` words, because common phrases would be found everywhere. The document
is dropped: GPT-3 cut 200 characters around the match and went on with the pieces, but here neighbouring units are
examples, and a cut would make neighbours of units that never were.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from corpora.common.errors import UserError
from corpora.common.progress import Progress
from corpora.downstream import DownstreamText, find_sets, read_set
from corpora.words import WORD, Hashes, Ints, Words, find_all_words, find_ngrams, find_words, ngrams

NGRAM = 13  # words; GPT-3's (Brown et al. 2020, appendix C)
SHORTEST = 8  # words of a text that is looked for whole; PaLM's n-grams (Chowdhery et al. 2022, section 8)
BATCH = 1000  # texts whose words are found together
EXAMPLES = 5  # shown for each set
SHOWN = 120  # characters of an example
FILTER_PLACES = 32  # of the filter for each run, so that at most 1 in 32 others passes
FILTER_BITS = 29  # at most 64 MiB


class Found(NamedTuple):
    """A row of a downstream set that a document holds."""

    set: str
    row: int  # line, or row from 1
    field: str
    words: str  # of the row, that stand in the document


@dataclass(frozen=True)
class _Runs:
    """What is looked for: runs of words of the texts, sorted by the hash of how they begin.

    Attributes:
        hashes_N: of the first words of each run.
        texts_N: which text it is in.
        starts_N: which word of the text it starts with.
        lengths_N: how many words, or characters of scripts without spaces, it has.
        filter: a bit for each beginning of a hash; few others than those of `hashes_N` meet one that is set.
    """

    hashes_N: Hashes
    texts_N: NDArray[np.uint32]
    starts_N: NDArray[np.uint32]
    lengths_N: NDArray[np.uint32]
    filter: NDArray[np.uint8]

    @classmethod
    def make(cls, hashes_N: Hashes, texts_N: Ints, starts_N: Ints, lengths_N: Ints) -> _Runs:
        order = np.argsort(hashes_N, kind="stable")
        bits = min((max(len(hashes_N), 32) * FILTER_PLACES).bit_length(), FILTER_BITS)
        taken = np.zeros(1 << bits, bool)
        taken[hashes_N >> np.uint64(64 - bits)] = True
        texts, starts, lengths = (v[order].astype(np.uint32) for v in (texts_N, starts_N, lengths_N))
        return cls(hashes_N[order], texts, starts, lengths, np.packbits(taken, bitorder="little"))

    def candidates(self, hashes_W: Hashes) -> Iterator[tuple[int, int]]:
        """Places in `hashes_W`, each with the number of a run that begins with this hash, in order."""
        bits = len(self.filter).bit_length() + 2
        place = hashes_W >> np.uint64(64 - bits)
        byte = self.filter[place >> np.uint64(3)]
        likely = np.flatnonzero((byte >> (place & np.uint64(7)).astype(np.uint8)) & 1)
        likely = likely[np.argsort(hashes_W[likely])]  # neighbours in the table one after the other: faster
        first = np.searchsorted(self.hashes_N, hashes_W[likely])
        first[first == len(self.hashes_N)] = 0
        equal = self.hashes_N[first] == hashes_W[likely]
        likely, first = likely[equal], first[equal]
        for k in np.argsort(likely):
            run = int(first[k])
            while run < len(self.hashes_N) and self.hashes_N[run] == hashes_W[likely[k]]:
                yield int(likely[k]), run
                run += 1


class Downstream:
    """The texts of downstream sets, made to be found in documents. Can be sent to other processes."""

    def __init__(self, sets: Mapping[str, Iterable[DownstreamText]], n: int = NGRAM) -> None:
        """Index the texts of `sets`.

        Args:
            sets: texts by the name of their set.
            n: words of a run that counts as found, at least `SHORTEST`.
        """
        self.n = n
        self.rows = dict.fromkeys(sets, 0)  # of each set
        self.too_short: dict[str, int] = {}  # texts of each set that are not looked for
        self._texts: list[DownstreamText] = []
        runs: list[tuple[Hashes, Ints, Ints, Ints]] = []
        content, last = hashlib.sha256(), dict[str, int]()
        every = itertools.chain.from_iterable(sets.values())
        while batch := list(itertools.islice(every, BATCH)):
            words = find_all_words([text.text for text in batch])
            for length in (SHORTEST, n):
                find_ngrams(words, length)
            for text, its_words in zip(batch, words, strict=True):
                content.update("\x1f".join(map(str, text)).encode("utf-8", "surrogatepass") + b"\x1e")
                if last.get(text.set) != text.row:
                    last[text.set] = text.row
                    self.rows[text.set] += 1
                beginnings = ngrams(its_words, SHORTEST).hashes_W
                if not len(beginnings):
                    self.too_short[text.set] = self.too_short.get(text.set, 0) + 1
                    continue
                whole = ngrams(its_words, n)
                starts, ends = whole.starts_W, whole.ends_W
                if not len(whole):
                    starts, ends = np.zeros(1, np.int64), np.array([len(its_words)])
                number = np.full(len(starts), len(self._texts))
                runs.append((beginnings[starts], number, starts, ends - starts))
                self._texts.append(text)
        self._fingerprint = content.hexdigest()
        nothing = np.empty(0, np.int64)
        runs = runs or [(np.empty(0, np.uint64), nothing, nothing, nothing)]
        hashes, *places = (np.concatenate(column) for column in zip(*runs, strict=True))
        self._runs = _Runs.make(hashes, *places)

    @classmethod
    def load(cls, sets: Sequence[str], n: int = NGRAM) -> Downstream:
        """Read sets and index them.

        Args:
            sets: files, folders, patterns or `hub:namespace/name[:config][:split]`.
            n: words of an n-gram.

        Raises:
            UserError: a set is missing or damaged, or none has a text that is long enough to look for.
            MachineError: a set cannot be read.
        """
        with Progress("read downstream sets", unit="texts") as progress:

            def counted(texts: Iterable[DownstreamText]) -> Iterator[DownstreamText]:
                for text in texts:
                    progress.advance()
                    yield text

            found = cls({name: counted(read_set(name, source)) for name, source in find_sets(sets)}, n)
        if not found._texts:
            raise UserError(
                f"{', '.join(sets)}: no text there has {SHORTEST} words, the least that is looked for; "
                "give the files that hold the texts of the downstream sets"
            )
        return found

    def identity(self) -> dict[str, Any]:
        """What a manifest cites: the sets and their rows, the content as a hash, no path."""
        return {"sets": self.rows, "sha256": self._fingerprint, "ngram": self.n}

    def find(self, document: str | Words) -> list[Found]:
        """Which rows stand in a document: each text once, at its first place, in the order of the sets."""
        words = find_words(document) if isinstance(document, str) else document
        grams = ngrams(words, SHORTEST)
        found: dict[int, Found] = {}
        if not len(grams) or not len(self._texts):
            return []
        for place, run in self._runs.candidates(grams.hashes_W):
            index = int(self._runs.texts_N[run])
            if index in found:
                continue
            text, at, length = (
                self._texts[index],
                int(self._runs.starts_N[run]),
                int(self._runs.lengths_N[run]),
            )
            row = _cached_words(text.text)
            start = int(grams.starts_W[place])
            if start + length <= len(words) and words.same(start, start + length, row, at):
                found[index] = Found(text.set, text.row, text.field, _as_text(row, at, at + length))
        return [found[index] for index in sorted(found)]


@functools.lru_cache(maxsize=256)
def _cached_words(text: str) -> Words:
    return find_words(text)


def _as_text(words: Words, start: int, end: int) -> str:
    """Words as a reader sees them: with spaces, but none between characters of scripts without."""
    pieces: list[str] = []
    spaced = False
    for k in range(start, end):
        word = words.codes_C[words.starts_T1[k] : words.starts_T1[k + 1]].astype("<u4").tobytes()
        spaced_now = bool(words.weights_T[k] == WORD)
        pieces.append((" " if pieces and (spaced or spaced_now) else "") + word.decode("utf-32-le"))
        spaced = spaced_now
    return "".join(pieces)


@dataclass
class _SetReport:
    rows: int  # of the set
    too_short: int  # texts that were not looked for
    found: set[int] = field(default_factory=set)  # rows that stand in the text
    documents: int = 0  # that hold one of them
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add_examples(self, examples: Iterable[dict[str, Any]]) -> None:
        """Keep the first examples, each of another row."""
        for example in examples:
            if len(self.examples) == EXAMPLES:
                return
            if all(known["row"] != example["row"] for known in self.examples):
                self.examples.append(example)


class Contamination:
    """The report: for each set, which of its rows were found, how many documents went, the first examples."""

    def __init__(self, downstream: Downstream) -> None:
        """A report in which nothing was found yet."""
        self.documents = 0  # that hold a row of any set
        self._sets = {
            name: _SetReport(rows, downstream.too_short.get(name, 0))
            for name, rows in downstream.rows.items()
        }

    def add(self, place: str, found: Sequence[Found]) -> None:
        """Count a document.

        Args:
            place: where it stands, for people: `news.jsonl line 17`.
            found: the rows it holds; none counts nothing.
        """
        self.documents += bool(found)
        for name in {one.set for one in found}:
            self._sets[name].documents += 1
        for one in found:
            report = self._sets[one.set]
            report.found.add(one.row)
            shown = one.words if len(one.words) <= SHOWN else one.words[:SHOWN] + "..."
            report.add_examples([{"document": place, "row": one.row, "field": one.field, "words": shown}])

    def merge(self, later: Contamination) -> None:
        """Add the report of the documents that follow, made with the same sets."""
        self.documents += later.documents
        for name, other in later._sets.items():
            mine = self._sets[name]
            mine.documents += other.documents
            mine.found |= other.found
            mine.add_examples(other.examples)

    def to_json(self) -> dict[str, Any]:
        """As values that `from_json` reads."""
        sets = {
            name: {
                "rows": one.rows,
                "too_short": one.too_short,
                "found": sorted(one.found),
                "documents": one.documents,
                "examples": one.examples,
            }
            for name, one in sorted(self._sets.items())
        }
        return {"documents": self.documents, "sets": sets}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Contamination:
        """Read what `to_json` gave."""
        report = cls.__new__(cls)
        report.documents = values["documents"]
        report._sets = {
            name: _SetReport(
                one["rows"], one["too_short"], set(one["found"]), one["documents"], list(one["examples"])
            )
            for name, one in values["sets"].items()
        }
        return report

    def lines(self) -> list[str]:
        """What people read: a line for each set, and one for each example."""
        lines = []
        for name, one in sorted(self._sets.items()):
            short = "text is" if one.too_short == 1 else "texts are"
            lines.append(
                f"{name}: {len(one.found):,} of {one.rows:,} rows stand in {one.documents:,} documents"
                + (f" ({one.too_short:,} {short} too short to be looked for)" if one.too_short else "")
            )
            lines += [
                f'  {example["document"]}: row {example["row"]}, {example["field"]}: "{example["words"]}"'
                for example in one.examples
            ]
        return lines
