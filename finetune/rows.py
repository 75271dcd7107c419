"""A record of a file or of the hub as a labelled row; each fault is named with its place and what mends it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpora.common.errors import UserError, at, nearest
from corpora.tokenizer import LETTERS
from finetune.task import HubSource, Source, Task

Place = tuple[str | Path, int | None, Any]  # file, line, record


class RowFault(UserError):
    """A row that cannot be used.

    Attributes:
        kind: `missing_field`, `wrong_field` or `unknown_label`.
        same: equal in faults that the same change mends.
    """

    def __init__(self, message: str, kind: str = "wrong_field", same: object = None) -> None:
        super().__init__(message)
        self.kind, self.same = kind, same


Refuse = Callable[[UserError], None]


def stop(fault: UserError) -> None:
    """Raise the first fault that is met."""
    raise fault


@dataclass(frozen=True)
class LabelledRow:
    """One example: its texts by field, its own options where the labels are those, its label's index."""

    fields: Mapping[str, str]
    options: tuple[str, ...]
    label: int

    @property
    def key(self) -> tuple[str, ...]:
        """What makes two rows duplicates: all text, white space aside; not the label."""
        return tuple(" ".join(text.split()) for text in (*self.fields.values(), *self.options))

    @property
    def answer(self) -> int | str:
        """The right option's text where a row has its own, else its label."""
        return self.options[self.label] if self.options else self.label


Rows = list[LabelledRow]


def label_text(value: Any) -> str | None:
    """A label as a file has it, without white space around it; None for JSON's null, which no text is."""
    return None if value is None else str(value).strip()


def labelled(
    task: Task,
    source: Source,
    rows: Iterable[Place],
    counts: dict[str, int],
    numbering: tuple[str, ...],
    refuse: Refuse,
) -> Iterator[LabelledRow]:
    """Records as rows.

    Args:
        task: the task.
        source: where its columns are.
        rows: records with their places.
        counts: `unlabelled` is counted up.
        numbering: what label numbers mean by the data's own labels.json.
        refuse: called with the fault of a row, which is left out then.
    """
    names = task.field_names()
    unlabelled = {label_text(value) for value in source.unlabelled}
    for path, line, record in rows:
        try:
            if label_text(_value(record, source.label, "label", source, at(path, line))) in unlabelled:
                counts["unlabelled"] += 1
                continue
            row = _row(task, source, record, numbering, names, at(path, line))
        except UserError as error:
            refuse(error)
            continue
        yield row


def _row(
    task: Task,
    source: Source,
    record: Mapping[str, Any],
    numbering: tuple[str, ...],
    names: tuple[str, ...],
    place: str,
) -> LabelledRow:
    fields = {
        name: _text(record, source.fields.get(name, name), f"fields: {{{name}: COLUMN}}", source, place)
        for name in names
    }
    value = record[source.label]
    options = _options(task, source, record, place) if task.own_options else ()
    if task.own_options:
        label = _own_label(value, options, source.first_option)
        first, last = source.first_option, source.first_option + len(options) - 1
        expected = f"a number from {first} to {last}, a letter from A to {LETTERS[len(options) - 1]} or an option's text"
        if not first and str(value) == str(len(options)):
            expected += " (where the data count from 1, say first_option: 1 beside options)"
    else:
        label = task.label_index(value, source, numbering)
        expected = (
            f"one of {', '.join(task.labels)} (add it to labels and verbalizer, or to unlabelled, "
            "which leaves such rows out)"
        )
    if label is None:
        raise RowFault(
            f'{place}: field "{source.label}" is {_shown(value)}; expected {expected}',
            "unknown_label",
            (source.label, str(value)),
        )
    return LabelledRow(fields, options, label)


def _shown(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)[:60]


def _value(record: Mapping[str, Any], column: str, key: str, source: Source, place: str) -> Any:
    if column in record:
        return record[column]
    key = key if ":" in key else f"{key}: COLUMN"
    part = "hub" if isinstance(source, HubSource) else "local"
    found = ", ".join(map(str, record)) or "nothing"
    close = nearest(column, map(str, record))
    raise RowFault(
        f'{place}: field "{column}" is missing; found {found}{close if close.endswith("?") else ""} '
        f"(the task file says which column it is: {part}: {{{key}}})",
        "missing_field",
        column,
    )


def _text(record: Mapping[str, Any], column: str, key: str, source: Source, place: str) -> str:
    value = _value(record, column, key, source, place)
    if not isinstance(value, str):
        raise RowFault(f'{place}: field "{column}" is {_shown(value)}; expected text', same=column)
    return value


def _options(task: Task, source: Source, record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    if isinstance(source.options, tuple):
        value = [
            _text(record, column, "options: [COLUMN, COLUMN]", source, place) for column in source.options
        ]
        while len(value) > 2 and not value[-1].strip():
            value.pop()
        return tuple(value)
    value = _value(record, source.options, "options", source, place)
    good = isinstance(value, list) and all(isinstance(option, str) for option in value)
    if not good or not 2 <= len(value) <= task.max_options:
        found = f"{len(value)} entries" if good else _shown(value)
        more = " (max_options)" if good and len(value) > task.max_options else ""
        raise RowFault(
            f'{place}: field "{source.options}" is {found}; expected a list of 2 to {task.max_options} texts{more}',
            same=(source.options, good),
        )
    return tuple(value)


def _own_label(value: Any, options: tuple[str, ...], first: int) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value - first if 0 <= value - first < len(options) else None
    if value is None:  # JSON's null, not an option that is called None
        return None
    text = str(value).strip()
    if options.count(text) == 1:
        return options.index(text)
    if len(text) == 1 and text in LETTERS[: len(options)]:
        return LETTERS.index(text)
    return int(text) - first if text.isdigit() and 0 <= int(text) - first < len(options) else None
