"""What every method costs: trained numbers, stored bytes, memory, seconds to tune and to score."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from corpora.common.blocks import Entry, Table
from finetune.report_read import Row, same_choice
from finetune.report_tables import Line, Places, in_order

ABSENT = "–"
COST_FIELDS = (
    "method", "label", "task", "shots", "cells", "trained", "stored_bytes", "peak_bytes", "seconds_of_a_cell",
    "seconds_of_the_grid", "test_seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Costs of one line on one task; None where the rows (of an earlier release) do not say.

    Attributes:
        cells: how many cells were tuned for it, all seeds and rates.
        trained: numbers that train.
        stored_bytes: what has to be kept for the task besides the shared backbone.
        peak_bytes: the largest memory of the process while a cell of it was tuned; of a prompt's, since its bank began, with all
            that was tuned in it.
        cell: seconds to tune one cell, the mean over all.
        grid: seconds to tune every rate of a grid, the mean over seeds: what one chosen result takes.
        test: seconds to score the test set once, the mean over seeds.
    """

    cells: int
    trained: int | None
    stored_bytes: int | None
    peak_bytes: int | None
    cell: float | None
    grid: float | None
    test: float | None


def _numbers(rows: Iterable[Row], field: str) -> list[float]:
    return [float(row[field]) for row in rows if isinstance(row.get(field), int | float)]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _largest(rows: Iterable[Row], field: str) -> int | None:
    return max((int(value) for value in _numbers(rows, field)), default=None)


def costs_of(places: Places, rows: Sequence[Row]) -> dict[tuple[Line, str, int], Cost]:
    """Costs by place; a place that another line's run fills has none of its own."""
    tuned: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        tuned.setdefault(same_choice(row), []).append(row)
    found = {}
    for place in in_order(places):
        stat = places[place]
        if stat.filled_from:
            continue
        chosen = list(stat.rows.values())
        grids = [tuned[same_choice(row)] for row in chosen]
        every = [row for grid in grids for row in grid]
        sums = [_numbers(grid, "seconds") for grid in grids]
        found[place] = Cost(
            cells=len(every),
            trained=_largest(every, "trained"),
            stored_bytes=_largest(every, "stored_bytes"),
            peak_bytes=_largest(every, "peak_bytes"),
            cell=_mean(_numbers(every, "seconds")),
            grid=_mean([sum(some) for some, grid in zip(sums, grids, strict=True) if len(some) == len(grid)]),
            test=_mean(_numbers(chosen, "test_seconds")),
        )
    return found


def size(n: float | None) -> str:
    """Bytes for people, in powers of 1,000: 163840 -> "164 kB"."""
    if n is None:
        return ABSENT
    for unit in ("B", "kB", "MB", "GB"):
        if n < 999.5:
            return f"{n:.0f} {unit}" if n >= 99.5 or unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def duration(seconds: float | None) -> str:
    """Seconds with about three figures: 0.0213 -> "0.021", 83.2 -> "83.2", 1520 -> "1,520"."""
    if seconds is None:
        return ABSENT
    digits = 3 if seconds < 0.995 else 1 if seconds < 99.95 else 0
    return f"{seconds:,.{digits}f}"


def _range(values: Iterable[float | None], shown: Callable[[float | None], str]) -> Entry:
    """What the tasks have in common, or the smallest and the largest."""
    there = [value for value in values if value is not None]
    if not there:
        return Entry(ABSENT, quiet=True)
    ends = shown(min(there)), shown(max(there))
    return Entry(ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}")


def costs_table(costs: dict[tuple[Line, str, int], Cost], shots: dict[str, int]) -> Table:
    """A line a method: over the tasks of the main table the largest memory, the range of the rest and mean seconds."""
    body = []
    for line in sorted({line for line, _, _ in costs}):
        own = [cost for (other, task, n), cost in costs.items() if other == line and shots.get(task) == n]
        if not own:
            continue
        memory = max((cost.peak_bytes for cost in own if cost.peak_bytes is not None), default=None)
        entries = [
            Entry(line.label),
            _range((cost.trained for cost in own), lambda n: f"{n:,.0f}"),
            _range((cost.stored_bytes for cost in own), size),
            _range([memory], size),
        ]
        for field in ("cell", "grid", "test"):
            values = [getattr(cost, field) for cost in own if getattr(cost, field) is not None]
            entries.append(_range([_mean(values)], duration))
        body.append(tuple(entries))
    head = (
        "method",
        "trained numbers",
        "stored a task",
        "peak memory",
        "one cell, s",
        "one grid, s",
        "scoring, s",
    )
    return Table(head, tuple(body))


def cost_records(costs: dict[tuple[Line, str, int], Cost]) -> list[dict[str, Any]]:
    """The costs for programs, a record a place; keys are `COST_FIELDS`."""
    return [
        dict(
            zip(
                COST_FIELDS,
                (
                    line.key, line.label, task, n, cost.cells, cost.trained, cost.stored_bytes, cost.peak_bytes,
                    cost.cell, cost.grid, cost.test,
                ),
                strict=True,
            )
        )
        for (line, task, n), cost in costs.items()
    ]  # fmt: skip
