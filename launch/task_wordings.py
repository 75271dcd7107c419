"""Writes wordings into a copy of a task file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from corpora.common.files import write_text_atomic
from corpora.common.settings import read_yaml
from finetune.datasets import find_folder
from finetune.task import Task

if TYPE_CHECKING:
    from finetune.word_search import Found


def write_wordings(source: Path, out: Path, found: Found, data: str | None = None) -> int:
    """Copy a task file, with the label words of a search as wordings behind those that it has.

    Data that lie beside the file are found from the copy too, wherever it goes.

    Args:
        source: the task file.
        out: where the copy goes; under whatever file name it keeps the task's name.
        found: what the search found; words that the file has already are not written again.
        data: the folder that was given for the data.
    """
    values = read_yaml(source)
    task = Task.load(source)
    beside = find_folder(task, None)
    if (
        beside is not None
        and beside == find_folder(task, data)
        and out.parent.resolve() != source.parent.resolve()
    ):
        folder = os.path.relpath(beside.resolve(), out.parent.resolve())
        values["local"] = {**(values.get("local") or {}), "folder": folder}
    wordings = list(values.get("wordings") or [])
    there = {tuple(values.get("verbalizer") or ()), *(tuple(one.get("verbalizer") or ()) for one in wordings)}
    names = {one.get("name") for one in wordings}
    free = (
        f"found{number}"
        for number in range(1, len(names) + len(found.best) + 1)
        if f"found{number}" not in names
    )
    new = [
        {
            "name": next(free),
            "verbalizer": list(one.words),
            "search": found.search(one).model_dump(mode="json"),
        }
        for one in found.best
        if one.words not in there
    ]
    text = yaml.safe_dump(
        {"name": found.task.name, **values, "wordings": [*wordings, *new]},
        sort_keys=False,
        allow_unicode=True,
    )
    write_text_atomic(out, f"# {source.name} with wordings that `ppt task words` found.\n{text}")
    Task.load(str(out) if "/" in str(out) else f"./{out}")  # says what is wrong with it before a run does
    return len(new)
