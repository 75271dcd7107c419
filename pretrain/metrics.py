"""metrics.jsonl and TensorBoard events of a pre-training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pretrain.evaluation import Score
from pretrain.groups import Group
from pretrain.metric_rows import MetricRows
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
        self._rows = MetricRows(out, keep_bytes, step) if writes else None

    def training(
        self, state: RunState, groups: Sequence[Group], settings: PretrainSettings, rate: float
    ) -> None:
        """Write a row a group: means over the steps since the last row."""
        for group in groups:
            loss, right, target_loss, norm, examples, steps = state.groups[group.name].take_sums()
            if not steps:
                continue  # all of them were left out
            row = {"step": state.step, "format": group.name, "split": "train", "loss": loss / examples}
            row["accuracy"] = right / examples if group.one_token_words else None
            if settings.count == "all":
                row["target_loss"] = target_loss / examples
            self._write(
                {**row, "gradient_norm": norm / steps, "learning_rate": rate, "examples": round(examples)}
            )

    def skipped(self, step: int, spoilt: Mapping[str, Sequence[int]], in_a_row: int) -> None:
        """Write a row a group that spoilt an update which was left out.

        Args:
            step: the update's, counted from 1.
            spoilt: rows of each group's corpus whose loss is no number; none where only the gradient is none.
            in_a_row: how many updates were left out up to this one.
        """
        for name, rows in spoilt.items():
            self._write(
                {"step": step, "format": name, "split": "skipped", "rows": list(rows), "in_a_row": in_a_row}
            )

    def validation(self, step: int, scores: dict[str, Score]) -> None:
        """Write a row a group for an evaluation."""
        for name, score in scores.items():
            row = {"step": step, "format": name, "split": "validation", "loss": score.loss}
            self._write({**row, "accuracy": score.accuracy, "examples": score.examples})

    def sync(self) -> int:
        """Put everything on disk; the length of metrics.jsonl for the checkpoint."""
        return 0 if self._rows is None else self._rows.sync()

    def _write(self, row: dict[str, Any]) -> None:
        if self._rows is None:
            return
        keys = ("loss", "accuracy", "target_loss", "gradient_norm", "learning_rate")
        scalars = {
            f"{row['format']}/{row['split']}/{key}": row[key] for key in keys if row.get(key) is not None
        }
        self._rows.write(row, scalars)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rows is not None:
            self._rows.close()
