"""Records of line-based files, JSON lines and plain text, read from any byte on.

A record belongs to the range of bytes in which it starts, so that ranges can be read side by side.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import orjson

MAX_RECORD = 1 << 26  # bytes of a record; memory stays bounded where a file is one endless line
TOO_LONG = "record over 64 MiB"
BOM = b"\xef\xbb\xbf"


class Bad(NamedTuple):
    """A record that cannot be used."""

    reason: str


Record = tuple[int, str | Bad]  # line or row, and its text or why it has none


class Line(NamedTuple):
    """A line of a file."""

    number: int  # from 1 at the first line of the range
    raw: bytes  # with its end; its first `MAX_RECORD` bytes and one more where it is longer
    owned: bool  # whether it starts in the range
    goes_on: bool  # whether the line before it, outside the range, holds text


@dataclass
class Lines:
    """The lines of a range of a file, and those behind it for as long as they are asked for.

    Attributes:
        start: first byte of the range.
        stop: first byte after it, or None for the file's end.
        head: whether byte 0 is a file's beginning, which may be a byte order mark.
        count: lines seen that start in the range.
    """

    start: int = 0
    stop: int | None = None
    head: bool = True
    count: int = 0

    def read(self, file: BinaryIO) -> Iterator[Line]:
        """Read from the first line that starts in the range."""
        place, goes_on = self.start, False
        if place:
            file.seek(place - 1)
            place += _skip_line(file) - 1
            goes_on = self.stop is not None and place < self.stop and _holds_text_before(file, place)
            file.seek(place)
        number = 0
        while self.stop is None or place < self.stop or number:
            raw = file.readline(MAX_RECORD + 1)
            if not raw:
                return
            number += 1
            owned = self.stop is None or place < self.stop
            if self.head and place == 0 and raw.startswith(BOM):
                place, raw = len(BOM), raw[len(BOM) :]
                if not raw:  # the file holds nothing else
                    return
            place += len(raw)
            if len(raw) > MAX_RECORD and not raw.endswith(b"\n"):
                place += _skip_line(file)
            self.count += owned
            yield Line(number, raw, owned, goes_on)
            goes_on = False


def _skip_line(file: BinaryIO) -> int:
    """Read to the end of the line; gives the number of bytes."""
    skipped = 0
    while piece := file.readline(MAX_RECORD):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


def _holds_text_before(file: BinaryIO, place: int) -> bool:
    """Whether the line that ends just before `place` is not blank."""
    end = place - 1  # its line end
    while end > 0:
        first = max(0, end - 4096)
        file.seek(first)
        piece = file.read(end - first)
        line = piece.rpartition(b"\n")[2]
        if line.strip():
            return True
        if len(line) < len(piece):
            return False
        end = first
    return False


def txt_records(lines: Iterator[Line], text_field: str) -> Iterator[Record]:
    """Documents between blank lines. A line that is not UTF-8 spoils its document, not the file."""
    start, texts, size = 0, list[str](), 0
    bad: str | None = None
    skipping = False  # a document that started before the range
    for number, raw, owned, goes_on in lines:
        skipping |= goes_on
        if not raw.strip():
            if start:
                yield start, Bad(bad) if bad else "\n".join(texts)
            start, texts, size, bad, skipping = 0, [], 0, None, False
            if not owned:
                return
            continue
        if skipping:
            if not owned:
                return
            continue
        if not start:
            if not owned:
                return
            start = number
        size += len(raw)
        if size > MAX_RECORD and not bad:
            bad, texts = TOO_LONG, []
        if bad:
            if not owned:  # nothing more to learn of it
                break
            continue
        try:
            texts.append(raw.decode("utf-8").rstrip("\r\n"))
        except UnicodeDecodeError:
            start, bad, texts = number, "not UTF-8", []
    if start:
        yield start, Bad(bad) if bad else "\n".join(texts)


def jsonl_records(lines: Iterator[Line], text_field: str) -> Iterator[Record]:
    """A document a line."""
    for number, raw, owned, _ in lines:
        if not owned:
            return
        if len(raw) > MAX_RECORD and not raw.endswith(b"\n"):
            yield number, Bad(TOO_LONG)
        elif raw.strip():
            yield number, _json_text(raw, text_field)


def _json_text(raw: bytes, text_field: str) -> str | Bad:
    try:
        record = orjson.loads(raw)
    except ValueError:
        # What orjson refuses may be allowed (NaN, long numbers); else this says why not.
        try:
            record = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError:
            return Bad("not UTF-8")
        except (ValueError, RecursionError):  # a number of thousands of digits is a plain ValueError
            return Bad("not valid JSON")
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        return Bad(f"a JSON {type(record).__name__}, expected an object")
    if text_field not in record:
        return Bad(f'no field "{text_field}"')
    value: Any = record[text_field]
    return value if isinstance(value, str) else Bad(f'field "{text_field}" is no string')


PARSERS: dict[str, Callable[[Iterator[Line], str], Iterator[Record]]] = {
    "txt": txt_records,
    "jsonl": jsonl_records,
}
