"""Labelled sets: from local JSONL or CSV files or from the hub, into rows of one shape, each fault named with its place."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpora.common.errors import MachineError, UserError, at
from corpora.common.files import read_json
from corpora.common.hub import hub_reachable
from corpora.common.progress import say
from corpora.common.records import csv_rows, json_lines
from corpora.tokenizer import LETTERS
from finetune.task import HubSource, LocalSource, Source, Task

ENDINGS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz")
TEST_NAMES = ("test", "validation", "dev")


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


@dataclass
class TaskData:
    """The rows to draw from and the rows to be scored on."""

    train: list[LabelledRow]
    test: list[LabelledRow]
    fingerprint: str  # SHA-256 over both, in order
    counts: dict[str, int] = field(default_factory=dict)  # rows left out of `train`, by reason


class MissingData(UserError):
    """No data of a task where they were looked for; `looked` names the files."""

    def __init__(self, message: str, looked: str = "") -> None:
        super().__init__(message)
        self.looked = looked


class UnreachableData(MachineError):
    """The data of a task are on the hub alone, and the hub cannot be reached."""


def load_task(task: Task, data: str | Path | Mapping[str, str] | None, *, or_hub: bool = False) -> TaskData:
    """Read a task's training pool and test set.

    Args:
        task: the task.
        data: a folder that holds the sets (by folder name, or by language and folder name, or this set's files
            themselves), or such a folder for each task; None: files beside a task file that was given by path,
            else the hub.
        or_hub: ask the hub, too, where `data` does not hold the task.

    Returns:
        Rows in the order of the files. Test rows are never left out. From `train` go rows that repeat an
        earlier one's text and rows that also stand in the test set; both are counted and said.

    Raises:
        MissingData: there are none where they were looked for; another UserError: a fault in them, with its file
            and line.
        UnreachableData: the hub cannot be reached.
    """
    try:
        folder = find_folder(task, data)
    except MissingData:
        if not or_hub or task.hub is None:
            raise
        say(f"{task.name}: not in {data}; asking the hub for {task.hub.path}")
        folder = None
    if folder is not None:
        train, test, counts = _read_local(task, task.local, folder)
    elif task.hub is not None:
        train, test, counts = _read_hub(task, task.hub)
    else:
        raise MissingData(
            f"task {task.name} names no hub data set; say where its files are with the setting data"
        )
    for name, rows in (("training", train), ("test", test)):
        if not rows:
            raise UserError(f"task {task.name} has no {name} rows{f' in {folder}' if folder else ''}")
    in_test = {row.key for row in test}
    pool = [row for row in train if row.key not in in_test]
    first: dict[tuple[str, ...], LabelledRow] = {}
    for row in pool:
        first.setdefault(row.key, row)
    unique = list(first.values())
    counts["also_in_test"] = len(train) - len(pool)
    counts["duplicates"] = len(pool) - len(unique)
    if counts["also_in_test"] or counts["duplicates"]:
        say(
            f"{task.name}: {counts['also_in_test']} training rows also stand in the test set and "
            f"{counts['duplicates']} repeat another; neither is drawn from"
        )
    if not unique:
        raise UserError(f"task {task.name}: every training row also stands in the test set")
    return TaskData(unique, test, fingerprint(unique, test), counts)


def fingerprint(train: Iterable[LabelledRow], test: Iterable[LabelledRow]) -> str:
    """SHA-256 over the rows of both sets in order."""
    digest = hashlib.sha256()
    for name, rows in (("train", train), ("test", test)):
        digest.update(name.encode())
        for row in rows:
            text = json.dumps([dict(row.fields), row.options, row.label], ensure_ascii=False)
            digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def find_folder(task: Task, data: str | Path | Mapping[str, str] | None) -> Path | None:
    """The folder that holds a task's files, or None where the hub is meant.

    Raises:
        MissingData: a folder was given and the files are not there, naming where they were looked for.
    """
    name = task.local.folder or task.name
    if isinstance(data, Mapping):
        if task.name not in data:
            return _beside(task)
        places = [Path(data[task.name])]
    elif data is not None:
        root = Path(data)
        places = [root / name, root / task.language / name, root]
    else:
        return _beside(task)
    for place in places:
        if _find(place, task.local.train[0]) is not None:
            return place
    beside = _beside(task)
    if beside is not None:
        return beside
    looked = ", ".join(str(place / f"{task.local.train[0]}.jsonl") for place in places) + " (also .csv, .gz)"
    hub = " (unset data to load it from the hub)" if task.hub else ""
    raise MissingData(f"no data for task {task.name}: looked for {looked}{hub}", looked)


def _beside(task: Task) -> Path | None:
    """Data that lies beside a task file which was given by path."""
    if task.folder is None:
        return None
    for place in (task.folder / (task.local.folder or task.name), task.folder):
        if _find(place, task.local.train[0]) is not None:
            return place
    return None


def _find(folder: Path, stem: str) -> Path | None:
    for ending in ENDINGS:
        if (folder / (stem + ending)).is_file():
            return folder / (stem + ending)
    return None


def _files(task: Task, folder: Path, stems: Iterable[str]) -> list[Path]:
    found = []
    for stem in stems:
        path = _find(folder, stem)
        if path is None:
            raise UserError(f"task {task.name}: {folder / stem}.jsonl does not exist (nor as .csv or .gz)")
        found.append(path)
    return found


Rows = list[LabelledRow]


def _read_local(task: Task, source: LocalSource, folder: Path) -> tuple[Rows, Rows, dict[str, int]]:
    numbering: tuple[str, ...] = ()
    if (folder / "labels.json").exists() and not task.own_options:
        names = read_json(folder / "labels.json")
        unknown = [name for name in names if name not in task.labels]
        if unknown:
            raise UserError(
                f'{folder / "labels.json"} names the label "{unknown[0]}"; '
                f"task {task.name} has {', '.join(task.labels)}"
            )
        numbering = tuple(names)
    stems = source.test or [name for name in TEST_NAMES if _find(folder, name)][:1] or TEST_NAMES[:1]
    counts = {"unlabelled": 0}
    train, test = (
        list(_labelled(task, source, _records(paths), counts, numbering))
        for paths in (_files(task, folder, source.train), _files(task, folder, stems))
    )
    _say_unlabelled(task, counts)
    return train, test, counts


def _read_hub(task: Task, source: HubSource) -> tuple[Rows, Rows, dict[str, int]]:
    import datasets

    parts = []
    counts = {"unlabelled": 0}
    offline = not Path(source.path).is_dir() and not hub_reachable()
    for split in (source.train, source.test):
        try:
            with _offline(offline):
                table = datasets.load_dataset(source.path, source.config, split=split)
        except Exception as error:  # whatever the library raises; its own text says what was wrong
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            if offline:
                raise UnreachableData(
                    f"task {task.name}: the hub cannot be reached and this machine keeps no copy of {source.path} "
                    f"({first}); give local files with the setting data"
                ) from error
            unverified = "" if source.verified else "; the name in the task file was never checked"
            raise MissingData(
                f"task {task.name}: the hub data set {source.path} (split {split}) cannot be loaded: "
                f"{first}{unverified}; or give local files with the setting data"
            ) from error
        place = f"{source.path} {split}"
        records = ((f"{place} row {number}", None, record) for number, record in enumerate(table))
        parts.append(list(_labelled(task, source, records, counts, ())))
    _say_unlabelled(task, counts)
    return parts[0], parts[1], counts


@contextlib.contextmanager
def _offline(yes: bool) -> Iterator[None]:
    """Without a network `datasets` takes its cached copy at once, instead of asking five times for each file."""
    import datasets
    import huggingface_hub

    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    if yes:
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before


def _say_unlabelled(task: Task, counts: Mapping[str, int]) -> None:
    if counts["unlabelled"]:
        say(f"{task.name}: {counts['unlabelled']} rows without a label are left out")


Place = tuple[str | Path, int | None, Any]  # file, line, record


def _records(paths: Iterable[Path]) -> Iterator[Place]:
    for path in paths:
        opener: Any = gzip.open if path.suffix == ".gz" else open
        read: Any = csv_rows if ".csv" in path.suffixes else json_lines
        try:
            with opener(path, "rb") as file:
                for line, record in read(path, file):
                    yield path, line, record
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path}: damaged gzip file") from error


def _labelled(
    task: Task, source: Source, records: Iterable[Place], counts: dict[str, int], numbering: tuple[str, ...]
) -> Iterator[LabelledRow]:
    names = task.field_names()
    unlabelled = {str(value) for value in source.unlabelled}
    for path, line, record in records:
        place = at(path, line)
        fields = {name: _text(record, source.fields.get(name, name), place) for name in names}
        if source.label not in record:
            raise _missing(record, source.label, place)
        value = record[source.label]
        if str(value) in unlabelled:
            counts["unlabelled"] += 1
            continue
        if task.own_options:
            options = _options(task, source, record, place)
            label = _own_label(value, options)
            expected = f"a number from 0 to {len(options) - 1}, a letter from A to {LETTERS[len(options) - 1]} or an option's text"
        else:
            options = ()
            label = task.label_index(value, source, numbering)
            expected = f"one of {', '.join(task.labels)}"
        if label is None:
            shown = f'"{value}"' if isinstance(value, str) else json.dumps(value, default=str)
            raise UserError(f'{place}: field "{source.label}" is {shown}; expected {expected}')
        yield LabelledRow(fields, options, label)


def _missing(record: Mapping[str, Any], column: str, place: str) -> UserError:
    return UserError(
        f'{place}: field "{column}" is missing; found {", ".join(map(str, record)) or "nothing"}'
    )


def _text(record: Mapping[str, Any], column: str, place: str) -> str:
    if column not in record:
        raise _missing(record, column, place)
    value = record[column]
    if not isinstance(value, str):
        raise UserError(f'{place}: field "{column}" is {json.dumps(value, default=str)}; expected text')
    return value


def _options(task: Task, source: Source, record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    if isinstance(source.options, tuple):
        return tuple(_text(record, column, place) for column in source.options)
    if source.options not in record:
        raise _missing(record, source.options, place)
    value = record[source.options]
    good = isinstance(value, list) and all(isinstance(option, str) for option in value)
    if not good or not 2 <= len(value) <= task.max_options:
        found = f"{len(value)} entries" if good else json.dumps(value, default=str, ensure_ascii=False)[:60]
        raise UserError(
            f'{place}: field "{source.options}" is {found}; expected a list of 2 to {task.max_options} texts'
        )
    return tuple(value)


def _own_label(value: Any, options: tuple[str, ...]) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value < len(options) else None
    text = str(value).strip()
    if options.count(text) == 1:
        return options.index(text)
    if len(text) == 1 and text in LETTERS[: len(options)]:
        return LETTERS.index(text)
    return int(text) if text.isdigit() and int(text) < len(options) else None
