"""Labelled reviews for the pseudo-labeller; unlike raw text, every line has to be right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from corpora.common.errors import UserError, at
from corpora.common.records import csv_rows, json_lines
from corpora.sources import find_sources, open_source, reading

FIVE_WORDS = ("terrible", "bad", "maybe", "good", "great")  # one to five stars
DEFAULT_WORDS = {2: ("bad", "good"), 3: ("bad", "maybe", "good"), 5: FIVE_WORDS}


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
    with reading(source), open_source(source) as file:
        read = json_lines if source.reader == "jsonl" else csv_rows
        for line, row in read(source.name, file):
            for field in ("text", "label"):
                if field not in row:
                    raise UserError(f'{at(source.name, line)}: no field "{field}"')
            text, label = row["text"], row["label"]
            if not isinstance(text, str) or not text.strip():
                raise UserError(f'{at(source.name, line)}: field "text" is {text!r}; expected text')
            if isinstance(label, bool) or str(label) not in labels:
                raise UserError(
                    f'{at(source.name, line)}: field "label" is {label!r}; expected one of {", ".join(labels)}'
                )
            found.append(Review(" ".join(text.split()), labels[str(label)]))
    if not found:
        raise UserError(f"{path}: no reviews in this file")
    return found
