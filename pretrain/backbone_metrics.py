"""What a backbone's training measures: losses, held-out figures, `metrics.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from corpora.common.progress import say
from pretrain.backbone_data import Data
from pretrain.metric_rows import MetricRows
from pretrain.packed_t5 import decode, encode, head
from pretrain.training_data import OBJECTIVES, TrainBatch

# Running sums behind a metrics row: loss and count of each objective, then of the encoder's guesses, then right answers and answers.
SUMS = 2 * len(OBJECTIVES) + 4


def losses(
    model: Any, batch: TrainBatch, weights: Tensor, encoder_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss sums of one batch.

    Args:
        model: a T5ForConditionalGeneration.
        batch: tokens end to end.
        weights: [objectives] weight of a target token of each.
        encoder_loss: weight of the encoder's guesses; 0 leaves them out.

    Returns:
        (weighted sum over target tokens, sum over the encoder's guesses, [SUMS] float64 sums for the metrics).
    """
    encoded = encode(model, batch.input_ids_N, batch.layout)
    decoded = decode(model, encoded, batch.decoder_ids_M, batch.layout)
    logits = head(model, decoded).float()
    loss_M = F.cross_entropy(logits, batch.target_ids_M, reduction="none")
    main = (loss_M * weights[batch.objective_M]).sum()
    guesses = main.new_zeros(())
    if encoder_loss > 0 and len(batch.sentinels_S):
        guess_logits = head(model, encoded[batch.sentinels_S]).float()
        guesses = F.cross_entropy(guess_logits, batch.sentinel_targets_S, reduction="sum")
    with torch.no_grad():
        sums = torch.zeros(SUMS, dtype=torch.float64, device=loss_M.device)
        sums[0 : 2 * len(OBJECTIVES) : 2].index_add_(0, batch.objective_M, loss_M.double())
        sums[1 : 2 * len(OBJECTIVES) : 2].index_add_(0, batch.objective_M, torch.ones_like(loss_M).double())
        if encoder_loss > 0:
            sums[-4], sums[-3] = guesses.double(), len(batch.sentinels_S)
        right = logits[batch.answers_A].argmax(-1) == batch.target_ids_M[batch.answers_A]
        sums[-2], sums[-1] = right.sum().double(), len(batch.answers_A)
    return main, guesses, sums


def describe(sums: list[float]) -> dict[str, float]:
    """Means of the metrics that were seen: `span`, `prefix`, `cloze`, `encoder` losses, `cloze_accuracy`."""
    found = {}
    for i, name in enumerate((*OBJECTIVES, "encoder", "cloze_accuracy")):
        if sums[2 * i + 1]:
            found[name] = sums[2 * i] / sums[2 * i + 1]
    return found


@torch.no_grad()
def evaluate(model: Any, data: Data, weights: Tensor) -> dict[str, float]:
    """Held-out loss of each text objective; loss and accuracy of each cloze file (arg max over the vocabulary)."""
    found: dict[str, float] = {}
    half = data.settings.dtype == "bfloat16"
    for name, batches in data.evaluations():
        total = torch.zeros(SUMS, dtype=torch.float64)  # every process scores all of it: the sets are small
        for batch in batches:
            with torch.autocast(data.device.type, dtype=torch.bfloat16, enabled=half):
                total += losses(model, batch, weights, 0.0)[2].cpu()
        for key, value in describe(total.tolist()).items():
            found[name if key == name else f"{name}/{key.removeprefix('cloze_')}"] = value
    return found


class Metrics:
    """`metrics.jsonl` and TensorBoard events of the first process; rows after the step resumed from are dropped."""

    def __init__(self, out: Path, step: int, active: bool) -> None:
        self.rows = MetricRows(out, _bytes_until(out / "metrics.jsonl", step), step) if active else None

    def __enter__(self) -> Metrics:
        return self

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """One row."""
        if self.rows is None or not values:
            return
        rounded = {name: round(value, 6) for name, value in values.items()}
        scalars = {f"{split}/{name}": value for name, value in values.items()}
        self.rows.write({"step": step, "split": split, **rounded}, scalars)
        if split == "held-out":
            say(f"step {step} held-out: " + "  ".join(f"{n} {v:.3f}" for n, v in rounded.items()))

    def sync(self) -> None:
        """Put all rows on disk, before a checkpoint that counts on them."""
        if self.rows is not None:
            self.rows.sync()

    def __exit__(self, *_: object) -> None:
        if self.rows is not None:
            self.rows.close()


def _bytes_until(path: Path, step: int) -> int:
    """Length of the rows up to `step`; a row that a killed run left half-written does not count."""
    length = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        if not line.endswith(b"\n") or json.loads(line)["step"] > step:
            break
        length += len(line)
    return length
