"""Raw text of any source as a stream of documents; bad records are counted with their place, not fatal."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from corpora.common.errors import MachineError, UserError, nearest
from corpora.common.files import hash_file
from corpora.common.hub import hub_reachable
from corpora.common.progress import say

COMPRESSIONS = (".gz", ".xz", ".zst", ".bz2")
HUB = "hub:"
PLACES_KEPT = 5  # places remembered for each reason; the count goes on
PARQUET_ROWS = 1024  # rows read at a time


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


@dataclass(frozen=True, slots=True)
class Source:
    """One file or hub data set, in the order in which it is read."""

    name: str  # path, or `hub:...`
    reader: str  # key of READERS
    compression: str = ""  # one of COMPRESSIONS, or none

    def identity(self) -> dict[str, Any]:
        """Name without folder, size in bytes and SHA-256: what a manifest cites."""
        if self.reader == "hub":
            return {"name": HUB + "/".join(self.name.removeprefix(HUB).split("/")[-2:])}
        path = Path(self.name)
        try:
            return {"name": path.name, "bytes": path.stat().st_size, "sha256": hash_file(path)}
        except OSError as error:
            raise _unreadable(self.name, error) from error


class Bad(NamedTuple):
    """A record that cannot be used."""

    reason: str


Record = tuple[int, str | Bad]  # line or row from 1, and its text or why it has none


def find_sources(sources: Sequence[str | Path]) -> list[Source]:
    """List what is read: sources in the order given, the files of a folder or pattern sorted by name.

    Args:
        sources: files, folders (searched through), patterns such as `news/*.jsonl.gz`, or
            `hub:namespace/name[:config][:split]`.

    Raises:
        UserError: nothing is there, or a file's kind is unknown.
    """
    found: list[Source] = []
    for given in sources:
        name, path = str(given), Path(given)
        if name.startswith(HUB):
            found.append(Source(name, "hub"))
        elif path.is_file():
            source = _source(path)
            if source is None:
                raise UserError(f"{name}: unknown kind of file; expected a name ending in {_kinds()}")
            found.append(source)
        elif path.is_dir() or has_magic(name):
            paths = path.rglob("*") if path.is_dir() else map(Path, glob(name, recursive=True))
            files = sorted(p for p in paths if p.is_file() and not p.name.startswith("."))
            kept = [source for p in files if (source := _source(p)) is not None]
            if not kept:
                raise UserError(f"{name}: no text there; expected files ending in {_kinds()}")
            if len(kept) < len(files):
                say(
                    f"{name}: {len(kept)} files of text are read, {len(files) - len(kept)} of other kinds are not"
                )
            found += kept
        else:
            raise UserError(f"{name} does not exist")
    if not found:
        raise UserError("no text given; expected files, folders, patterns or hub:namespace/name")
    return found


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
        UserError: a source is missing or damaged; a column is missing; under `strict`, any record dropped.
        MachineError: a source cannot be read.
    """
    counts = counts if counts is not None else Counts()
    listed = [s for s in sources if isinstance(s, Source)]
    if len(listed) < len(sources):
        listed = find_sources([s for s in sources if not isinstance(s, Source)])
    for source in listed:
        unit = "row" if source.reader in ("parquet", "hub") else "line"
        with reading(source):
            for number, found in READERS[source.reader](source, text_field):
                text = _checked(found)
                if isinstance(text, str):
                    counts.documents += 1
                    yield Document(source.name, number, text)
                elif strict:
                    raise not_strict(f"{source.name} {unit} {number}", text.reason)
                else:
                    counts.drop(text.reason, f"{Path(source.name).name} {unit} {number}")


def not_strict(place: str, reason: str) -> UserError:
    """What `strict` says of a record that cannot be used."""
    return UserError(f"{place}: {reason}; --strict allows no such record")


@contextlib.contextmanager
def reading(source: Source) -> Iterator[None]:
    """Turn damaged data and what the operating system refuses into one line that names the source."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _damaged(source, error) from error
    except OSError as error:
        if source.compression and error.errno is None:  # bz2 and Arrow say so of bad data
            raise _damaged(source, error) from error
        raise _unreadable(source.name, error) from error


def _kinds() -> str:
    return f"{', '.join(SUFFIXES)}, each alone or with {', '.join(COMPRESSIONS)}"


def _source(path: Path) -> Source | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    if not suffixes or suffixes[-1] not in SUFFIXES:
        return None
    return Source(str(path), SUFFIXES[suffixes[-1]], compression)


def _unreadable(name: str, error: OSError) -> MachineError:
    return MachineError(f"cannot read {name}: {(error.strerror or str(error)).lower()}")


def _damaged(source: Source, error: Exception) -> UserError:
    reason = str(error) or type(error).__name__
    return UserError(f"{source.name}: damaged {source.compression[1:]} data ({reason}); copy the file again")


def _checked(found: str | Bad) -> str | Bad:
    """The text itself, if it is text that can be stored."""
    if isinstance(found, Bad):
        return found
    if not found.isascii():
        try:
            found.encode("utf-8")
        except UnicodeEncodeError:
            return Bad("not valid Unicode")
    return found if found.strip() else Bad("empty document")


def open_source(source: Source) -> BinaryIO:
    """Open a file, unpacked as its name says."""
    path = source.name
    if source.compression == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if source.compression == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    if source.compression == ".bz2":
        return cast(BinaryIO, bz2.open(path, "rb"))
    if source.compression == ".zst":
        import pyarrow as pa

        # Unlike the reader of the package zstandard, Arrow's says when the file was cut short.
        return io.BufferedReader(pa.input_stream(path, compression="zstd"), 1 << 17)
    return open(path, "rb")


def _read_txt(source: Source, text_field: str) -> Iterator[Record]:
    """Documents stand between blank lines. A line that is not UTF-8 spoils its document, not the file."""
    start, lines, bad = 1, list[str](), False
    number = 0
    with open_source(source) as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                if lines or bad:
                    yield start, Bad("not UTF-8") if bad else "\n".join(lines)
                lines, bad = [], False
                continue
            if not lines and not bad:
                start = number
            try:
                lines.append(raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n"))
            except UnicodeDecodeError:
                start, bad = number, True
    if lines or bad or not number:
        yield start, Bad("not UTF-8") if bad else "\n".join(lines)


def _read_jsonl(source: Source, text_field: str) -> Iterator[Record]:
    with open_source(source) as file:
        for number, raw in enumerate(file, 1):
            if raw.isspace():
                continue
            yield number, _json_text(raw, text_field)


def _json_text(raw: bytes, text_field: str) -> str | Bad:
    try:
        record = json.loads(raw.decode("utf-8-sig"))
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


def _column(name: str, columns: Sequence[str], text_field: str) -> None:
    if text_field not in columns:
        raise UserError(f'{name}: no column "{text_field}"{nearest(text_field, columns)}')


def _read_csv(source: Source, text_field: str) -> Iterator[Record]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # documents are longer than the default of 128 KiB
    delimiter = "\t" if ".tsv" in source.name.lower() else ","
    with io.TextIOWrapper(
        open_source(source), encoding="utf-8-sig", errors="surrogateescape", newline=""
    ) as text:
        rows = csv.reader(text, delimiter=delimiter)
        header = next(rows, [])
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
        except pa.ArrowInvalid as error:
            raise UserError(f"{source.name}: not a Parquet file ({str(error).splitlines()[0]})") from error


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
    for row, record in enumerate(stream, 1):
        value = record.get(text_field)
        yield row, value if isinstance(value, str) else Bad(f'field "{text_field}" is no string')


READERS: dict[str, Callable[[Source, str], Iterator[Record]]] = {
    "txt": _read_txt,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "hub": _read_hub,
}
SUFFIXES = {
    ".txt": "txt",
    ".text": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
