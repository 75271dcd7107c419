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

from corpora.common.errors import MachineError, UserError
from corpora.common.files import read_json
from corpora.common.hub import hub_reachable
from corpora.common.progress import say
from corpora.common.records import csv_rows, json_lines
from finetune.rows import LabelledRow, Place, Refuse, Rows, labelled, stop
from finetune.task import HubSource, LocalSource, Task

ENDINGS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz")
TEST_NAMES = ("test", "validation", "dev")


@dataclass
class TaskData:
    """The rows to draw from and the rows to be scored on."""

    train: list[LabelledRow]
    test: list[LabelledRow]
    fingerprint: str  # SHA-256 over both, in order
    counts: dict[str, int] = field(default_factory=dict)  # rows left out of `train`, by reason
    first: dict[str, LabelledRow] = field(default_factory=dict)  # the first of them, likewise


class MissingData(UserError):
    """No data of a task where they were looked for; `looked` names the files."""

    def __init__(self, message: str, looked: str = "") -> None:
        super().__init__(message)
        self.looked = looked


class UnreachableData(MachineError):
    """The data of a task are on the hub alone, and the hub cannot be reached."""


def load_task(
    task: Task,
    data: str | Path | Mapping[str, str] | None,
    refuse: Refuse = stop,
    *,
    or_hub: bool = False,
) -> TaskData:
    """Read a task's training pool and test set.

    Args:
        task: the task.
        data: a folder that holds the sets (by folder name, or by language and folder name, or this set's files
            themselves), or such a folder for each task; None: files beside a task file that was given by path,
            else the hub.
        refuse: called with each fault of the data, with its file and line; rows that have one are left out.
        or_hub: ask the hub, too, where `data` does not hold the task.

    Returns:
        Rows in the order of the files. Test rows are never left out. From `train` go rows that repeat an
        earlier one's text and rows that also stand in the test set; both are counted (`finetune.task_check` says it).

    Raises:
        MissingData: there are none where they were looked for; another UserError: by default the first fault in them.
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
        train, test, counts = _read_local(task, task.local, folder, refuse)
    elif task.hub is not None:
        train, test, counts = _read_hub(task, task.hub, refuse)
    else:
        raise MissingData(
            f"task {task.name} names no hub data set; say where its files are with the setting data"
        )
    for name, rows in (("training", train), ("test", test)):
        if not rows:
            refuse(UserError(f"task {task.name} has no {name} rows{f' in {folder}' if folder else ''}"))
    unique, first = _pool(train, test, counts)
    if train and not unique:
        refuse(
            UserError(
                f"task {task.name}: every training row also stands in the test set; "
                "give it a training set of its own (local: train)"
            )
        )
    return TaskData(unique, test, fingerprint(unique, test), counts, first)


def _pool(train: Rows, test: Rows, counts: dict[str, int]) -> tuple[Rows, dict[str, LabelledRow]]:
    """The rows to draw from; those left out are counted in `counts`, and the first for each reason is kept."""
    in_test = {row.key for row in test}
    pool: dict[tuple[str, ...], LabelledRow] = {}
    first: dict[str, LabelledRow] = {}
    counts |= {"also_in_test": 0, "duplicates": 0, "other_label": 0}
    for row in train:
        reasons = []
        if row.key in in_test:
            reasons.append("also_in_test")
        elif row.key in pool:
            reasons.append("duplicates")
            if pool[row.key].answer != row.answer:
                reasons.append("other_label")
        else:
            pool[row.key] = row
        for reason in reasons:
            counts[reason] += 1
            first.setdefault(reason, row)
    return list(pool.values()), first


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
    # A folder without this task leaves it what lies beside its file; a folder that is not there, or is this task's own, is a mistake.
    beside = None if isinstance(data, Mapping) or not Path(data).is_dir() else _beside(task)
    if beside is not None:
        return beside
    looked = ", ".join(str(place / _with_ending(task.local.train[0])) for place in places)
    looked += " (also .csv, .tsv, .gz)"
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


def _with_ending(name: str) -> str:
    return name if name.endswith(ENDINGS) else f"{name}{ENDINGS[0]}"


def _find(folder: Path, name: str) -> Path | None:
    for path in [folder / name] if name.endswith(ENDINGS) else [folder / (name + end) for end in ENDINGS]:
        if path.is_file():
            return path
    return None


def _files(task: Task, folder: Path, stems: Iterable[str]) -> list[Path]:
    found = []
    for stem in stems:
        path = _find(folder, stem)
        if path is None:
            raise UserError(
                f"task {task.name}: {folder / _with_ending(stem)} does not exist (nor as .csv, .tsv or .gz); "
                "say under local which files are the train and test set"
            )
        found.append(path)
    return found


def _read_local(
    task: Task, source: LocalSource, folder: Path, refuse: Refuse
) -> tuple[Rows, Rows, dict[str, int]]:
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
        list(labelled(task, source, records(paths, refuse), counts, numbering, refuse))
        for paths in (_files(task, folder, source.train), _files(task, folder, stems))
    )
    return train, test, counts


def _read_hub(task: Task, source: HubSource, refuse: Refuse) -> tuple[Rows, Rows, dict[str, int]]:
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
        rows = ((f"{place} row {number}", None, record) for number, record in enumerate(table))
        parts.append(list(labelled(task, source, rows, counts, (), refuse)))
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


def records(paths: Iterable[Path], refuse: Refuse = stop) -> Iterator[Place]:
    """Every row of files of any kind; a file is read up to its first line that is none."""
    for path in paths:
        opener: Any = gzip.open if path.suffix == ".gz" else open
        read: Any = json_lines if ".jsonl" in path.suffixes else csv_rows
        try:
            with opener(path, "rb") as file:
                for line, record in read(path, file):
                    yield path, line, record
        except (gzip.BadGzipFile, EOFError, zlib.error):
            refuse(UserError(f"{path}: damaged gzip file"))
        except UserError as error:
            refuse(error)
