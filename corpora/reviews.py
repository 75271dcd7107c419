"""Labelled reviews for the pseudo-labeller; unlike raw text, every line has to be right."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from corpora.common.errors import UserError, at
from corpora.documents import find_sources, open_source, reading


class Review(NamedTuple):
    """A text and its class, 0 the lowest."""

    text: str
    label: int


def read_reviews(path: str | Path, words: Sequence[str]) -> list[Review]:
    """Read reviews from JSONL or CSV, plain or compressed.

    Args:
        path: a file with the fields `text` and `label`.
        words: a word a class; a label is a class's index or its word.

    Raises:
        UserError: the file is missing; a line is not valid, lacks a field or has an unknown label: with its place.
    """
    (source,) = find_sources([path])[:1]
    if source.reader not in ("jsonl", "csv"):
        raise UserError(f"{path}: expected reviews as JSONL or CSV with the fields text and label")
    labels = {str(index): index for index in range(len(words))} | {w: i for i, w in enumerate(words)}
    found = []
    with (
        reading(source),
        io.TextIOWrapper(
            open_source(source), encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as file,
    ):
        rows = _json_rows(source.name, file) if source.reader == "jsonl" else _csv_rows(source.name, file)
        for line, row in rows:
            for field in ("text", "label"):
                if field not in row:
                    raise UserError(f'{at(source.name, line)}: no field "{field}"')
            text, label = row["text"], row["label"]
            if not isinstance(text, str) or not text.strip():
                raise UserError(f'{at(source.name, line)}: field "text" is {text!r}; expected text')
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise UserError(f"{at(source.name, line)}: not UTF-8") from error
            if isinstance(label, bool) or str(label) not in labels:
                raise UserError(
                    f'{at(source.name, line)}: field "label" is {label!r}; expected one of {", ".join(labels)}'
                )
            found.append(Review(" ".join(text.split()), labels[str(label)]))
    if not found:
        raise UserError(f"{path}: no reviews in this file")
    return found


def _json_rows(name: str, file: io.TextIOWrapper) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, raw in enumerate(file, 1):
        if raw.isspace():
            continue
        try:
            row = json.loads(raw)
        except json.JSONDecodeError as error:
            raise UserError(f"{at(name, line)}: not valid JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise UserError(f"{at(name, line)}: a JSON {type(row).__name__}, expected an object")
        yield line, row


def _csv_rows(name: str, file: io.TextIOWrapper) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.DictReader(file, delimiter="\t" if ".tsv" in name.lower() else ",")
    for row in rows:
        if None in row or None in row.values():
            raise UserError(f"{at(name, rows.line_num)}: the row has not as many columns as the header")
        yield rows.line_num, row
