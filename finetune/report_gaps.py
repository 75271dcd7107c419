"""What a report has less of than its runs asked for: tasks without data, sets with too few rows."""

from __future__ import annotations

from collections.abc import Sequence

from corpora.common.files import read_json
from finetune.report_read import Row, Run


def gaps(runs: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    """Lines for the reader: which tasks were left out and why, and which sets were smaller than asked."""
    return [*_left_out(runs, rows), *_too_small(rows)]


def _left_out(runs: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    there = {str(row["task"]) for row in rows}  # another run may have had the data
    found: dict[str, str] = {}
    for run in runs:
        path = run.folder / "manifest.json"
        manifest = read_json(path) if path.exists() else {}
        for task, reason in (manifest.get("left_out") or {}).items():
            found.setdefault(str(task), str(reason))
    return [f"{task} was left out: {reason}" for task, reason in found.items() if task not in there]


def _too_small(rows: Sequence[Row]) -> list[str]:
    found: dict[str, None] = {}
    for row in rows:
        short = [
            f"{row[f'n_{part}']} {examples} where {row[f'asked_{part}']} were asked for"
            for part, examples in (("train", "training examples"), ("dev", "development examples"))
            if row.get(f"asked_{part}") and row[f"n_{part}"] < row[f"asked_{part}"]
        ]
        if short:
            found[f"{row['task']} has {' and '.join(short)}: its set has no more"] = None
    return list(found)
