"""Our few-shot run through its public entry, and the cells of the grid laid open for others to tune, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common_bench import seconds
from pretrain_sides import Products, synchronize

Curve = list[dict[str, float | int | None]]
CELL = "{seed} {learning_rate:g}"  # what a cell is called here
COMMAND = "from launch.cli import main; main()"  # `ppt`, where it is not installed


@dataclass(frozen=True)
class LoopCell:
    """One cell, tokenised: all that a plain training loop needs.

    Attributes:
        name: `CELL`.
        train, dev: input ids without the prompt.
        train_labels, dev_labels: of each.
        order: positions in `train`, one array an optimiser step.
        evaluated: updates after which dev is scored.
        start_PD: the prompt at the beginning.
        learning_rate, weight_decay, clip, eps: of AdamW in the backbone's own embedding space.
        word_ids: the token of each label.
        sentinel: what the decoder reads before the label.
    """

    name: str
    train: list[np.ndarray]
    train_labels: list[int]
    dev: list[np.ndarray]
    dev_labels: list[int]
    order: list[np.ndarray]
    evaluated: list[int]
    start_PD: np.ndarray
    learning_rate: float
    weight_decay: float
    clip: float
    eps: float
    word_ids: list[int]
    sentinel: int

    def lengths(self, prompt_len: int) -> tuple[np.ndarray, np.ndarray]:
        """Encoder tokens of all training examples of all steps, and of all dev examples of all scores."""
        train = np.array([len(ids) for ids in self.train])
        dev = np.array([len(ids) for ids in self.dev])
        return train[np.concatenate(self.order)] + prompt_len, np.tile(dev, len(self.evaluated)) + prompt_len


class Cells:
    """The product's own draws, orders, inputs and starting prompts of all cells; `values`: settings of `ppt fewshot`."""

    def __init__(self, values: dict[str, Any]) -> None:
        from finetune.methods import rows_for
        from finetune.settings import FewshotSettings
        from finetune.workshop import Cell, Workshop

        self._settings = FewshotSettings(out="none", dtype="float32", **values)
        self._workshop = Workshop(self._settings)
        (task,) = self._settings.tasks
        (row,) = rows_for(self._workshop.task(task), self._settings.methods)
        self._cells = [
            Cell(task, self._settings.all_shots[0], row, seed, rate)
            for seed in self._settings.seeds
            for rate in self._settings.learning_rates
        ]

    def all(self) -> list[LoopCell]:
        """The cells, seed by seed."""
        return [self._laid_open(cell) for cell in self._cells]

    def _laid_open(self, cell: Any) -> LoopCell:
        from finetune.draws import evaluation_steps

        settings, trial = self._settings, self._workshop.trial(cell)
        rms = self._workshop.backbone("main").embedding_rms
        words = trial.verbalizer
        if any(len(ids) != 1 for ids in words.ids):
            raise ValueError(f"a label of {cell.task} has several tokens; the plain loop scores one")
        # AdamW over prompts in units of the embedding's RMS, said in the embedding's own: the update is the same.
        return LoopCell(
            CELL.format(seed=cell.seed, learning_rate=cell.learning_rate),
            [item.input_ids for item in trial.train], [item.label for item in trial.train],
            [item.input_ids for item in trial.dev], [item.label for item in trial.dev],
            list(trial.order), evaluation_steps(len(trial.order), settings.eval_every), trial.start_PD.numpy(),
            learning_rate=cell.learning_rate * rms, weight_decay=settings.weight_decay / rms, clip=settings.clip / rms,
            eps=1e-8 / rms, word_ids=[ids[0] for ids in words.ids], sentinel=int(words.target_ids(0, closing=False)[0]),
        )  # fmt: skip

    def first_step(self) -> tuple[float, np.ndarray]:
        """Loss, and gradient [P, D] of the prompt, of the first cell's first batch, by the product's forward pass in float32."""
        import torch

        from corpora.rendering import Rendered
        from pretrain.batching import end_to_end, example_losses, pack_flat
        from pretrain.forward import PromptedBackbone, run_batch

        trial = self._workshop.trial(self._cells[0])
        items = [trial.train[place] for place in trial.order[0]]
        backbone = self._workshop.net("main").backbone
        rendered = Rendered(
            *end_to_end([item.input_ids for item in items]), np.array([item.label for item in items])
        )
        batch = pack_flat(
            rendered, self._settings.prompt_len, np.zeros(len(items), np.int64),
            *end_to_end(trial.renderer.target_ids(items)), np.full(len(items), 1 / len(items)), backbone.pad_id,
            backbone.start_id,
        ).to(backbone.embedding_device)  # fmt: skip
        start_KPD = trial.start_PD[None].to(backbone.embedding_device).clone().requires_grad_(True)
        net = PromptedBackbone(backbone).requires_grad_(False).eval()
        (logits_BTV,) = run_batch(net, start_KPD, batch)
        loss = (example_losses(logits_BTV, batch) * batch.example_weights_B).sum()
        loss.backward()
        grad = start_KPD.grad
        assert isinstance(grad, torch.Tensor)
        return float(loss.detach()), grad[0].float().cpu().numpy()


class Ours:
    """`ppt fewshot`."""

    def __init__(self) -> None:
        import sklearn.metrics
        import torch
        import transformers

        import finetune.fewshot
        from corpora.common.progress import be_quiet

        # What a run loads when it comes to it; the rival's process has its libraries too.
        _ = sklearn.metrics.f1_score, transformers.T5ForConditionalGeneration
        be_quiet()
        self._run = finetune.fewshot.run_fewshot
        self._devices = torch.cuda.device_count()
        self._together = 0
        self._count_prompts()

    def _count_prompts(self) -> None:
        """From now on know how many prompts a step moves."""
        from pretrain.prompts import PromptBank

        step = PromptBank.step

        def counted(bank: Any, lr_scale_K: Any = None, active_K: Any = None) -> Any:
            moved = len(bank.prompts_KPD) if active_K is None else int(active_K.sum())
            self._together = max(self._together, moved)
            return step(bank, lr_scale_K, active_K)

        PromptBank.step = counted  # type: ignore[method-assign]

    def run(self, values: dict[str, Any]) -> dict[str, Any]:
        """Tune all cells of some settings.

        One process is this one, its imports done. Several (by default one a GPU) are started by the command, whose own start counts.

        Returns:
            `seconds`, from nothing loaded to all rows written; `cells`: name -> `seconds` and `curve`; `together`: most prompts
            that a step of this process moved; `peak_gb` of memory.

        Raises:
            RuntimeError: a cell diverged, or `prompts_together` was passed over.
        """
        from corpora.common.settings import save_settings
        from finetune.settings import FewshotSettings

        with tempfile.TemporaryDirectory() as folder:
            settings = FewshotSettings(out=f"{folder}/run", **values)

            def work() -> None:
                if (settings.processes or max(1, self._devices)) == 1:
                    self._run(settings)
                    synchronize()
                    return
                command = [sys.executable, "-c", COMMAND, "fewshot", f"{folder}/fewshot.yaml"]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(done.stdout + done.stderr)

            save_settings(Path(folder) / "fewshot.yaml", settings)
            took = seconds(work)
            if self._together > settings.prompts_together:
                raise RuntimeError(
                    f"{self._together} prompts in a step, at most {settings.prompts_together} asked for"
                )
            cells, peak = _cells(Path(folder) / "run")
        return {"seconds": took, "cells": cells, "together": self._together or None, "peak_gb": peak}


def _cells(run: Path) -> tuple[dict[str, Any], float]:
    """What a run wrote about its cells, and the most memory that a process held, in GB.

    Raises:
        RuntimeError: one diverged: it did fewer steps than the others' cells.
    """
    found: dict[str, Any] = {}
    peak = 0.0
    for line in (run / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["diverged"] is not None:
            raise RuntimeError(
                f"seed {row['seed']} at {row['learning_rate']} diverged: the sides' work differs"
            )
        curve = (run / "curves" / f"{row['cell']}.jsonl").read_text().splitlines()
        peak = max(peak, (row["peak_bytes"] or 0) / 1e9)
        curve = [json.loads(point) for point in curve]
        found[CELL.format(**row)] = {"seconds": row["seconds"], "curve": curve}
    return found, peak


class OneThread(Products):
    """The products on one of several cores that are all at work."""

    def round(self) -> dict[str, float]:
        """See `Products.round`."""
        import torch

        torch.set_num_threads(1)
        return super().round()
