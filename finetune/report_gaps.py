"""What there were no data for: tasks that runs left out, sets with fewer rows than asked for."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.report_asked import by_settings, load_task, per_label, shots_asked
from finetune.report_read import Row, Run


def left_out(runs: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    """A line for each task that no run had the data of, with what was looked for."""
    there = {str(row["task"]) for row in rows}  # another run may have had the data
    found: dict[str, str] = {}
    for run in runs:
        for task, reason in run.left_out.items():
            found.setdefault(task, reason)
    return [f"{task} was left out: {reason}" for task, reason in found.items() if task not in there]


def fewer_examples(runs: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    """A warning for each task whose set had fewer examples than its run asked for (`allow_fewer`)."""
    found: dict[str, None] = {}
    for run in runs:
        asked, asked_dev = _asked(run)
        for task, wanted in asked.items():
            own = [row for row in run.rows if row["task"] == task]
            train = sorted({int(row["n_train"]) for row in own if row.get("n_train") is not None})
            dev = sorted({int(row["n_dev"]) for row in own if row.get("n_dev") is not None})
            for n in train:
                more = sorted(one for one in wanted if one > n)
                if n not in wanted and more:
                    found[_fewer(task, n, more, "to train on")] = None
            found |= {
                _fewer(task, n, [asked_dev[task]], "to choose by"): None for n in dev if n < asked_dev[task]
            }
    return list(found)


def _asked(run: Run) -> tuple[dict[str, set[int]], dict[str, int]]:
    """Task -> the numbers of training examples that any of a run's settings asks for; task -> those to choose by, 0 where none says."""
    train: dict[str, set[int]] = {}
    dev: dict[str, int] = {}
    for config in (asking.config for asking in by_settings([run])):
        if config.get("shots") is None:
            continue
        for named in map(str, config.get("tasks") or ()):
            task = load_task(named)
            if task is None:
                continue
            each = per_label(config, task) * len(task.verbalizer) if task.many_labels else None
            train.setdefault(task.name, set()).update([each] if each else shots_asked(config))
            own_dev = ((config.get("of_task") or {}).get(task.name) or {}).get("dev_shots")
            dev.setdefault(task.name, int(each or own_dev or config.get("dev_shots") or 0))
    return train, dev


def _fewer(task: str, n: int, asked: Sequence[int], what: str) -> str:
    wanted = " and ".join(map(str, asked))
    return f"{task} has {n} examples {what}, {wanted} were asked for: its set has no more (allow_fewer)"
