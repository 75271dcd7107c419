"""Records of JSON-lines and CSV files in which every line has to be right: a fault is an error with its place.

Raw text, of which bad records are counted instead, is read by `corpora.documents`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from corpora.common.errors import UserError, at

Record = tuple[int, dict[str, Any]]  # line, from 1, and its fields


def json_lines(path: str | Path, lines: Iterable[bytes]) -> Iterator[Record]:
    """Read JSON lines; blank ones are passed over and counted.

    Args:
        path: what messages call the file.
        lines: a file opened in binary mode.

    Raises:
        UserError: a line is not UTF-8, not JSON or no object, with its place.
    """
    for line, raw in enumerate(lines, 1):
        try:
            text = raw.decode("utf-8-sig")
            if not text.strip():
                continue
            record = json.loads(text)
            if (
                "\\ud" in text or "\\uD" in text
            ):  # half of a pair, which JSON lets stand alone and no tokenizer takes
                json.dumps(record, ensure_ascii=False).encode("utf-8")
        except UnicodeError as error:
            raise UserError(f"{at(path, line)}: not UTF-8") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise UserError(f"{at(path, line)}: not valid JSON ({reason})") from error
        if not isinstance(record, dict):
            raise UserError(f"{at(path, line)}: expected an object, found {type(record).__name__}")
        yield line, record


def csv_rows(path: str | Path, file: BinaryIO, delimiter: str = ",") -> Iterator[Record]:
    """Read CSV rows by the header's names; all values are text.

    Args:
        path: what messages call the file.
        file: opened in binary mode.
        delimiter: between cells.

    Raises:
        UserError: a line is not UTF-8 or not CSV, or a row has more or fewer cells than the header, with its place.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.DictReader(_utf8(path, text), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            if None in row or None in row.values():
                raise UserError(
                    f"{at(path, rows.line_num)}: the number of cells differs from the header's "
                    f"{len(rows.fieldnames or [])}"
                )
            yield rows.line_num, row
    except csv.Error as error:
        raise UserError(f"{at(path, rows.reader.line_num)}: not valid CSV ({error})") from error


def _utf8(path: str | Path, lines: Iterable[str]) -> Iterator[str]:
    """Lines that were decoded with surrogate escapes, each checked."""
    for line, text in enumerate(lines, 1):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{at(path, line)}: not UTF-8") from error
        yield text
