"""The numbers of a report: which rows fill which place, means and sample deviations, and tables of them."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from corpora.common.blocks import Entry, Table
from corpora.common.errors import UserError
from finetune.methods import METHODS
from finetune.report_read import Row, wording_of
from finetune.results import KEY
from finetune.settings import INITS
from finetune.task import BY_DEV, FIRST

# Titles of the rows, in the table's order; methods of other releases follow by name.
METHOD_NAMES = {name: method.title for name, method in METHODS.items()}
MAIN_SHOTS = 32  # the paper's setting; a task without it is shown at its smallest number of examples
MISSING = "missing"
APART = "↓"  # told apart from the highest mean of its column


@dataclass(frozen=True, order=True)
class Line:
    """A row of the main table: a method, how its prompt starts and the backbone."""

    order: int
    method: str
    start: str
    wording: int  # the task's own first, others as they were run, the choice by dev last
    backbone: str
    label: str
    key: str  # METHOD of summary.json; with start, wording or backbone behind a colon where a method has several


@dataclass(frozen=True)
class Stat:
    """Scores of one line on one task.

    Attributes:
        scores: seed -> score, a fraction of 1.
        rows: seed -> the chosen row.
        filled_from: the method that ran, where another line's run fills this place; else None.
    """

    scores: dict[int, float]
    rows: dict[int, Row]
    filled_from: str | None = None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores.values())

    @property
    def std(self) -> float | None:
        """Sample deviation (ddof 1); None with one seed, where there is none."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None

    def of(self, field: str) -> Stat | None:
        """The same places with another score of the rows (`test_f1`, `test_vocabulary`); None where rows lack it."""
        scores = {seed: float(row[field]) for seed, row in self.rows.items() if row.get(field) is not None}
        return Stat(scores, self.rows, self.filled_from) if scores else None


Places = dict[tuple[Line, str, int], Stat]  # (line, task, shots) -> scores


def _start(row: Row) -> str:
    init = row.get("init")
    return str(init) if init in INITS else ("pretrained" if init else "")


def _order(method: str) -> int:
    names = list(METHOD_NAMES)
    return names.index(method) if method in names else len(names)


LineKey = tuple[str, str, str, str]  # method, start, wording, backbone fingerprint


def _line_key(row: Row, method: str) -> LineKey:
    return method, _start(row), wording_of(row), str(row.get("backbone_fingerprint", ""))


def lines_of(rows: Iterable[Row]) -> dict[LineKey, Line]:
    """The table's lines, labelled as far as they need telling apart."""
    found: dict[LineKey, str] = {}
    for row in rows:
        fingerprint = str(row.get("backbone_fingerprint", ""))
        name = str(row.get("backbone") or fingerprint[:8]).rstrip("/").rsplit("/", 1)[-1]
        for method in (str(row["method"]), *map(str, row.get("fills") or ())):
            found.setdefault(_line_key(row, method), name)
    wordings = [FIRST, *dict.fromkeys(key[2] for key in found if key[2] not in (FIRST, BY_DEV)), BY_DEV]
    lines = {}
    for line_key, name in found.items():
        method, start, wording, fingerprint = line_key
        kin = [other for other in found if other[0] == method]
        tells = []
        if len({other[1] for other in kin}) > 1 and start:
            tells.append(start.replace("_", " "))
        if len({other[2] for other in kin}) > 1:
            tells.append("wording by dev" if wording == BY_DEV else f"wording {wording}".replace("_", " "))
        if len({other[3] for other in kin}) > 1:
            tells.append(name)
        label = METHOD_NAMES.get(method, method) + (f" ({', '.join(tells)})" if tells else "")
        key = ":".join([method, *(tell.replace(" ", "_") for tell in tells)])
        place = wordings.index(wording)
        lines[line_key] = Line(_order(method), method, start, place, fingerprint, label, key)
    return lines


def places_of(rows: Sequence[Row]) -> Places:
    """Put every chosen row in its place, and in the places of the other lines that it fills.

    Raises:
        UserError: two chosen rows of one line, task, number of examples and seed, naming what they differ in.
    """
    lines = lines_of(rows)
    taken: dict[tuple[Line, str, int], dict[int, Row]] = {}
    filled: dict[tuple[Line, str, int], str] = {}
    for by_fill in (False, True):  # what ran itself comes first; a fill never replaces it
        for row in rows:
            if not row.get("chosen"):
                continue
            for method in (row.get("fills") or ()) if by_fill else (row["method"],):
                line = lines[_line_key(row, str(method))]
                place = (line, str(row["task"]), int(row["shots"]))
                if by_fill and place in taken and place not in filled:
                    continue
                seeds = taken.setdefault(place, {})
                if int(row["seed"]) in seeds:
                    _refuse_second(seeds[int(row["seed"])], row, line)
                seeds[int(row["seed"])] = row
                if by_fill:
                    filled[place] = str(row["method"])
    return {
        place: Stat(
            {seed: float(seeds[seed]["test"]) for seed in sorted(seeds)},
            {seed: seeds[seed] for seed in sorted(seeds)},
            filled.get(place),
        )
        for place, seeds in taken.items()
    }


def _refuse_second(first: Row, second: Row, line: Line) -> None:
    differs = [name for name in KEY if first.get(name) != second.get(name)]
    raise UserError(
        f"{first.get('run', 'the run')} and {second.get('run', 'the run')} both hold {line.label} on {first['task']} with "
        f"{first['shots']} examples and seed {first['seed']}, and differ in {', '.join(differs) or 'their results'}; "
        "report them apart"
    )


def main_shots(rows: Iterable[Row]) -> dict[str, int]:
    """Task -> the number of examples that the main table shows: 32 where it was run, else the smallest."""
    shots: dict[str, set[int]] = {}
    for row in rows:
        shots.setdefault(str(row["task"]), set()).add(int(row["shots"]))
    return {task: MAIN_SHOTS if MAIN_SHOTS in some else min(some) for task, some in shots.items()}


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of `summary.json`.

    Args:
        rows: rows of `results.jsonl`.

    Returns:
        `tasks`: TASK -> METHOD -> `scores` (one a seed, in seed order), `mean`, `std` (ddof 1; None with one seed) and, where
        the task has it, `f1` with the same three. `methods`: METHOD -> `mean` and `std`, both averaged over the tasks
        that the method has, and `tasks`, their number.
    """
    shots = main_shots(rows)
    tasks: dict[str, dict[str, Any]] = {task: {} for task in shots}
    methods: dict[str, dict[str, Any]] = {}
    places = places_of(rows)
    for line, task, n in sorted(places):
        if n != shots[task]:
            continue
        stat = places[line, task, n]
        entry = _figures(stat)
        f1 = stat.of("test_f1")
        if f1:
            entry["f1"] = _figures(f1)
        tasks[task][line.key] = entry
    for key in dict.fromkeys(key for entries in tasks.values() for key in entries):
        entries = [found[key] for found in tasks.values() if key in found]
        deviations = [entry["std"] for entry in entries if entry["std"] is not None]
        methods[key] = {
            "mean": statistics.fmean(entry["mean"] for entry in entries),
            "std": statistics.fmean(deviations) if deviations else None,
            "tasks": len(entries),
        }
    return {"tasks": tasks, "methods": methods}


def _figures(stat: Stat) -> dict[str, Any]:
    return {"scores": list(stat.scores.values()), "mean": stat.mean, "std": stat.std}


@dataclass(frozen=True)
class Rates:
    """Learning rates of one line on one task.

    Attributes:
        chosen: rate -> how many seeds chose it.
        dev: rate -> mean dev score over seeds, a fraction of 1; the grid in rising order.
        best: the rate with the highest mean dev score (then the lower mean dev loss, then the smaller rate).
        end: "smallest" or "largest" where `best` is an end of a grid of three rates or more; else None.
    """

    chosen: dict[float, int]
    dev: dict[float, float]
    best: float
    end: str | None


def rates_of(rows: Sequence[Row]) -> dict[tuple[Line, str, int], Rates]:
    """Learning rates by line, task and number of examples."""
    lines = lines_of(rows)
    groups: dict[tuple[Line, str, int], dict[float, list[Row]]] = {}
    for by_fill in (False, True):
        ran = set(groups)
        for row in rows:
            for method in (row.get("fills") or ()) if by_fill else (row["method"],):
                line = lines[_line_key(row, str(method))]
                place = (line, str(row["task"]), int(row["shots"]))
                if not by_fill or place not in ran:
                    groups.setdefault(place, {}).setdefault(float(row["learning_rate"]), []).append(row)
    found = {}
    for place, grid in groups.items():
        # A job under way has finished some rates for more seeds than others: only seeds that have all rates compare them.
        seeds = set.intersection(*({int(row["seed"]) for row in some} for some in grid.values()))
        dev, loss = {}, {}
        for rate in sorted(grid):
            some = [row for row in grid[rate] if int(row["seed"]) in seeds] or grid[rate]
            dev[rate] = statistics.fmean(float(row["dev"]) for row in some)
            loss[rate] = statistics.fmean(float(row.get("dev_loss") or 0.0) for row in some)
        best = min(dev, key=lambda rate: (-dev[rate], loss[rate], rate))
        end = None
        if len(dev) > 2 and best in (min(dev), max(dev)):
            end = "smallest" if best == min(dev) else "largest"
        chosen = {rate: sum(bool(row.get("chosen")) for row in some) for rate, some in sorted(grid.items())}
        found[place] = Rates({rate: n for rate, n in chosen.items() if n}, dev, best, end)
    return found


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.7119 -> "71.2"."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}"


def _entry(stat: Stat | None, n_seeds: int, strong: bool = False, apart: bool = False) -> Entry:
    if stat is None:
        return Entry(MISSING, quiet=True)
    text = f"{percent(stat.mean)} ± {percent(stat.std)}" + (" †" if stat.filled_from else "")
    text += f" {APART}" if apart else ""
    if len(stat.scores) < n_seeds:
        text += f" ({len(stat.scores)} of {n_seeds} seeds)"
    return Entry(text, strong=strong)


def main_table(
    places: Places,
    shots: dict[str, int],
    n_seeds: int,
    field: str = "test",
    apart: Collection[tuple[Line, str, int]] = (),
) -> Table:
    """Methods by tasks, mean and sample deviation in percent, and their average over all tasks.

    Args:
        places: scores by place.
        shots: task -> the number of examples to show.
        n_seeds: how many seeds a whole place has.
        field: `test`, or another score of the rows, for example `test_vocabulary`.
        apart: places that are told apart from the highest mean of their task, marked as such.

    Returns:
        A table; the highest mean of each task is strong, macro F1 stands beside its task, a line that lacks a task has no average.
    """
    lines = sorted({line for line, _, _ in places})
    picked = {
        (line, task): stat if field == "test" else stat.of(field)
        for (line, task, n), stat in places.items()
        if n == shots[task]
    }
    f1 = {place: stat.of("test_f1") for place, stat in picked.items() if stat} if field == "test" else {}
    columns: list[tuple[str, dict[tuple[Line, str], Stat | None]]] = []
    for task in shots:
        columns.append((task, picked))
        if any(f1.get((line, task)) for line in lines):
            columns.append((task, f1))
    best = {
        (task, values is f1): max(
            (stat.mean for (_, name), stat in values.items() if name == task and stat), default=0.0
        )
        for task, values in columns
    }
    body = []
    for line in lines:
        entries = [Entry(line.label)]
        for task, values in columns:
            stat = values.get((line, task))
            strong = stat is not None and stat.mean == best[task, values is f1]
            lower = values is not f1 and (line, task, shots[task]) in apart
            entries.append(_entry(stat, n_seeds, strong, lower))
        if len(shots) > 1:
            entries.append(_average([picked.get((line, task)) for task in shots], n_seeds))
        body.append(tuple(entries))
    head = ["method", *(f"{task} F1" if values is f1 else task for task, values in columns)]
    return Table(tuple(head + ["average"] * (len(shots) > 1)), tuple(body))


def _average(stats: list[Stat | None], n_seeds: int) -> Entry:
    whole = [stat for stat in stats if stat is not None]
    if len(whole) < len(stats):
        return Entry(f"{len(stats) - len(whole)} {MISSING}", quiet=True)
    deviations = [stat.std for stat in whole if stat.std is not None]
    std = statistics.fmean(deviations) if deviations else None
    lacking = " (seeds missing)" if min(len(stat.scores) for stat in whole) < n_seeds else ""
    return Entry(f"{percent(statistics.fmean(stat.mean for stat in whole))} ± {percent(std)}{lacking}")


def in_order(places: Places) -> list[tuple[Line, str, int]]:
    """Places by task (in the order of the rows), number of examples and line."""
    tasks = list(dict.fromkeys(task for _, task, _ in places))
    return sorted(places, key=lambda place: (tasks.index(place[1]), place[2], place[0]))


def seeds_table(places: Places, seeds: Sequence[int]) -> Table:
    """Every chosen row's score: line, task and number of examples by seed, in percent."""
    body = []
    for line, task, n in in_order(places):
        stat = places[line, task, n]
        entries = [Entry(line.label + (" †" if stat.filled_from else "")), Entry(task), Entry(str(n))]
        for seed in seeds:
            score = stat.scores.get(seed)
            entries.append(Entry(MISSING, quiet=True) if score is None else Entry(percent(score)))
        body.append((*entries, Entry(percent(stat.mean), strong=True), Entry(percent(stat.std))))
    head = ("method", "task", "examples", *(f"seed {seed}" for seed in seeds), "mean", "deviation")
    return Table(head, tuple(body))


def rates_tables(rates: dict[tuple[Line, str, int], Rates], shots: dict[str, int]) -> tuple[Table, Table]:
    """(how many seeds chose which rate, mean dev score of every rate of a grid); columns are tasks."""
    shown = {(line, task): found for (line, task, n), found in rates.items() if n == shots[task]}
    lines = sorted({line for line, _ in shown})
    chosen, dev = [], []
    for line in lines:
        entries = [Entry(line.label)]
        for task in shots:
            found = shown.get((line, task))
            if found is None or not found.chosen:
                entries.append(Entry(MISSING, quiet=True))
            else:
                only = len(found.chosen) == 1
                text = ", ".join(
                    f"{rate:g}" if only else f"{rate:g} ×{n}" for rate, n in found.chosen.items()
                )
                entries.append(Entry(text + (" ‡" if found.end else "")))
        chosen.append(tuple(entries))
        grid = sorted({rate for task in shots if (line, task) in shown for rate in shown[line, task].dev})
        for rate in grid if len(grid) > 1 else ():
            entries = [Entry(line.label if rate == grid[0] else ""), Entry(f"{rate:g}")]
            for task in shots:
                found = shown.get((line, task))
                score = found.dev.get(rate) if found else None
                entries.append(Entry(percent(score), strong=found is not None and found.best == rate))
            dev.append(tuple(entries))
    return Table(("method", *shots), tuple(chosen)), Table(("method", "rate", *shots), tuple(dev))
