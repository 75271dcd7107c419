"""The cells that a run's settings ask for, those of earlier commands among them, and which settings asked for a row."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from corpora.common.errors import UserError
from corpora.common.settings import read_yaml
from finetune.methods import METHODS, rows_for
from finetune.report_read import Row, Run, wording_of
from finetune.settings import ALL
from finetune.task import FIRST, Task
from finetune.wordings import variants

# Without these a folder's settings do not say which cells it asked for.
NEEDED = ("backbone", "tasks", "methods", "seeds", "shots", "learning_rates", "ft_learning_rates")


@dataclass(frozen=True)
class Asked:
    """A cell that a run's settings ask for.

    Attributes:
        named: the task as the settings name it.
        task, method, seed, rate: as in its row.
        shots: training examples of the row: fewer than asked for where the set has no more.
        setting: the number that the setting `shots` gives; None where the task has a number for each label.
        start: how its prompt starts: an initialiser, `pretrained`, or nothing in full tuning.
        wording: as the settings ask for it.
        backbones: fingerprints that its row may have; empty: any.
    """

    named: str
    task: str
    method: str
    seed: int
    rate: float
    shots: int
    setting: int | None
    start: str
    wording: str
    backbones: frozenset[str]

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What it is, whoever asks."""
        return (
            self.task,
            self.method,
            self.seed,
            self.rate,
            self.shots,
            self.start,
            self.wording,
            self.backbones,
        )

    def is_row(self, row: Row) -> bool:
        """Whether a row of its task and method is this cell's."""
        init = row.get("init")
        start = init if self.start and init == self.start else "pretrained" if init else ""
        return (
            int(row["seed"]) == self.seed
            and float(row["learning_rate"]) == self.rate
            and int(row["shots"]) == self.shots
            and start == self.start
            and wording_of(row) == self.wording
            and (not self.backbones or str(row.get("backbone_fingerprint", "")) in self.backbones)
        )


def load_task(named: str) -> Task | None:
    """A task that a run's settings name; None where its file is not on this machine or has changed its form."""
    try:
        return Task.load(named)
    except UserError:
        return None


def task_name(named: str) -> str:
    """The name of a task that a run's settings name by itself or by its file; the file may be gone."""
    if task := load_task(named):
        return task.name
    with contextlib.suppress(UserError):
        return str(read_yaml(Path(named)).get("name", Path(named).stem))
    return Path(named).stem


def rates_asked(config: Mapping[str, Any], method: str) -> list[float]:
    """The grid of a method, smallest first."""
    plain = "ft_learning_rates" if METHODS[method].trains == "backbone" else "learning_rates"
    return sorted(float(rate) for rate in (config.get("learning_rates_of") or {}).get(method, config[plain]))


def shots_asked(config: Mapping[str, Any]) -> list[int]:
    """The numbers of training examples, smallest first; none where all there are were asked for."""
    shots = config["shots"]
    if shots == ALL:
        return []
    return sorted(set(shots)) if isinstance(shots, list) else [int(shots)]


def per_label(config: Mapping[str, Any], task: Task) -> int:
    return int(task.shots_per_label or config.get("shots_per_label") or 8)


def _in_rows(asked: int, all_asked: Sequence[int], found: set[int], allow_fewer: bool) -> int:
    """The number that rows have for an asked one: all that the set has, where that is fewer."""
    if asked not in found and allow_fewer:
        return max((n for n in found if n < asked and n not in all_asked), default=asked)
    return asked


def by_settings(runs: Iterable[Run]) -> list[Run]:
    """Every run once under each of its settings: those of its last command, then those of earlier ones."""
    return [
        replace(run, config=config, config_name=name)
        for run in runs
        for name, config in ((run.config_name, run.config), *run.earlier.items())
    ]


def asked_cells(run: Run, rows: Sequence[Row]) -> list[Asked]:
    """The cells that a run's settings ask for; none where the settings are not there or not whole.

    Args:
        run: the run, under one of its settings.
        rows: rows of all runs: they tell how many examples a set has, and which backbone a name stands for.
    """
    config = run.config
    if any(config.get(name) is None for name in NEEDED) or not set(config["methods"]) <= set(METHODS):
        return []
    cells: dict[tuple[Hashable, ...], Asked] = {}
    for named in map(str, config["tasks"]):
        task, name = load_task(named), task_name(named)
        if name in run.left_out:
            continue
        there = [row for row in rows if row["task"] == name]
        found = {int(row["shots"]) for row in there}
        fewer = bool(config.get("allow_fewer"))
        if config["shots"] == ALL:  # rows tell how many that is
            shots: list[tuple[int, int | None]] = [(max(found, default=0), None)]
        elif task and task.many_labels:
            whole = per_label(config, task) * len(task.verbalizer)
            shots = [(_in_rows(whole, [whole], found, fewer), None)]
        else:
            every = shots_asked(config)
            shots = [(_in_rows(n, every, found, fewer), n) for n in every]
        for method in _methods(task, config["methods"], there):
            spec = METHODS[method]
            backbones = _backbones(run, rows, spec.backbone)
            every_cell = itertools.product(
                shots, config["seeds"], rates_asked(config, method), _variants(task, method, config, there)
            )
            for (n, setting), seed, rate, (init, wording) in every_cell:
                start = {"random": init, "pretrained": "pretrained"}.get(spec.init, "")
                cell = Asked(named, name, method, int(seed), rate, n, setting, start, wording, backbones)
                cells.setdefault(cell.key, cell)
    return list(cells.values())


def each(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list) else [value])]


def _variants(
    task: Task | None, method: str, config: Mapping[str, Any], rows: Iterable[Row]
) -> list[tuple[str, str]]:
    """(start, wording) of every line of a method; of wordings that its rows do not have where the task's file is gone, none."""
    inits, wordings = each(config.get("init", "normal")), each(config.get("wording", FIRST))
    if task is not None:
        with contextlib.suppress(UserError):  # the file lost a wording or a pattern since
            (row,) = rows_for(task, (method,))
            return variants(task, row, inits, wordings)
    there = {wording_of(row) for row in rows if row["method"] == method}
    return [(init, wording) for wording in wordings if wording in there for init in inits]


def _methods(task: Task | None, methods: Sequence[str], rows: Iterable[Row]) -> list[str]:
    """What is run for a task: a method that another one's run fills is not."""
    if task is not None:
        try:
            return [row.method for row in rows_for(task, tuple(methods))]
        except UserError:  # the file lost a pattern since
            pass
    filled = {method for row in rows for method in row.get("fills") or ()}
    return [method for method in methods if method not in filled]


def _backbones(run: Run, rows: Sequence[Row], kind: str) -> frozenset[str]:
    """Fingerprints of a run's main or LM-adapted backbone, as far as rows tell them."""
    of_kind = [row for row in rows if METHODS.get(str(row["method"]), METHODS["ppt"]).backbone == kind]
    own = [row for row in of_kind if row["run"] == str(run.folder)]
    named = run.config.get("lm_backbone" if kind == "lm" else "backbone")
    by_name = [row for row in of_kind if row.get("backbone") == named]
    some = [row for row in own if row.get("backbone") == named] or own or by_name
    return frozenset(str(row.get("backbone_fingerprint", "")) for row in some)


def by_place(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by task and method."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((str(row["task"]), str(row["method"])), []).append(row)
    return found


def askers(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, Run]:
    """Cell -> the run that has its row, under the latest settings that ask for it, or under its last where none do."""
    found: dict[str, Run] = {}
    for run in runs:
        own = [row for row in rows if row["run"] == str(run.folder)]
        places = by_place(own)
        for asking in by_settings([run]) if run.earlier else ():
            for cell in asked_cells(asking, rows):
                for row in places.get((cell.task, cell.method), ()):
                    if str(row["cell"]) not in found and cell.is_row(row):
                        found[str(row["cell"])] = asking
        for row in own:
            found.setdefault(str(row["cell"]), run)
    return found
