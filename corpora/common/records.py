"""Records of JSON-lines and CSV files in which every line has to be right: a fault is an error with its place.

Raw text, of which bad records are counted instead, is read by `corpora.documents`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from corpora.common.errors import UserError, at

if TYPE_CHECKING:
    from _csv import Reader

Record = tuple[int, dict[str, Any]]  # line, from 1, and its fields
MAX_CELL = 1 << 26  # characters; Python's own limit of 128 KiB is shorter than a long document


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


def csv_rows(path: str | Path, file: BinaryIO) -> Iterator[Record]:
    """Read rows of CSV, or of TSV where the path says so, by the header's names; all values are text.

    Args:
        path: of the file.
        file: opened in binary mode.

    Raises:
        UserError: a line is not UTF-8 or not CSV, two columns have one name, or a row has more or fewer cells than the
            header, with its place.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    rows = table_cells(path, _utf8(path, text), strict=True)
    try:
        header = next((cells for cells in rows if cells), [])
        for name in header:
            if name and header.count(name) > 1:
                raise UserError(f'{at(path, rows.line_num)}: two columns have the name "{name}"; rename one')
        for cells in rows:
            if not cells:
                continue
            if len(cells) != len(header):
                tabs = "; in TSV a tab or a line break ends a cell, quoted or not" if is_tsv(path) else ""
                raise UserError(
                    f"{at(path, rows.line_num)}: the number of cells differs from the header's {len(header)}{tabs}"
                )
            yield rows.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{at(path, rows.line_num)}: not valid CSV ({error})") from error


def table_cells(path: str | Path, lines: Iterable[str], strict: bool = False) -> Reader:
    """Python's reader of the lines of a CSV file, or of a TSV file, in which quotes are characters as any other.

    Sets of sentences (GLUE) hold single quotes in TSV: as CSV, such a cell would swallow the rows up to the next one.
    """
    csv.field_size_limit(MAX_CELL)
    if is_tsv(path):
        return csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(lines, strict=strict)


def is_tsv(path: str | Path) -> bool:
    """Whether a table's cells have tabs between them: by its name, packed or not."""
    return ".tsv" in map(str.lower, Path(path).suffixes)


def _utf8(path: str | Path, lines: Iterable[str]) -> Iterator[str]:
    """Lines that were decoded with surrogate escapes, each checked."""
    for line, text in enumerate(lines, 1):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{at(path, line)}: not UTF-8") from error
        yield text
