"""Raw text of any source as a stream of documents; bad records are counted with their place, not fatal.

A record is a line of JSONL, a row of a table, or what stands between blank lines of plain text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpora.common.errors import MachineError, UserError, nearest
from corpora.common.hub import hub_reachable
from corpora.common.records import table_cells
from corpora.lines import PARSERS, Bad, Lines, Record
from corpora.sources import HUB, Damaged, Source, find_sources, open_source, reading

PLACES_KEPT = 5  # places remembered for each reason; the count goes on
PARQUET_ROWS = 1024  # rows read at a time
EMPTY = "empty file"


@dataclass(frozen=True, slots=True)
class Document:
    """One document.

    Attributes:
        source: the file, or the hub data set, that it comes from.
        line: where it starts there, from 1 (the row, in Parquet and hub data sets).
        text: its text; lines are paragraphs.
    """

    source: str
    line: int
    text: str


@dataclass
class Counts:
    """What the reader met: good documents, and dropped records by reason with their first places."""

    documents: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, place: str) -> None:
        """Count one record that cannot be used."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        places = self.places.setdefault(reason, [])
        if len(places) < PLACES_KEPT:
            places.append(place)

    def lines(self) -> list[str]:
        """One readable line for each reason: how many records and where the first ones stand."""
        return [
            f"{self.dropped[reason]} {'record' if self.dropped[reason] == 1 else 'records'} dropped: {reason} "
            f"({', '.join(self.places[reason])}{', ...' if self.dropped[reason] > len(self.places[reason]) else ''})"
            for reason in sorted(self.dropped)
        ]


def read_documents(
    sources: Sequence[str | Path] | Sequence[Source],
    strict: bool = False,
    text_field: str = "text",
    counts: Counts | None = None,
) -> Iterator[Document]:
    """Read documents one after the other.

    Args:
        sources: as `find_sources` takes or gives them.
        strict: whether a bad record or an empty document is an error.
        text_field: the field or column that holds the text (all but plain text).
        counts: filled while reading.

    Yields:
        Documents that hold text, in the order of the sources.

    Raises:
        UserError: a source or a column is missing; under `strict`, any record dropped.
        MachineError: a source cannot be read.
    """
    counts = counts if counts is not None else Counts()
    listed = [s for s in sources if isinstance(s, Source)]
    if len(listed) < len(sources):
        listed = find_sources([s for s in sources if not isinstance(s, Source)])
    for source in listed:
        for number, text in read_records(source, text_field):
            if isinstance(text, str):
                counts.documents += 1
                yield Document(source.name, number, text)
            elif strict:
                raise not_strict(f"{source.name} {source.unit} {number}", text.reason)
            else:
                counts.drop(text.reason, f"{source.short} {source.unit} {number}")


def read_records(source: Source, text_field: str) -> Iterator[Record]:
    """All records of a source; where its data are damaged, the last one says so."""
    number = 0
    try:
        with reading(source):
            for number, found in READERS[source.reader](source, text_field):
                yield number, checked(found)
    except Damaged as error:
        yield number + 1, Bad(error.reason)


def not_strict(place: str, reason: str) -> UserError:
    """What `strict` says of a record that cannot be used."""
    return UserError(f"{place}: {reason}; --strict allows no such record")


def checked(found: str | Bad) -> str | Bad:
    """The text itself, if it is text that can be stored."""
    if isinstance(found, Bad):
        return found
    if not found.isascii():
        try:
            found.encode("utf-8")
        except UnicodeEncodeError:
            return Bad("not valid Unicode")
    if "\0" in found:  # no text has it, and libraries in C take it for the end
        return Bad("NUL character")
    return Bad("empty document") if not found or found.isspace() else found


def _column(name: str, columns: Sequence[str], text_field: str) -> None:
    if text_field not in columns:
        raise UserError(f'{name}: no column "{text_field}"{nearest(text_field, columns)}')


def _read_lines(source: Source, text_field: str) -> Iterator[Record]:
    lines = Lines()
    with open_source(source) as file:
        yield from PARSERS[source.reader](lines.read(file), text_field)
    if not lines.count:
        yield 1, Bad(EMPTY)


def _read_csv(source: Source, text_field: str) -> Iterator[Record]:
    with io.TextIOWrapper(
        open_source(source), encoding="utf-8-sig", errors="surrogateescape", newline=""
    ) as text:
        rows = table_cells(source.name, text)
        try:
            header = next(rows, [])
        except csv.Error as error:
            yield 1, Bad(f"not valid CSV ({error})")
            return
        if not header:
            yield 1, Bad(EMPTY)
            return
        _column(source.name, header, text_field)
        index = header.index(text_field)
        while True:
            first = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield first, Bad(f"not valid CSV ({error})")
                continue
            if not row:
                continue
            if len(row) != len(header):
                yield first, Bad(f"{len(row)} columns, expected {len(header)}")
            else:
                yield first, row[index]


def _read_parquet(source: Source, text_field: str) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_source(source) as file:
        # Parquet is read from its end; an outer compression has to be undone first.
        whole: Any = io.BytesIO(file.read()) if source.compression else file
        try:
            table = pq.ParquetFile(whole)
            _column(source.name, table.schema_arrow.names, text_field)
            row = 0
            for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield row, value if isinstance(value, str) else Bad(f'field "{text_field}" is no string')
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError) as error:
            raise Damaged(source, f"not a Parquet file ({str(error).splitlines()[0]})") from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise Damaged(source, f"not a whole Parquet file ({str(error).splitlines()[0]})") from error


def _read_hub(source: Source, text_field: str) -> Iterator[Record]:
    """A hub data set as a stream: nothing is downloaded whole."""
    import datasets

    name, config, split, *rest = [*source.name.removeprefix(HUB).split(":"), "", ""]
    if rest and any(rest):
        raise UserError(f'"{source.name}" is no data set; expected hub:namespace/name[:config][:split]')
    if not Path(name).is_dir() and not hub_reachable():
        raise MachineError(f"{source.name}: the hub cannot be reached")
    try:
        stream = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        columns = stream.column_names
    except ConnectionError as error:
        raise MachineError(
            f"{source.name}: the hub was not reached ({str(error).splitlines()[0]})"
        ) from error
    except datasets.exceptions.DatasetNotFoundError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{source.name}: the data set was not found ({reason})") from error
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{source.name}: {reason}") from error
    if columns is not None:
        _column(source.name, columns, text_field)
    try:
        for row, record in enumerate(stream, 1):
            value = record.get(text_field)
            yield row, value if isinstance(value, str) else Bad(f'field "{text_field}" is no string')
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:  # Arrow's are ValueErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Damaged(source, f"a record that cannot be read ({reason})") from error


READERS: dict[str, Callable[[Source, str], Iterator[Record]]] = {
    "txt": _read_lines,
    "jsonl": _read_lines,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "hub": _read_hub,
}
