"""PEFT's prompt tuning in a plain training loop, one cell after the other, each of its settings a parameter."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PromptTuningConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import T5ForConditionalGeneration
from transformers.utils import logging

from fewshot_sides import Curve, LoopCell
from pretrain_sides import synchronize

IGNORED = -100  # of a target that does not count, in transformers' losses
GRAPH_WIDTH = 32  # to which lengths are rounded up where each length is compiled for itself
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Choice:
    """What its user may choose.

    Attributes:
        weights: `bfloat16` or `float32`, of the backbone; the prompt is always float32.
        attention: `eager` or `sdpa`.
        compiled: `no`; `dynamic`: torch.compile for any length; `graphs`: for each length by itself, as CUDA graphs.
        micro: examples that are padded to one length; a batch of more is sorted by length and takes several passes.
    """

    weights: str = "bfloat16"
    attention: str = "eager"
    compiled: str = "no"
    micro: int = 16

    def __str__(self) -> str:
        parts = [self.weights, self.attention, str(self.micro)]
        return " ".join(parts + [f"compiled ({self.compiled})"] * (self.compiled != "no"))


class PeftLoop:
    """Prompt tuning of cells with PEFT; `backbone`: folder of the weights."""

    def __init__(self, backbone: Path, cells: list[LoopCell]) -> None:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        warnings.simplefilter("ignore", FutureWarning)
        self._backbone, self._cells = backbone, cells
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def run(self, choice: Choice) -> dict[str, Any]:
        """Tune all cells.

        Returns:
            `seconds`, from nothing loaded to the last cell's end; `cells`: name -> `seconds` and `curve`; `padding`;
            `peak_gb` of a GPU.
        """
        began = time.perf_counter()
        loop = _Loop(self._backbone, choice, self._cells[0], self._device)
        found: dict[str, Any] = {}
        for cell in self._cells:
            started = time.perf_counter()
            curve, _ = loop.tune(cell)
            synchronize()
            found[cell.name] = {"seconds": time.perf_counter() - started, "curve": curve}
        took = time.perf_counter() - began
        peak = torch.cuda.max_memory_allocated() / 1e9 if self._device.type == "cuda" else None
        return {"seconds": took, "cells": found, "padding": 1 - loop.tokens / loop.padded, "peak_gb": peak}

    def trial(self, choice: Choice, steps: int) -> dict[str, float]:
        """`first` and `later` seconds of so many steps of the first cell and a score before and after."""
        loop = _Loop(self._backbone, choice, self._cells[0], self._device)
        took = []
        for _ in range(2):
            started = time.perf_counter()
            loop.tune(self._cells[0], steps)
            synchronize()
            took.append(time.perf_counter() - started)
        return {"first": took[0], "later": took[1]}

    def first_step(self, choice: Choice) -> tuple[float, np.ndarray]:
        """Loss, and gradient [P, D] of the prompt, of the first cell's first batch."""
        cell = self._cells[0]
        loop = _Loop(self._backbone, choice, cell, self._device)
        loop.start(cell)
        loss = loop.backward(cell, cell.order[0])
        return float(loss), loop.table.grad.float().cpu().numpy()


class _Loop:
    """A model with a prompt, and the loop."""

    def __init__(self, backbone: Path, choice: Choice, cell: LoopCell, device: torch.device) -> None:
        # No dropout and no cache, for which training would only pay.
        model = T5ForConditionalGeneration.from_pretrained(
            backbone, dtype=getattr(torch, choice.weights), attn_implementation=choice.attention,
            dropout_rate=0.0, use_cache=False,
        ).to(device)  # fmt: skip
        config = PromptTuningConfig(
            task_type="SEQ_2_SEQ_LM", num_virtual_tokens=len(cell.start_PD), num_transformer_submodules=1
        )
        self.model = get_peft_model(model, config).eval()
        if choice.compiled == "dynamic":
            self.model.base_model.compile(dynamic=True)
        elif choice.compiled == "graphs":
            self.model.base_model.compile(dynamic=False, mode="reduce-overhead")
        self.table = self.model.prompt_encoder["default"].embedding.weight
        self._choice, self._device = choice, device
        self.tokens = self.padded = 0

    def start(self, cell: LoopCell) -> None:
        """Put the cell's prompt in its place."""
        with torch.no_grad():
            self.table.copy_(torch.from_numpy(cell.start_PD))
        self.table.grad = None

    def tune(self, cell: LoopCell, steps: int | None = None) -> tuple[Curve, torch.Tensor]:
        """Train and choose a step by dev: its curve, and the prompt [P, D] of that step.

        Args:
            cell: what to train on.
            steps: instead of all of them, with a score before and after.
        """
        self.start(cell)
        optimizer = torch.optim.AdamW(
            [self.table], lr=cell.learning_rate, weight_decay=cell.weight_decay, eps=cell.eps, fused=True
        )
        dev = [(self._inputs([cell.dev[i] for i in part], cell), part) for part in self._parts(cell.dev)]
        order, due = cell.order[:steps], cell.evaluated if steps is None else (0, steps)
        best = self.table.detach().clone()
        curve: Curve = []
        reached = (-1.0, 0.0)
        for step in range(len(order) + 1):
            if step in due:
                right, loss = self._score(cell, dev)
                curve.append({"step": step, "dev": right, "dev_loss": loss})
                if (right, -loss) > reached:
                    reached, best = (right, -loss), self.table.detach().clone()
            if step < len(order):
                self.backward(cell, order[step])
                torch.nn.utils.clip_grad_norm_([self.table], cell.clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        return curve, best

    def backward(self, cell: LoopCell, chosen: np.ndarray) -> torch.Tensor:
        """Loss of a batch, its gradient left in the prompt."""
        total = torch.zeros((), device=self._device)
        texts = [cell.train[i] for i in chosen]
        for part in self._parts(texts):
            batch = self._inputs([texts[i] for i in part], cell)
            labels = np.full((len(part), 2), IGNORED, np.int64)
            labels[:, 1] = [cell.word_ids[cell.train_labels[chosen[i]]] for i in part]
            loss = self.model(**batch, labels=torch.from_numpy(labels).to(self._device)).loss
            loss = loss * (len(part) / len(chosen))
            loss.backward()
            total += loss.detach()
        return total

    @torch.no_grad()
    def _score(self, cell: LoopCell, dev: list[tuple[Batch, np.ndarray]]) -> tuple[float, float]:
        """Share of dev examples whose best label word is the right one, and their mean loss."""
        right, loss = torch.zeros((), device=self._device), torch.zeros((), device=self._device)
        words = torch.tensor(cell.word_ids, device=self._device)
        for batch, part in dev:
            logits_BV = self.model(**batch).logits[:, 1].float()
            labels_B = torch.tensor([cell.dev_labels[i] for i in part], device=self._device)
            right += (logits_BV[:, words].argmax(1) == labels_B).sum()
            loss += cross_entropy(logits_BV, words[labels_B], reduction="sum")
        return float(right) / len(cell.dev), float(loss) / len(cell.dev)

    def _parts(self, texts: list[np.ndarray]) -> list[np.ndarray]:
        """Places in `texts`, those that are padded to one length together; neighbours by length where there are several."""
        if len(texts) <= self._choice.micro:
            return [np.arange(len(texts))]
        by_length = np.argsort([len(ids) for ids in texts], kind="stable")
        return np.split(by_length, range(self._choice.micro, len(texts), self._choice.micro))

    def _inputs(self, texts: list[np.ndarray], cell: LoopCell) -> Batch:
        """A padded batch without targets; the decoder reads T5's start and the sentinel."""
        width = max(map(len, texts))
        if self._choice.compiled == "graphs":
            width = -(-width // GRAPH_WIDTH) * GRAPH_WIDTH
        ids, mask = np.zeros((len(texts), width), np.int64), np.zeros((len(texts), width), np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)], mask[row, : len(text)] = text, 1
        prompt_len = len(cell.start_PD)
        self.tokens += int(mask.sum()) + len(texts) * prompt_len
        self.padded += len(texts) * (width + prompt_len)
        decoder = np.tile(np.array([0, cell.sentinel], np.int64), (len(texts), 1))
        made = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder}
        return {name: torch.from_numpy(array).to(self._device) for name, array in made.items()}
