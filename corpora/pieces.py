"""How sources are cut into parts, the unit of resuming and of sharing work out.

Where a part ends depends on the sources alone. A plain file is cut at every `part_bytes` bytes, and any worker reads
any range of it. What cannot be entered in the middle (compressed files, tables, hub data sets) is cut while it is
read: the part ends with the record that reaches `part_bytes`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from corpora.documents import EMPTY, READERS, checked
from corpora.lines import MAX_RECORD, PARSERS, Bad, Lines, Record
from corpora.sources import Damaged, Source, open_source, reading


@dataclass(frozen=True)
class Range:
    """A part of a plain file, read by whoever makes it."""

    part: int  # number within its source
    start: int  # first byte
    stop: int  # first byte after it

    def records(self, source: Source, text_field: str, lines: Lines) -> Iterator[Record]:
        """The part's records, numbered by line from 1 at its first line; `lines` counts its lines."""
        lines.start, lines.stop = self.start, self.stop
        with reading(source), open(source.name, "rb") as file:
            for number, found in PARSERS[source.reader](lines.read(file), text_field):
                yield number, checked(found)
        if self.start == 0 and not lines.count:
            yield 1, Bad(EMPTY)


@dataclass(frozen=True)
class Block:
    """A part that was read already: whole lines, or records."""

    part: int
    first: int  # number of its first line or record
    data: bytes = b""
    rows: list[Record] = field(default_factory=list)  # behind `data`

    def records(self, source: Source, text_field: str, lines: Lines) -> Iterator[Record]:
        """The part's records, numbered from 1 at its first."""
        lines.head = False
        if self.data:
            for number, found in PARSERS[source.reader](lines.read(io.BytesIO(self.data)), text_field):
                yield number, checked(found)
        for number, found in self.rows:
            yield number - self.first + 1, checked(found)


def ranges(source: Source, part_bytes: int) -> list[Range]:
    """The parts of a plain file; an empty one has one."""
    with reading(source):
        size = os.path.getsize(source.name)
    starts = range(0, size, part_bytes) if size else (0,)
    return [Range(part, start, min(size, start + part_bytes)) for part, start in enumerate(starts)]


def blocks(source: Source, part_bytes: int, text_field: str) -> Iterator[Block]:
    """Read a source that is no plain file, part by part; where its data are damaged, the last record says so."""
    cut = _Cut(part_bytes, by_line=source.reader == "jsonl")
    try:
        with reading(source):
            if source.reader in PARSERS:
                with open_source(source) as file:
                    for line in Lines().read(file):
                        if cut.add_line(line.raw):
                            yield cut.close()
                if cut.next == 1:
                    cut.add_record((1, Bad(EMPTY)))
            else:
                for record in READERS[source.reader](source, text_field):
                    if cut.add_record(record):
                        yield cut.close()
    except Damaged as error:
        cut.rows.append((cut.next, Bad(error.reason)))
    if cut.data or cut.rows:
        yield cut.close()


@dataclass
class _Cut:
    """The part that is being read."""

    part_bytes: int
    by_line: bool  # whether every line is a record; else blank lines stand between them
    part: int = 0
    first: int = 1  # number of its first line or record
    next: int = 1  # number of the line or record that is read next
    data: bytearray = field(default_factory=bytearray)
    rows: list[Record] = field(default_factory=list)
    size: int = 0  # bytes of lines, or characters of texts
    record: int = 0  # bytes of the open record

    def add_line(self, raw: bytes) -> bool:
        """Take a line in; tells whether the part ends with it."""
        ends = self.by_line or not raw.strip()
        too_long = self.record > MAX_RECORD
        if not too_long:  # else it belongs to a record that is dropped anyway
            self.data += raw
            if len(raw) > MAX_RECORD and not raw.endswith(b"\n"):
                self.data += b"\n"  # the rest of the line was left out
        self.next += 1
        self.size += len(raw)
        self.record = 0 if ends else self.record + len(raw)
        # Behind lines that were left out, only a new part has the right numbers.
        return ends and (too_long or self.size >= self.part_bytes)

    def add_record(self, record: Record) -> bool:
        """Take a record in; tells whether the part ends with it."""
        self.rows.append(record)
        self.next = record[0] + 1
        self.size += len(record[1]) if isinstance(record[1], str) else 1
        return self.size >= self.part_bytes

    def close(self) -> Block:
        """The part as it stands; the next one begins."""
        block = Block(self.part, self.first, bytes(self.data), self.rows)
        self.part, self.first, self.size, self.record = self.part + 1, self.next, 0, 0
        self.data, self.rows = bytearray(), []
        return block
