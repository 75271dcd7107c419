"""Writes wordings into a copy of a task file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from corpora.common.files import write_text_atomic
from corpora.common.settings import read_yaml
from finetune.task import Task

if TYPE_CHECKING:
    from finetune.word_search import Found


def write_wordings(source: Path, out: Path, found: Found) -> int:
    """Copy a task file, with the label words of a search as wordings behind those that it has.

    Args:
        source: the task file.
        out: where the copy goes; under whatever file name it keeps the task's name.
        found: what the search found; words that the file has already are not written again.
    """
    values = read_yaml(source)
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
