"""metrics.jsonl and TensorBoard events of a pre-training run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from corpora.common.errors import UserError
from corpora.common.files import machine_errors
from pretrain.evaluation import Score
from pretrain.groups import Group
from pretrain.settings import PretrainSettings

if TYPE_CHECKING:
    from pretrain.run_state import RunState


class Metrics:
    """Writes what a run measures; on processes after the first it does nothing.

    Rows hold no times, so that a run that was killed and went on has the same file as one that was not.

    Args:
        out: the run's folder.
        keep_bytes: length of metrics.jsonl that the checkpoint remembers; what came after it is written again.
        step: the checkpoint's step.
        writes: whether this is the first process.
    """

    def __init__(self, out: Path, keep_bytes: int, step: int, writes: bool) -> None:
        self._rows = _Rows(out, keep_bytes) if writes else None
        self._board: Any = None
        if writes:
            from torch.utils.tensorboard import SummaryWriter

            with machine_errors(out / "tensorboard"):
                # TensorBoard hides what an earlier start wrote after the checkpoint.
                self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)

    def training(
        self, state: RunState, groups: Sequence[Group], settings: PretrainSettings, rate: float
    ) -> None:
        """Write a row a group: means over the steps since the last row."""
        for group in groups:
            loss, right, target_loss, norm, examples, steps = state.groups[group.name].take_sums()
            row = {"step": state.step, "format": group.name, "split": "train", "loss": loss / examples}
            row["accuracy"] = right / examples if group.one_token_words else None
            if settings.count == "all":
                row["target_loss"] = target_loss / examples
            self._write(
                {**row, "gradient_norm": norm / steps, "learning_rate": rate, "examples": round(examples)}
            )

    def validation(self, step: int, scores: dict[str, Score]) -> None:
        """Write a row a group for an evaluation."""
        for name, score in scores.items():
            row = {"step": step, "format": name, "split": "validation", "loss": score.loss}
            self._write({**row, "accuracy": score.accuracy, "examples": score.examples})

    def sync(self) -> int:
        """Put everything on disk; the length of metrics.jsonl for the checkpoint."""
        if self._rows is None:
            return 0
        self._board.flush()
        return self._rows.sync()

    def _write(self, row: dict[str, Any]) -> None:
        if self._rows is None:
            return
        self._rows.write(row)
        for key in ("loss", "accuracy", "target_loss", "gradient_norm", "learning_rate"):
            if row.get(key) is not None:
                self._board.add_scalar(f"{row['format']}/{row['split']}/{key}", row[key], row["step"])

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rows is not None:
            self._rows.close()
            self._board.close()


class _Rows:
    """metrics.jsonl: one JSON row a line, cut back to the checkpoint when a run goes on.

    Args:
        out: the run's folder.
        keep_bytes: length that the checkpoint remembers; what a killed run wrote after it is written again.
    """

    def __init__(self, out: Path, keep_bytes: int) -> None:
        self.path = out / "metrics.jsonl"
        with machine_errors(self.path):
            self.path.touch()
            size = self.path.stat().st_size
            if size < keep_bytes:
                raise UserError(
                    f"{self.path} has {size} bytes, its checkpoint counted {keep_bytes}; it was changed by hand: "
                    "choose another out"
                )
            os.truncate(self.path, keep_bytes)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def write(self, row: dict[str, Any]) -> None:
        """Append a row."""
        with machine_errors(self.path):
            os.write(self._descriptor, (json.dumps(row) + "\n").encode())

    def sync(self) -> int:
        """Put all rows on disk and say how many bytes they are; a checkpoint remembers it."""
        with machine_errors(self.path):
            os.fsync(self._descriptor)
            return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
