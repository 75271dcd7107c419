"""What the runs of a report asked for and did not get: cells without a row, test scores not taken."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from corpora.common.blocks import Code, Entry, Section, Table, Text
from finetune.methods import METHODS
from finetune.report_asked import (
    Asked,
    asked_cells,
    askers,
    by_place,
    by_settings,
    each,
    rates_asked,
    shots_asked,
    task_name,
)
from finetune.report_read import Row, Run, same_choice
from finetune.results import best_first
from finetune.settings import ALL
from finetune.task import FIRST

MISSING_RUN = "runs/missing"  # where a command puts cells that only a part of a run lacks
G = TypeVar("G", bound=Hashable)


def _without_row(cells: Iterable[Asked], rows: Iterable[Row]) -> list[Asked]:
    places = by_place(rows)
    return [cell for cell in cells if not any(map(cell.is_row, places.get((cell.task, cell.method), ())))]


def missing_cells(runs: Sequence[Run], rows: Sequence[Row]) -> list[tuple[Run, list[Asked]]]:
    """Runs under each of their settings, with the cells that these ask for and that no run has; what two ask for stands under the first."""
    listed: set[tuple[Hashable, ...]] = set()
    found = []
    for run in by_settings(runs):
        cells = [cell for cell in _without_row(asked_cells(run, rows), rows) if cell.key not in listed]
        listed |= {cell.key for cell in cells}
        if cells:
            found.append((run, cells))
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
    inits, wordings = each(config.get("init", "normal")), each(config.get("wording", FIRST))
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
        str(run.config_file),
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


def _whole_command(run: Run) -> str:
    return shlex.join(["ppt", "fewshot", str(run.config_file), f"out={run.folder}"])


def missing_section(runs: Sequence[Run], rows: Sequence[Row]) -> tuple[list[Section], list[str]]:
    """The table of what is missing with the commands that run it, and a warning; nothing where all is there."""
    missing = missing_cells(runs, rows)
    body: list[tuple[Entry, ...]] = []
    commands: dict[str, None] = {}
    apart = False
    goes_on: dict[Path, set[tuple[Hashable, ...]]] = {}  # cells of the commands that go on in a run's folder
    for run, cells in missing:
        done = goes_on.setdefault(run.folder, set())
        own = {cell.key for cell in _without_row(asked_cells(run, rows), run.rows)} - done
        alone = own == {cell.key for cell in cells}
        if alone:
            commands[_whole_command(run)] = None
            done |= own
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
            body.append((Entry(str(run.folder)), *map(Entry, texts)))
    lacking = {(c.task, c.method, c.shots, c.seed) for _, cells in missing for c in cells}
    waiting = [
        row
        for row in unscored(rows)
        if (row["task"], row["method"], int(row["shots"]), int(row["seed"])) not in lacking
    ]
    asked_by = askers(runs, rows)
    for row in waiting:
        commands[_whole_command(asked_by[str(row["cell"])])] = None
    places = _grouped(
        ((row["run"], row["task"], row["method"], row["shots"]), row["seed"]) for row in waiting
    )
    for (folder, task, method, n), seeds in places.items():
        texts = (task, method, str(n), ", ".join(map(str, seeds)), "–", "the test score")
        body.append((Entry(folder), *map(Entry, texts)))
    if not body:
        return [], []
    total = sum(len(cells) for _, cells in missing)
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
