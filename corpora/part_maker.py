"""One part: records to documents, units and the arrays of a store."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from corpora.common.files import dump_json, write_bytes_atomic
from corpora.documents import PLACES_KEPT
from corpora.lines import Lines, Record
from corpora.pieces import Block, Range
from corpora.segment import Language, Unit, detect_language, units
from corpora.sources import Source, reading
from corpora.store_writer import Units, counts_of
from corpora.tokenizer import Tokenizer

if TYPE_CHECKING:  # a tenth of a worker's start, where nothing is cleaned
    from corpora.quality import CleanCounts, Cleaned, Cleaner

MAX_UNIT = 1 << 20  # characters; a longer line is no paragraph, and is dropped and counted
LONG_UNIT = f"units over {MAX_UNIT:,} characters"
LINE = "\0line "  # stands before a place that is not known yet: a line of the part


@dataclass(frozen=True)
class PartMaker:
    """Turns the records of a part into the arrays of a store.

    Attributes:
        tokenizer: folder of the tokenizer.
        unit: paragraphs or sentences.
        language: see `segment.units`.
        keep_text: whether the units' text is kept.
        text_field: field or column that holds the text.
        part_bytes: see `pieces`.
        quality: what is done to the documents, as JSON of `QualitySettings`; None: nothing.
        strict: whether a bad record ends the work.
        shard: which of how many shards is made.
        by_file: whether a shard reads unseekable files of its own, instead of all for some parts of each.
    """

    tokenizer: str
    unit: Unit
    language: Language
    keep_text: bool
    text_field: str
    part_bytes: int
    quality: str | None = None
    strict: bool = False
    shard: tuple[int, int] = (0, 1)
    by_file: bool = False

    def owns(self, number: int, source: Source, part: int) -> bool:
        """Whether a part of source `number` is this shard's."""
        index, count = self.shard
        return (number + (0 if self.by_file and not source.seekable else part)) % count == index

    def make(self, number: int, source: Source, piece: Range | Block, path: Path) -> Made:
        """Clean, segment and tokenise a part into the file `path`.

        Returns:
            How many documents it has; under `strict`, the first bad record instead.
        """
        tokenizer = _tokenizer(self.tokenizer)
        lines = Lines()
        found = _Documents(self)
        for record in piece.records(source, self.text_field, lines):
            found.take(record)
            if self.strict and found.dropped:
                ((reason, (line, *_)),) = found.places.items()
                return Made(bad=(reason, _line(source, piece, line)))
        found.cut()
        table = Units.of(found.units, tokenizer, number, found.lines)
        n_units, n_documents = len(table.position), len(found.units)
        table = table.without_empty()
        kept = np.isin(found.lines, table.line, assume_unique=True)
        for lost in np.flatnonzero(~kept).tolist():
            found.drop("documents without units", found.lines[lost])
        if self.strict and found.dropped:
            reason = next(iter(found.places))
            return Made(bad=(reason, _line(source, piece, found.places[reason][0])))
        marks = found.marks().select(kept)
        dropped = found.dropped | {"units without tokens": n_units - len(table.position)}
        fields = {
            "dropped": {reason: n for reason, n in dropped.items() if n},
            "places": found.places,
            "quality": found.clean.to_json() if found.clean is not None else None,
            # A range of a file does not know how many lines stand before it: `lines` tells those behind it.
            "first": piece.first if isinstance(piece, Block) else None,
            "lines": lines.count,
        }
        write_part(path, table if self.keep_text else table.without_text(), marks, tokenizer, fields)
        return Made(documents=n_documents)


@dataclass(frozen=True)
class Marks:
    """What a part notes of each of its D documents, for the merge.

    Attributes:
        chinese: bool [D], whether its patterns are Chinese.
        hashes: uint64 [D, 2], see `duplicates.document_hash`; None where duplicates are kept.
        signatures: uint32 [D, H], see `duplicates.signature`; None where near-duplicates are.
    """

    chinese: npt.NDArray[np.bool_]
    hashes: npt.NDArray[np.uint64] | None
    signatures: npt.NDArray[np.uint32] | None

    def select(self, kept: npt.NDArray[np.bool_]) -> Marks:
        """Those of the marked documents [D]."""
        hashes = None if self.hashes is None else self.hashes[kept]
        return Marks(self.chinese[kept], hashes, None if self.signatures is None else self.signatures[kept])


def write_part(path: Path, table: Units, marks: Marks, tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    """Write a part: one file, which is there whole or not at all."""
    from safetensors.numpy import save

    arrays = table.arrays(tokenizer.dtype)
    counts = counts_of(arrays)
    counts["unknown_tokens"] = int((table.ids == tokenizer.unk_id).sum())
    counts["chinese_documents"] = int(marks.chinese.sum())
    noted = {"chinese": marks.chinese, "hashes": marks.hashes, "signatures": marks.signatures}
    arrays |= {name: values for name, values in noted.items() if values is not None}
    write_bytes_atomic(path, save(arrays, {"part": dump_json({**fields, "counts": counts})}))


def part_fields(path: Path) -> dict[str, Any]:
    """What a part says of itself: counts, what was dropped and where, lines."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        fields: dict[str, Any] = json.loads(file.metadata()["part"])
    return fields


def part_arrays(path: Path, *names: str) -> dict[str, npt.NDArray[Any]]:
    """Arrays of a part, all where no names are given; those that it lacks are left out."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        there = set(file.keys())
        return {name: file.get_tensor(name) for name in sorted(there.intersection(names) if names else there)}


@dataclass
class _Documents:
    """The documents of a part, and what was dropped."""

    maker: PartMaker
    texts: list[str] = field(default_factory=list)
    units: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)  # where each document starts
    cleaned: list[Cleaned] = field(default_factory=list)  # of each document that is kept
    clean: CleanCounts | None = None
    chinese: list[bool] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[int]] = field(default_factory=dict)  # the first of each reason

    def take(self, record: Record) -> None:
        """Take one record in."""
        line, text = record
        if isinstance(text, str):
            self.texts.append(text)
            self.lines.append(line)
            return
        self.drop(text.reason, line)

    def drop(self, reason: str, line: int) -> None:
        """Count what is left out, with its place."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        places = self.places.setdefault(reason, [])
        if len(places) < PLACES_KEPT:
            places.append(line)

    def cut(self) -> None:
        """Clean the documents and cut them into units."""
        if self.maker.quality is not None:
            self._clean(_cleaner(self.maker.quality))
        for line, text in zip(self.lines, self.texts, strict=True):
            cut = units(text, self.maker.unit, self.maker.language)
            if len(text) > MAX_UNIT:
                kept = [unit for unit in cut if len(unit) <= MAX_UNIT]
                for _ in range(len(cut) - len(kept)):
                    self.drop(LONG_UNIT, line)
                cut = kept
            self.units.append(cut)
            language = self.maker.language
            self.chinese.append((detect_language(text) if language == "auto" else language) == "zh")

    def _clean(self, cleaner: Cleaner) -> None:
        from corpora.quality import CleanCounts

        self.clean = CleanCounts(cleaner)
        texts, lines = [], []
        for line, cleaned in zip(self.lines, cleaner.clean_all(self.texts), strict=True):
            self.clean.add(f"{LINE}{line}", cleaned)
            if cleaned.text is not None:
                texts.append(cleaned.text)
                lines.append(line)
                self.cleaned.append(cleaned)
        self.texts, self.lines = texts, lines

    def marks(self) -> Marks:
        """What is noted of each document."""
        hashes = [one.hash_2 for one in self.cleaned if one.hash_2 is not None]
        signatures = [one.signature_H for one in self.cleaned if one.signature_H is not None]
        return Marks(
            np.array(self.chinese, np.bool_),
            np.stack(hashes) if hashes else None,
            np.stack(signatures) if signatures else None,
        )


@dataclass(frozen=True)
class Made:
    """What a worker did.

    Attributes:
        documents: how many it put into parts.
        parts: how many parts the source has, where it was read to its end.
        bad: under `strict`, the reason and the line of a bad record.
    """

    documents: int = 0
    parts: int | None = None
    bad: tuple[str, int] | None = None


def _line(source: Source, piece: Range | Block, line: int) -> int:
    """A line's number in its source."""
    if isinstance(piece, Block):
        return piece.first - 1 + line
    if piece.start == 0:
        return line
    ended, left = 0, piece.start - 1  # lines that end before the last byte, behind which one more starts
    with reading(source), open(source.name, "rb") as file:
        while left and (some := file.read(min(left, 1 << 20))):
            ended += some.count(b"\n")
            left -= len(some)
    return ended + 1 + line


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: str) -> Tokenizer:
    return Tokenizer.load(folder)


@functools.lru_cache(maxsize=1)
def _cleaner(quality: str) -> Cleaner:
    from corpora.quality import Cleaner, QualitySettings

    return Cleaner(QualitySettings.model_validate_json(quality))
