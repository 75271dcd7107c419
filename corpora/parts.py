"""The tokenisation pass: sources in numbered parts, made by any number of workers, each part exactly once.

Where a part ends depends on the sources alone (`pieces.py`), so the parts, and the store joined of them, are the same
bytes for any number of workers, shards and machines. A part appears under its name only when it is whole, and a
finished part is never made again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpora.common.files import atomic_folder, write_json
from corpora.common.processes import Pool
from corpora.common.progress import Progress
from corpora.documents import PLACES_KEPT, not_strict
from corpora.lines import Bad, Lines, Record
from corpora.pieces import Block, Range, blocks, ranges
from corpora.segment import Language, Unit, detect_language, units
from corpora.sources import Source, reading
from corpora.store_writer import Units
from corpora.tokenizer import Tokenizer

MAX_UNIT = 1 << 20  # characters; a longer line is no paragraph, and is dropped and counted
MANY_FILES = 4  # unseekable files a shard from which on each is read by one shard, not by all


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
    strict: bool = False
    shard: tuple[int, int] = (0, 1)
    by_file: bool = False

    def owns(self, number: int, source: Source, part: int) -> bool:
        """Whether a part of source `number` is this shard's."""
        index, count = self.shard
        return (number + (0 if self.by_file and not source.seekable else part)) % count == index

    def make(self, number: int, source: Source, piece: Range | Block, path: Path) -> Made:
        """Segment and tokenise a part into the folder `path`.

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
        table = Units.of(found.units, tokenizer, number, found.lines)
        n_units, n_documents = len(table.position), len(found.units)
        table = table.without_empty()
        dropped = found.dropped | {
            "units without tokens": n_units - len(table.position),
            "documents without units": n_documents - len(table.line),
            f"units over {MAX_UNIT:,} characters": found.long_units,
        }
        with atomic_folder(path) as partial:
            counts = (table if self.keep_text else table.without_text()).write(partial, tokenizer.dtype)
            counts["unknown_tokens"] = int((table.ids == tokenizer.unk_id).sum())
            counts["chinese_documents"] = found.chinese
            fields = {
                "counts": counts,
                "dropped": {reason: n for reason, n in dropped.items() if n},
                "places": found.places,
                # A range of a file does not know how many lines stand before it: `lines` tells those behind it.
                "first": piece.first if isinstance(piece, Block) else None,
                "lines": lines.count,
            }
            write_json(partial / "part.json", fields)
        return Made(documents=n_documents)


@dataclass
class _Documents:
    """The documents of a part, cut into units, and what was dropped."""

    maker: PartMaker
    units: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)  # where each document starts
    chinese: int = 0
    long_units: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[int]] = field(default_factory=dict)  # the first of each reason

    def take(self, record: Record) -> None:
        """Take one record in."""
        line, text = record
        if isinstance(text, Bad):
            self.drop(text.reason, line)
            return
        cut = units(text, self.maker.unit, self.maker.language)
        if len(text) > MAX_UNIT:
            kept = [unit for unit in cut if len(unit) <= MAX_UNIT]
            self.long_units += len(cut) - len(kept)
            cut = kept
        self.units.append(cut)
        self.lines.append(line)
        self.chinese += detect_language(text) == "zh"

    def drop(self, reason: str, line: int) -> None:
        """Count a record that is left out."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        places = self.places.setdefault(reason, [])
        if len(places) < PLACES_KEPT:
            places.append(line)


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


def part_path(folder: Path, source: int, part: int) -> Path:
    """Where a part lies; names sort in the order of the documents."""
    return folder / f"{source:06d}-{part:06d}"


def make_parts(sources: Sequence[Source], folder: Path, maker: PartMaker, pool: Pool) -> dict[int, int]:
    """Make every part of a shard that is not there yet.

    Args:
        sources: all sources, in order.
        folder: holds the parts.
        maker: what to do with a part.
        pool: does the work.

    Returns:
        How many parts each source has, as far as this shard knows.

    Raises:
        UserError: under the maker's `strict`, the first bad record.
        MachineError: a part could not be written, a source not read, or a worker died.
    """
    streams = sum(not source.seekable for source in sources)
    maker = dataclasses.replace(maker, by_file=streams >= MANY_FILES * maker.shard[1])
    known: dict[int, int] = {}
    work: list[int] = []  # the source of each piece of work
    failed: list[tuple[int, str, str]] = []

    def feed() -> Iterator[tuple[Any, ...]]:
        # A few streams are read here while workers tokenise; many are read side by side.
        here = not pool.remote and streams < MANY_FILES * pool.workers
        for number, piece in _pieces(sources, folder, maker, here, known):
            if failed:
                return
            work.append(number)
            yield maker, number, sources[number], piece, folder

    with Progress("tokenise", unit="documents") as progress:
        for order, made in pool.each(make_piece, feed()):
            number = work[order]
            if made.parts is not None:
                known[number] = made.parts
            if made.bad is not None:
                source = sources[number]
                failed.append((order, f"{source.name} {source.unit} {made.bad[1]}", made.bad[0]))
            progress.advance(made.documents)
    if failed:
        raise not_strict(*min(failed)[1:])
    return known


def _pieces(
    sources: Sequence[Source], folder: Path, maker: PartMaker, here: bool, known: dict[int, int]
) -> Iterator[tuple[int, Range | Block | None]]:
    """What is left to do, as source numbers and pieces; None: a worker reads the source."""
    for number, source in enumerate(sources):
        if source.seekable:
            found = ranges(source, maker.part_bytes)
            known[number] = len(found)
            for piece in found:
                if _missing(maker, number, source, piece, folder):
                    yield number, piece
        elif maker.by_file and not maker.owns(number, source, 0):
            continue
        elif here:
            for block in blocks(source, maker.part_bytes, maker.text_field):
                known[number] = block.part + 1
                if _missing(maker, number, source, block, folder):
                    yield number, block
        else:
            yield number, None


def _missing(maker: PartMaker, number: int, source: Source, piece: Range | Block, folder: Path) -> bool:
    return maker.owns(number, source, piece.part) and not part_path(folder, number, piece.part).exists()


def make_piece(
    maker: PartMaker, number: int, source: Source, piece: Range | Block | None, folder: Path
) -> Made:
    """Make a part; or all of a source that this shard owns and that are not there."""
    if piece is not None:
        return maker.make(number, source, piece, part_path(folder, number, piece.part))
    documents = parts = 0
    for block in blocks(source, maker.part_bytes, maker.text_field):
        parts += 1
        if _missing(maker, number, source, block, folder):
            made = maker.make(number, source, block, part_path(folder, number, block.part))
            if made.bad is not None:
                return made
            documents += made.documents
    return Made(documents, parts)


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
