"""results.jsonl: one row a cell, appended whole, read again after a kill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from corpora.common.errors import UserError, at
from corpora.common.files import hash_json, machine_errors, write_text_atomic
from finetune.methods import METHODS

ResultRow = dict[str, Any]

# What makes a cell the cell it is; each stands as a field of its row (architecture.md, few-shot run).
KEY = (
    "backbone_fingerprint", "task", "task_version", "data_fingerprint", "method", "init", "pattern", "hard_prompt",
    "verbalizer", "wording", "tokenizer_fingerprint", "max_tokens", "shorten", "shots", "seed", "learning_rate", "protocol",
)  # fmt: skip
# Of a row's protocol: what is settled for its task, so that another task may have it otherwise.
OF_TASK = ("dev_shots", "epochs", "eval_every")


def cell_name(row: ResultRow) -> str:
    """The cell's name: the first 16 hex digits of a hash of its key."""
    return hash_json({name: row[name] for name in KEY})[:16]


def choice_name(row: ResultRow) -> str:
    """The same for the cells that differ in nothing but the learning rate: one of them is chosen by dev."""
    return hash_json({name: row[name] for name in KEY if name != "learning_rate"})[:16]


def protocol_parts(row: ResultRow) -> dict[tuple[str, ...], dict[str, Any]]:
    """What a row has in common with others for all of them to stand in one table.

    Returns:
        Which rows -> dotted name -> what all of them have: rows at all, of its task, of its task that train the same, of
        its task with an equal limit of length, of its backbone. What a row of an earlier release lacks is None.
    """
    protocol = row.get("protocol") or {}
    task, method = str(row["task"]), METHODS.get(row["method"])
    trains = method.trains if method else str(row["method"])
    unified = "unified" if method and method.pattern == "unified" else "own"

    def own(*names: str) -> dict[str, Any]:
        return {f"protocol.{name}": protocol.get(name) for name in names}

    return {
        (): own(*(name for name in protocol if name not in OF_TASK)),
        ("task", task): {**own("dev_shots", "eval_every"), "shorten": row.get("shorten")},
        ("trains", task, trains): own("epochs"),  # full tuning's may be its own
        ("pattern", task, unified): {"max_tokens": row.get("max_tokens")},
        ("backbone", str(row.get("backbone_fingerprint"))): {
            "tokenizer_fingerprint": row.get("tokenizer_fingerprint")
        },
    }


def best_first(row: ResultRow) -> tuple[float, float, float]:
    """Order of choice among learning rates: highest dev score, then lower dev loss (a report's row may lack it), then the smaller rate."""
    return (-float(row["dev"]), float(row.get("dev_loss") or 0.0), float(row["learning_rate"]))


def _line(row: ResultRow) -> str:
    return json.dumps(row, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"


def read_rows(path: Path) -> list[ResultRow]:
    """Rows of a file, in its order; the end of a line that is being written, or that a kill cut off, is no row.

    Raises:
        UserError: a line that no kill can have left is not a row.
    """
    if not path.exists():
        return []
    rows = []
    whole, end, _ = path.read_bytes().rpartition(b"\n")
    for number, text in enumerate(whole.split(b"\n") if end else [], 1):
        try:
            row = json.loads(text)
            row["cell"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{at(path, number)}: not a row of results; remove it") from error
        rows.append(row)
    return rows


def append_rows(path: Path, rows: Sequence[ResultRow]) -> None:
    """Append rows in one write.

    Raises:
        MachineError: the disk is full or the place cannot be written; the file holds no half row.
    """
    with machine_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            data = "".join(map(_line, rows)).encode("utf-8")
            start = os.fstat(descriptor).st_size
            try:
                while data:
                    data = data[os.write(descriptor, data) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, start)
                raise
        finally:
            os.close(descriptor)


def cut_half_row(path: Path) -> None:
    """Remove the end of a line that a kill cut off."""
    if path.exists() and not (data := path.read_bytes()).endswith(b"\n") and data:
        write_text_atomic(path, "".join(map(_line, read_rows(path))))


class KnownRows:
    """Rows by cell."""

    def __init__(self, rows: Iterable[ResultRow]) -> None:
        self.rows: dict[str, ResultRow] = {row["cell"]: row for row in rows}

    def missing(self, cells: Iterable[str]) -> list[str]:
        """Those of the given cells that have no row yet."""
        return [cell for cell in cells if cell not in self.rows]

    def of_choice(self, choice: str) -> list[ResultRow]:
        """Rows that differ in nothing but the learning rate."""
        return [row for row in self.rows.values() if row["choice"] == choice]

    def add(self, rows: Sequence[ResultRow]) -> None:
        """Add rows; those that are there already are left as they are."""
        self.rows.update((row["cell"], row) for row in rows if row["cell"] not in self.rows)


class Results(KnownRows):
    """The rows of a run. A row is on disk whole or not at all: what a kill cut off is removed when it is opened.

    Only chosen rows have files `predictions/CELL.jsonl` and `prompts/CELL/` beside them.
    """

    def __init__(self, folder: Path) -> None:
        """Open a run's rows.

        Raises:
            UserError: a line that no kill can have left is not a row.
        """
        self.path = folder / "results.jsonl"
        super().__init__(read_rows(self.path))
        cut_half_row(self.path)
        self._drop_files(row["cell"] for row in self.rows.values() if not row["chosen"])

    def add(self, rows: Sequence[ResultRow]) -> None:
        """Append rows in one write; those that are there already are left as they are.

        Where one of them is chosen, a row of the same choice that was chosen before (by a smaller grid) loses
        that, its test score, its predictions and its prompt, and the file is written anew.

        Raises:
            MachineError: the disk is full or the place cannot be written; the file holds no half row.
        """
        new = {row["cell"]: row for row in reversed(rows) if row["cell"] not in self.rows}
        rows = [row for row in rows if new.get(row["cell"]) is row]  # of one cell's, the first
        if not rows:
            return
        replaced = []
        for row in rows:
            for old in self.of_choice(row["choice"]) if row["chosen"] else ():
                if old["chosen"]:
                    old["chosen"] = False
                    for name in [name for name in old if name.startswith("test")]:
                        del old[name]
                    replaced.append(old["cell"])
            self.rows[row["cell"]] = row
        if replaced:
            self._rewrite()
            self._drop_files(replaced)
            return
        append_rows(self.path, rows)

    def _drop_files(self, cells: Iterable[str]) -> None:
        """Remove what only chosen cells have beside their rows."""
        for cell in cells:
            with machine_errors(self.path.parent):
                (self.path.parent / "predictions" / f"{cell}.jsonl").unlink(missing_ok=True)
                if (folder := self.path.parent / "prompts" / cell).is_dir():
                    shutil.rmtree(folder)

    def _rewrite(self) -> None:
        write_text_atomic(self.path, "".join(map(_line, self.rows.values())))
