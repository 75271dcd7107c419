"""What a report is made from: run folders, their rows, and the check that they can stand in one table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpora.common.errors import UserError, at
from corpora.common.files import read_json
from corpora.common.settings import read_yaml
from finetune.results import best_first, protocol_parts
from finetune.settings import CONFIG, EARLIER, INITS
from finetune.task import BY_DEV, FIRST

Row = dict[str, Any]  # one line of results.jsonl; `run` is added: the folder that it was read from

REQUIRED = ("cell", "task", "method", "shots", "seed", "learning_rate", "dev")
MAX_NAMED = 3  # cells named in a warning about many


@dataclass(frozen=True)
class Run:
    """A run folder as the report sees it.

    Attributes:
        folder: where it lies, as the user wrote it.
        rows: rows of `results.jsonl`, the last one of each cell.
        config: resolved settings of the last command, empty where there are none.
        libraries: versions that made it, empty where it does not say.
        metrics: rows of a pre-training run's `metrics.jsonl`.
        notes: what is to be told about reading it.
        left_out: task -> what was looked for, where it had no data.
        config_name: their file in the folder.
        earlier: file in the folder -> resolved settings of an earlier command, where they differ.
    """

    folder: Path
    rows: list[Row]
    config: dict[str, Any]
    libraries: dict[str, str]
    metrics: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    config_name: str = CONFIG
    earlier: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def config_file(self) -> Path:
        """Where `config` lies."""
        return self.folder / self.config_name


def read_lines(path: Path, notes: list[str] | None = None) -> list[dict[str, Any]]:
    """Read a JSONL file of objects.

    A last line without its line break is what a running or killed job was writing: it is left out and noted.

    Raises:
        UserError: a line is not a JSON object, naming it.
    """
    data = path.read_bytes()
    whole, _, rest = data.rpartition(b"\n")
    if rest.strip() and notes is not None:
        notes.append(f"{path}: the last line is not finished and was left out")
    values = []
    for number, line in enumerate(whole.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except ValueError as error:
            reason = getattr(error, "msg", "not UTF-8 text")
            raise UserError(f"{at(path, number)}: not valid JSON ({reason})") from error
        if not isinstance(value, dict):
            raise UserError(f"{at(path, number)}: expected an object, found a {type(value).__name__}")
        values.append(value)
    return values


def _checked(row: Mapping[str, Any], place: str) -> None:
    for name in REQUIRED:
        if name not in row:
            raise UserError(f'{place}: field "{name}" is missing; expected a row of `ppt fewshot`')
    if row.get("chosen") and not isinstance(row.get("test"), int | float):
        raise UserError(
            f'{place}: the row is chosen but its "test" is {row.get("test")!r}; expected a number'
        )


def read_run(folder: Path | str) -> Run:
    """Read a few-shot run (`results.jsonl`) or a pre-training run (`metrics.jsonl`).

    Raises:
        UserError: the folder is missing, holds neither, or a line of it is wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; expected the folder of a run")
    results, metrics = folder / "results.jsonl", folder / "metrics.jsonl"
    if not results.exists() and not metrics.exists():
        raise UserError(
            f"{folder} holds neither results.jsonl (few-shot run) nor metrics.jsonl (pre-training run)"
        )
    notes: list[str] = []
    rows: dict[str, Row] = {}
    if results.exists():
        for number, row in enumerate(read_lines(results, notes), start=1):
            _checked(row, at(results, number))
            rows[str(row["cell"])] = {**row, "run": str(folder)}
    config = read_yaml(folder / CONFIG) if (folder / CONFIG).exists() else {}
    earlier = {f"{EARLIER}/{path.name}": read_yaml(path) for path in sorted(folder.glob(f"{EARLIER}/*.yaml"))}
    libraries: dict[str, str] = {}
    left_out: dict[str, str] = {}
    if (folder / "manifest.json").exists():
        manifest = read_json(folder / "manifest.json")
        if isinstance(manifest, dict):
            libraries, left_out = manifest.get("libraries", {}), manifest.get("left_out", {})
    lines = read_lines(metrics, notes) if metrics.exists() else []
    return Run(folder, list(rows.values()), config, libraries, lines, notes, left_out, earlier=earlier)


def read_curves(rows: Iterable[Row]) -> dict[str, list[dict[str, Any]]]:
    """Learning curves of the given rows: cell -> rows of `curves/CELL.jsonl`; cells without a file are absent."""
    curves = {}
    for row in rows:
        path = Path(row["run"]) / "curves" / f"{row['cell']}.jsonl"
        if path.exists():
            curves[str(row["cell"])] = read_lines(path)
    return curves


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 60 else text[:57] + "..."


def _difference(name: str, one: Any, two: Any) -> tuple[str, Any, Any] | None:
    """The first key in which two values differ, dotted below `name`; None when they are equal."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted({*one, *two}):
            found = _difference(f"{name}.{key}", one.get(key), two.get(key))
            if found:
                return found
        return None
    return None if one == two else (name, one, two)


def _refuse(name: str, first: Row, second: Row, what: str) -> None:
    found = _difference(name, first.get(name), second.get(name))
    if found:
        place, one, two = found
        raise UserError(
            f'{first.get("run", "the run")} and {second.get("run", "the run")} differ in "{place}"{what}: '
            f"{_shown(one)} and {_shown(two)}; one table holds one protocol, report them apart"
        )


def check_protocol(rows: Sequence[Row]) -> None:
    """Refuse rows that were not made under one protocol on the same data.

    The protocol is the same for all rows, its numbers of dev examples, steps and epochs for all rows of a task (epochs of
    full tuning apart), and so are `shorten` and `max_tokens`; a tokenizer for all rows of a backbone; a task's version, data
    and number of test examples for all rows of the task;
    the verbalizer and the pattern for all rows of a task, method and wording, unless each seed chose its wording; the pre-trained prompt for all rows of a task, method
    and backbone. Seeds, rates, numbers of examples, backbones and their tokenizers may differ.

    Raises:
        UserError: naming the field, both values and both runs.
    """
    first_of: dict[tuple[str, ...], Row] = {}
    for row in rows:
        task, method = str(row["task"]), str(row["method"])
        for which, part in protocol_parts(row).items():
            here = {**part, "run": row.get("run", "the run")}
            first = first_of.setdefault(("protocol", *which), here)
            for name in sorted({*first, *part} - {"run"}):
                _refuse(name, first, here, f" (task {task})" if task in which else "")
        for name in ("task_version", "data_fingerprint"):
            _refuse(name, first_of.setdefault((task,), row), row, f" (task {task})")
        if row.get("chosen"):
            _refuse("n_test", first_of.setdefault((task, "test"), row), row, f" (task {task})")
        where = f" (task {task}, method {method})"
        for name in ("verbalizer", "hard_prompt", "pattern") if wording_of(row) != BY_DEV else ():
            _refuse(name, first_of.setdefault((task, method, "wording", wording_of(row)), row), row, where)
        if row.get("init") and row["init"] not in INITS:
            backbone = str(row.get("backbone_fingerprint", ""))
            _refuse("init", first_of.setdefault((task, method, "init", backbone), row), row, where)


def wording_of(row: Row) -> str:
    """The wording that a row's run asked for: its name, or dev where each seed chose."""
    return str(row.get("wording", FIRST))


def same_choice(row: Row) -> tuple[str, ...]:
    """What rows share that differ in nothing but the learning rate: a seed chooses one of them by dev."""
    fields = ("method", "init", "backbone_fingerprint", "task", "shots", "seed")
    return (*(str(row.get(name)) for name in fields), wording_of(row))


def _conflict(first: Row, second: Row) -> str | None:
    """In which result two rows of one cell differ by more than rounding; None where they agree."""
    for name in ("test", "dev"):  # counts of rows: any difference is an answer that came out otherwise
        one, two = first.get(name), second.get(name)
        if one is not None and two is not None and abs(one - two) > 1e-6:
            return f"{name} {100 * one:.1f} and {100 * two:.1f}"
    for name in ("test_loss", "dev_loss"):
        one, two = first.get(name), second.get(name)
        if one is not None and two is not None and not math.isclose(one, two, rel_tol=1e-3, abs_tol=1e-5):
            return f"{name} {one:.4g} and {two:.4g}"
    return None


def merge_rows(runs: Sequence[Run]) -> tuple[list[Row], list[str]]:
    """All rows of all runs.

    A cell that two runs hold counts once: the copy that was scored on test, of equals the earlier run's.

    Returns:
        The rows, and a warning for each two runs whose results for the same cells differ by more than rounding.
    """
    merged: dict[str, Row] = {}
    conflicts: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for row in run.rows:
            first = merged.setdefault(str(row["cell"]), row)
            if first is row:
                continue
            difference = _conflict(first, row)
            if difference:
                named = f"{row['method']} on {row['task']}, seed {row['seed']}, rate {row['learning_rate']:g}: {difference}"
                conflicts.setdefault((first["run"], row["run"]), []).append(named)
            if row.get("chosen") and not first.get("chosen"):
                merged[str(row["cell"])] = row
    warnings = []
    for (one, two), found in conflicts.items():
        more = f"; and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
        cells = "a cell" if len(found) == 1 else f"{len(found)} cells"
        warnings.append(
            f"{one} and {two} hold {cells} with different results, and the first one's count: "
            f"{'; '.join(found[:MAX_NAMED])}{more}. The same cell gives the same result to rounding: run it again on both "
            "machines, or leave one run out"
        )
    return list(merged.values()), warnings


def choose_again(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """Choose once more by dev where several runs shared a grid of rates out and each chose from its part.

    Returns:
        The rows, of which each choice has one chosen at most, and the number of choices that were made again.
    """
    chosen: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.get("chosen"):
            chosen.setdefault(same_choice(row), []).append(row)
    beaten: set[str] = set()
    again = 0
    for some in chosen.values():
        if len(some) > 1 and len({float(row["learning_rate"]) for row in some}) == len(some):
            best = min(some, key=best_first)
            beaten |= {str(row["cell"]) for row in some if row is not best}
            again += 1
    return [{**row, "chosen": False} if str(row["cell"]) in beaten else row for row in rows], again
