"""What the runs of a report asked for and did not get: cells without a row, test scores not taken."""

from __future__ import annotations

import contextlib
import itertools
import shlex
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from corpora.common.blocks import Code, Entry, Section, Table, Text
from corpora.common.errors import UserError
from corpora.common.settings import read_yaml
from finetune.methods import METHODS, rows_for
from finetune.report_read import Row, Run, same_choice, wording_of
from finetune.results import best_first
from finetune.settings import ALL
from finetune.task import FIRST, Task
from finetune.wordings import variants

# Without these a folder's settings do not say which cells it asked for.
NEEDED = ("backbone", "tasks", "methods", "seeds", "shots", "learning_rates", "ft_learning_rates")
MISSING_RUN = "runs/missing"  # where a command puts cells that only a part of a run lacks
G = TypeVar("G", bound=Hashable)


@dataclass(frozen=True)
class Asked:
    """A cell that a run's settings ask for.

    Attributes:
        run: the run's folder.
        named: the task as the settings name it.
        task, method, seed, rate: as in its row.
        shots: training examples of the row: fewer than asked for where the set has no more.
        setting: the number that the setting `shots` gives; None where the task has a number for each label.
        start: how its prompt starts: an initialiser, `pretrained`, or nothing in full tuning.
        wording: as the settings ask for it.
        backbones: fingerprints that its row may have; empty: any.
    """

    run: Path
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


def asked_cells(run: Run, rows: Sequence[Row]) -> list[Asked]:
    """The cells that a run's settings ask for; none where the settings are not there or not whole.

    Args:
        run: the run.
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
                cell = Asked(
                    run.folder, named, name, method, int(seed), rate, n, setting, start, wording, backbones
                )
                cells.setdefault(cell.key, cell)
    return list(cells.values())


def _each(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list) else [value])]


def _variants(
    task: Task | None, method: str, config: Mapping[str, Any], rows: Iterable[Row]
) -> list[tuple[str, str]]:
    """(start, wording) of every line of a method; of wordings that its rows do not have where the task's file is gone, none."""
    inits, wordings = _each(config.get("init", "normal")), _each(config.get("wording", FIRST))
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
    some = own or [row for row in of_kind if row.get("backbone") == named]
    return frozenset(str(row.get("backbone_fingerprint", "")) for row in some)


def _without_row(cells: Iterable[Asked], rows: Iterable[Row]) -> list[Asked]:
    by_place: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_place.setdefault((str(row["task"]), str(row["method"])), []).append(row)
    return [cell for cell in cells if not any(map(cell.is_row, by_place.get((cell.task, cell.method), ())))]


def missing_cells(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, list[Asked]]:
    """Run -> the cells that it asks for and that no run has; what two runs ask for stands under the first."""
    listed: set[tuple[Hashable, ...]] = set()
    found = {}
    for run in runs:
        cells = [cell for cell in _without_row(asked_cells(run, rows), rows) if cell.key not in listed]
        listed |= {cell.key for cell in cells}
        if cells:
            found[str(run.folder)] = cells
    return found


def unscored(rows: Iterable[Row]) -> list[Row]:
    """The best row by dev of every choice, where it has no test score: the run ended before, or another run chose from fewer rates."""
    choices: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        choices.setdefault(same_choice(row), []).append(row)
    found = []
    for some in choices.values():
        best = min(some, key=best_first)
        chosen = [row for row in some if row.get("chosen")]
        if not chosen or best_first(best) < min(map(best_first, chosen)):
            found.append(best)
    return found


def _grouped(items: Iterable[tuple[G, Any]]) -> dict[G, list[Any]]:
    groups: dict[G, list[Any]] = {}
    for key, value in items:
        if value not in groups.setdefault(key, []):
            groups[key].append(value)
    return groups


@dataclass(frozen=True)
class Block:
    """Missing cells that one command can name: tasks x methods x seeds x rates."""

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    setting: int | None
    seeds: tuple[int, ...]
    rates: tuple[float, ...] | None  # None: the whole grid of each method
    cells: int
    start: str | None = None  # of prompts that are not pre-trained, where the run has several
    wording: str | None = None  # where the run has several


def _apart(cell: Asked, config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """A cell's start and wording as far as the run has several."""
    inits, wordings = _each(config.get("init", "normal")), _each(config.get("wording", FIRST))
    start = cell.start if len(inits) > 1 and METHODS[cell.method].init == "random" else None
    return start, cell.wording if len(wordings) > 1 else None


def blocks_of(cells: Sequence[Asked], config: Mapping[str, Any]) -> list[Block]:
    """Put missing cells together, seeds first, then tasks, then methods."""
    rates = _grouped(((c.named, c.method, c.setting, c.seed, _apart(c, config)), c.rate) for c in cells)
    seeds = _grouped(
        (
            (named, method, setting, None if some == rates_asked(config, method) else tuple(some), apart),
            seed,
        )
        for (named, method, setting, seed, apart), some in rates.items()
    )
    tasks = _grouped(
        ((method, setting, some, tuple(seed), apart), named)
        for (named, method, setting, some, apart), seed in seeds.items()
    )
    methods = _grouped(
        ((tuple(named), setting, some, seed, apart), method)
        for (method, setting, some, seed, apart), named in tasks.items()
    )
    blocks = []
    for (named, setting, some, seed, apart), group in methods.items():
        rates_each = sum(len(some) if some else len(rates_asked(config, method)) for method in group)
        number = len(named) * len(seed) * rates_each
        blocks.append(Block(named, tuple(group), setting, seed, some, number, *apart))
    return blocks


def _listed(values: Iterable[Any], shown: Callable[[Any], str] = str) -> str:
    return "[" + ", ".join(map(shown, values)) + "]"


def block_command(block: Block, run: Run) -> str:
    """The command that runs a block's cells and nothing else, into a folder of its own."""
    words = [
        "ppt",
        "fewshot",
        str(run.folder / "config.yaml"),
        f"tasks={_listed(block.tasks)}",
        f"methods={_listed(block.methods)}",
        f"seeds={_listed(block.seeds)}",
    ]
    if block.setting is not None and len(shots_asked(run.config)) > 1:
        words.append(f"shots={block.setting}")
    words += [f"init={block.start}"] if block.start else []
    words += [f"wording={block.wording}"] if block.wording else []
    if block.rates is not None:
        grid = _listed(block.rates, lambda rate: f"{rate!r}")
        words.append("learning_rates_of={" + ", ".join(f"{method}: {grid}" for method in block.methods) + "}")
    return shlex.join([*words, f"out={MISSING_RUN}"])


def _with_variant(method: str, block: Block) -> str:
    tells = [tell for tell in (block.start, block.wording and f"wording {block.wording}") if tell]
    return f"{method} ({', '.join(tells)})" if tells else method


def _whole_command(folder: str) -> str:
    return shlex.join(["ppt", "fewshot", str(Path(folder) / "config.yaml"), f"out={folder}"])


def missing_section(runs: Sequence[Run], rows: Sequence[Row]) -> tuple[list[Section], list[str]]:
    """The table of what is missing with the commands that run it, and a warning; nothing where all is there."""
    missing = missing_cells(runs, rows)
    by_folder = {str(run.folder): run for run in runs}
    body: list[tuple[Entry, ...]] = []
    commands: dict[str, None] = {}
    apart = False
    for folder, cells in missing.items():
        run = by_folder[folder]
        own = {cell.key for cell in _without_row(asked_cells(run, rows), run.rows)}
        alone = own == {cell.key for cell in cells}
        if alone:
            commands[_whole_command(folder)] = None
        for block in blocks_of(cells, run.config):
            if not alone:
                commands[block_command(block, run)] = None
                apart = True
            first = next(c for c in cells if c.named in block.tasks and c.setting == block.setting)
            texts = (
                ", ".join(map(task_name, block.tasks)),
                ", ".join(_with_variant(method, block) for method in block.methods),
                ALL
                if run.config["shots"] == ALL
                else str(block.setting or f"{first.shots} (a number a label)"),
                ", ".join(map(str, block.seeds)),
                ", ".join(f"{rate:g}" for rate in block.rates) if block.rates else "all",
                f"{block.cells} cells" if block.cells > 1 else "1 cell",
            )
            body.append((Entry(folder), *map(Entry, texts)))
    lacking = {(c.task, c.method, c.shots, c.seed) for cells in missing.values() for c in cells}
    waiting = [
        row
        for row in unscored(rows)
        if (row["task"], row["method"], int(row["shots"]), int(row["seed"])) not in lacking
    ]
    places = _grouped(
        ((row["run"], row["task"], row["method"], row["shots"]), row["seed"]) for row in waiting
    )
    for (folder, task, method, n), seeds in places.items():
        texts = (task, method, str(n), ", ".join(map(str, seeds)), "–", "the test score")
        body.append((Entry(folder), *map(Entry, texts)))
        commands[_whole_command(folder)] = None
    if not body:
        return [], []
    total = sum(map(len, missing.values()))
    parts = []
    if total:
        parts.append(f"{total} of the cells that the runs ask for {'has' if total == 1 else 'have'} no row")
    if waiting:
        noun = "choice of a rate has" if len(waiting) == 1 else "choices of a rate have"
        parts.append(f"{len(waiting)} {noun} no test score")
    said = " and ".join(parts)
    text = f"{said[0].upper()}{said[1:]}. The commands run these and nothing else"
    text += f"; report `{MISSING_RUN}` together with the runs above afterwards." if apart else "."
    head = ("run", "task", "method", "examples", "seeds", "rates", "missing")
    blocks = (Text(text), Table(head, tuple(body), words=True), Code("\n".join(commands), "text"))
    return [Section("Missing cells", blocks)], [f"{said}; see Missing cells"]
