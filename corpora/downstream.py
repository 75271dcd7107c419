"""Texts of downstream sets, read to be found elsewhere: every string of every row, whatever the fields are called."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from corpora.common.errors import MachineError, UserError
from corpora.common.hub import hub_reachable
from corpora.common.records import csv_rows, json_lines
from corpora.documents import HUB, Source, find_sources, open_source, reading


class DownstreamText(NamedTuple):
    """One text of a downstream set."""

    set: str  # the file's name, with its folder's where two are alike; or `hub:namespace/name`
    row: int  # line, or row from 1
    field: str
    text: str


def find_sets(sets: Sequence[str]) -> list[tuple[str, Source]]:
    """The files and hub data sets that are meant, each with the name that reports give it.

    Args:
        sets: files, folders, patterns or `hub:namespace/name[:config][:split]`; JSON, JSONL, CSV, TSV, Parquet
            or plain text (a row a line), compressed or not.

    Raises:
        UserError: a set is missing, or is of an unknown kind.
    """
    sources = find_sources(sets)
    return [(source.short, source) for source in sources]


def read_set(name: str, source: Source) -> Iterator[DownstreamText]:
    """Read every text of a set.

    Yields:
        The strings of each row, those inside lists and objects too.

    Raises:
        UserError: the set is damaged; a line cannot be read, with its place.
        MachineError: the set cannot be read.
    """
    with reading(source):
        for row, value in _rows(source):
            for field, text in _strings(value, ""):
                yield DownstreamText(name, row, field, text)


def _rows(source: Source) -> Iterator[tuple[int, Any]]:
    if source.reader == "hub":
        yield from _hub_rows(source)
        return
    with open_source(source) as file:
        if source.reader == "csv":
            yield from csv_rows(source.name, file)
        elif source.reader == "parquet":
            yield from _parquet_rows(source, file)
        elif source.reader == "txt":
            for line, raw in enumerate(file, 1):
                try:
                    yield line, {"text": raw.decode("utf-8-sig")}
                except UnicodeDecodeError as error:
                    raise UserError(f"{source.name} line {line}: not UTF-8") from error
        elif Path(source.name.removesuffix(source.compression)).suffix.lower() == ".json":
            yield from _json_rows(source, file)
        else:
            yield from json_lines(source.name, file)


def _json_rows(source: Source, file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """One JSON value, a list of which is rows; or JSON lines under the wrong name."""
    data = file.read()
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        yield from json_lines(source.name, io.BytesIO(data))
        return
    yield from enumerate(value if isinstance(value, list) else [value], 1)


def _parquet_rows(source: Source, file: BinaryIO) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole: Any = io.BytesIO(file.read()) if source.compression else file
    try:
        rows: Iterable[Any] = (
            row for batch in pq.ParquetFile(whole).iter_batches() for row in batch.to_pylist()
        )
        yield from enumerate(rows, 1)
    except pa.ArrowInvalid as error:
        raise UserError(f"{source.name}: not a Parquet file ({str(error).splitlines()[0]})") from error


def _hub_rows(source: Source) -> Iterator[tuple[int, Any]]:
    """A data set of the hub, all its splits unless one is named, as a stream."""
    import datasets

    name, config, split, *rest = [*source.name.removeprefix(HUB).split(":"), "", ""]
    if any(rest):
        raise UserError(f'"{source.name}" is no data set; expected hub:namespace/name[:config][:split]')
    if not Path(name).is_dir() and not hub_reachable():
        raise MachineError(f"{source.name}: the hub cannot be reached")
    try:
        loaded = datasets.load_dataset(name, config or None, split=split or None, streaming=True)
    except ConnectionError as error:
        raise MachineError(
            f"{source.name}: the hub was not reached ({str(error).splitlines()[0]})"
        ) from error
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(
            f"{source.name}: the data set was not found ({str(error).splitlines()[0]})"
        ) from error
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        raise UserError(f"{source.name}: {str(error).splitlines()[0]}") from error
    streams = [loaded] if split else [loaded[key] for key in loaded]
    yield from enumerate((row for stream in streams for row in stream), 1)


def _strings(value: Any, field: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(inner, f"{field}.{key}" if field else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, field)
