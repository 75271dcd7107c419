"""Which of a run's tasks have data: with `skip_missing` the others are left out, and the run and its report say so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from corpora.common.errors import UserError, nearest
from corpora.common.progress import say
from finetune.datasets import MissingData, UnreachableData, find_folder
from finetune.task import shipped_tasks

if TYPE_CHECKING:  # it brings torch, which `ppt task check` does without
    from finetune.workshop import Workshop


def present_tasks(workshop: Workshop) -> list[str]:
    """The tasks whose data are found; those left out stand in `workshop.left_out` with the reason.

    Raises:
        UserError: a setting names a task that there is not; without `skip_missing`, a task has no data; or with it, none has.
        UnreachableData: without `skip_missing`, the hub that a task's data are on cannot be reached.
    """
    if workshop.present is not None:
        return workshop.present
    settings, found = workshop.settings, []
    _check_names(workshop, "of_task", settings.of_task)
    if isinstance(settings.data, dict):
        _check_names(workshop, "data", settings.data)
    for name in settings.tasks:
        task = workshop.task(name)
        try:
            workshop.data(name)
            found.append(name)
        except (MissingData, UnreachableData) as error:
            if not settings.skip_missing:
                raise
            workshop.left_out[task.name] = _reason(workshop, name, error)
            say(f"warning: task {task.name} is left out: {workshop.left_out[task.name]}")
    if not found:
        raise UserError(
            f"none of the tasks {', '.join(workshop.left_out)} has data; give the folder "
            "that holds them: data=FOLDER (FOLDER/TASK/train.jsonl ...)"
        )
    workshop.present = found
    return found


def _reason(workshop: Workshop, name: str, error: MissingData | UnreachableData) -> str:
    """What was looked for: local files where a folder was given, and what the hub answered."""
    task, parts = workshop.task(name), []
    try:
        find_folder(task, workshop.settings.data)
    except MissingData as local:
        parts.append(f"no file {local.looked}")
    if task.hub is None:
        parts.append("the task file names no set on the hub")
    elif isinstance(error, UnreachableData):
        parts.append(f"the hub ({task.hub.path}) cannot be reached")
    else:
        parts.append(str(error))
    return "; ".join(parts)


def _check_names(workshop: Workshop, setting: str, names: Iterable[str]) -> None:
    """Refuse names in a setting that are no task's: neither of this run nor of those that ship with the project."""
    known = {*shipped_tasks(), *(workshop.task(name).name for name in workshop.settings.tasks)}
    for name in names:
        if name not in known:
            raise UserError(f'{setting} names the task "{name}"{nearest(name, known)}')
