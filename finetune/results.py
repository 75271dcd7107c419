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

ResultRow = dict[str, Any]

# What makes a cell the cell it is; each stands as a field of its row (architecture.md, few-shot run).
KEY = (
    "backbone_fingerprint", "task", "task_version", "data_fingerprint", "method", "init", "pattern", "hard_prompt",
    "verbalizer", "wording", "shots", "seed", "learning_rate", "protocol",
)  # fmt: skip


def cell_name(row: ResultRow) -> str:
    """The cell's name: the first 16 hex digits of a hash of its key."""
    return hash_json({name: row[name] for name in KEY})[:16]


def choice_name(row: ResultRow) -> str:
    """The same for the cells that differ in nothing but the learning rate: one of them is chosen by dev."""
    return hash_json({name: row[name] for name in KEY if name != "learning_rate"})[:16]


def best_first(row: ResultRow) -> tuple[float, float, float]:
    """Order of choice among learning rates: highest dev score, then lower dev loss, then the smaller rate."""
    return (-row["dev"], row["dev_loss"], row["learning_rate"])


def _line(row: ResultRow) -> str:
    return json.dumps(row, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"


class Results:
    """The rows of a run. A row is on disk whole or not at all: what a kill cut off is removed when it is opened.

    Only chosen rows have files `predictions/CELL.jsonl` and `prompts/CELL/` beside them.
    """

    def __init__(self, folder: Path) -> None:
        """Open a run's rows.

        Raises:
            UserError: a line that no kill can have left is not a row.
        """
        self.path = folder / "results.jsonl"
        self.rows: dict[str, ResultRow] = {}
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole, end, rest = data.rpartition(b"\n")
        for number, text in enumerate(whole.split(b"\n") if end else [], 1):
            try:
                row = json.loads(text)
                self.rows[row["cell"]] = row
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"{at(self.path, number)}: not a row of results; remove it") from error
        if rest:  # the end of a line that was being written
            self._rewrite()
        self._drop_files(row["cell"] for row in self.rows.values() if not row["chosen"])

    def missing(self, cells: Iterable[str]) -> list[str]:
        """Those of the given cells that have no row yet."""
        return [cell for cell in cells if cell not in self.rows]

    def of_choice(self, choice: str) -> list[ResultRow]:
        """Rows that differ in nothing but the learning rate."""
        return [row for row in self.rows.values() if row["choice"] == choice]

    def add(self, rows: Sequence[ResultRow]) -> None:
        """Append rows in one write.

        Where one of them is chosen, a row of the same choice that was chosen before (by a smaller grid) loses
        that, its test score, its predictions and its prompt, and the file is written anew.

        Raises:
            MachineError: the disk is full or the place cannot be written; the file holds no half row.
        """
        replaced = []
        for row in rows:
            for old in self.of_choice(row["choice"]) if row["chosen"] else ():
                if old["chosen"]:
                    old["chosen"] = False
                    for name in [name for name in old if name.startswith("test")]:
                        del old[name]
                    replaced.append(old["cell"])
        for row in rows:
            self.rows[row["cell"]] = row
        if replaced:
            self._rewrite()
            self._drop_files(replaced)
            return
        with machine_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
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

    def _drop_files(self, cells: Iterable[str]) -> None:
        """Remove what only chosen cells have beside their rows."""
        for cell in cells:
            with machine_errors(self.path.parent):
                (self.path.parent / "predictions" / f"{cell}.jsonl").unlink(missing_ok=True)
                if (folder := self.path.parent / "prompts" / cell).is_dir():
                    shutil.rmtree(folder)

    def _rewrite(self) -> None:
        write_text_atomic(self.path, "".join(map(_line, self.rows.values())))
