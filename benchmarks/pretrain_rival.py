"""Hugging Face's Trainer with PEFT's prompt tuning, in a process of its own, each of its settings a parameter."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PromptTuningConfig, get_peft_model
from torch.utils.data import Sampler
from transformers import (
    PrinterCallback,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.utils import logging

from corpora.formats import ENCODER_TOKENS
from pretrain_sides import PROMPT_LEN, Task, synchronize

Example = dict[str, np.ndarray]
IGNORED = -100  # of a target that does not count, in transformers' losses


@dataclass(frozen=True)
class Choice:
    """What its user may choose.

    Attributes:
        fixed: pad to the format's longest input, as the released code does; else to the longest of a batch, and
            batches grouped by length.
        weights: `bfloat16`: the backbone is loaded so; `autocast`: float32 weights under `bf16=True`.
        attention: `sdpa` or `eager`.
        micro: examples of a micro-batch; an optimiser step takes as many micro-batches as it needs.
        compiled: `torch_compile=True`.
        multiple: to which the length of a batch is rounded up.
    """

    fixed: bool
    weights: str = "bfloat16"
    attention: str = "sdpa"
    micro: int = 8
    compiled: bool = False
    multiple: int = 8


class Rival:
    """Prompt tuning by Trainer and PEFT.

    Args:
        examples: `input_ids` and `target_ids` of each, without the prompt.
        longest: tokens of an input that is padded to a fixed length.
        batch_size: examples of an optimiser step.
        load: makes the backbone that a choice asks for.
        out: a folder that Trainer may want.
    """

    def __init__(
        self, examples: list[Example], longest: int, batch_size: int, load: Callable[[Choice], Any], out: Path
    ) -> None:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        warnings.simplefilter("ignore", FutureWarning)
        self._examples, self._longest, self._batch_size = examples, longest, batch_size
        self._load, self._out = load, out
        self._models: dict[tuple[str, str], Any] = {}

    def round(self, choice: Choice, examples: int | None = None, warm: int = 0) -> dict[str, float]:
        """Train on all examples once, or on the first so many; tells seconds, tokens and the padding's.

        Args:
            choice: of settings.
            examples: how many.
            warm: optimiser steps before, which are not timed.
        """
        used = self._examples[:examples]
        size = min(len(used), self._batch_size)
        micro = min(choice.micro, size)
        steps = len(used) // size
        clock = _Clock(warm)
        trainer = _Grouped(
            model=self._model(choice),
            args=TrainingArguments(
                output_dir=str(self._out), per_device_train_batch_size=micro,
                gradient_accumulation_steps=size // micro, max_steps=warm + steps, learning_rate=0.3,
                lr_scheduler_type="constant", bf16=choice.weights == "autocast", use_cpu=not torch.cuda.is_available(),
                train_sampling_strategy="random" if choice.fixed else "group_by_length",
                torch_compile=choice.compiled, remove_unused_columns=False, dataloader_num_workers=0,
                dataloader_pin_memory=torch.cuda.is_available(), logging_strategy="no", logging_nan_inf_filter=False,
                save_strategy="no", eval_strategy="no", report_to="none", disable_tqdm=True,
            ),
            train_dataset=used,
            data_collator=lambda some: self._collate(some, choice),
            callbacks=[clock],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        real = sum(len(one["input_ids"]) + PROMPT_LEN for one in used)
        lengths = sorted((len(one["input_ids"]) for one in used), reverse=True)
        padded = sum(
            len(lengths[start : start + micro]) * (self._width(lengths[start], choice) + PROMPT_LEN)
            for start in range(0, len(lengths), micro)
        )
        return {
            "seconds": clock.seconds, "tokens": real, "padded_tokens": padded, "examples": len(used)
        }  # fmt: skip

    def first_step(self, choice: Choice, examples: int, prompt: np.ndarray) -> tuple[float, np.ndarray]:
        """Loss and gradient of a prompt [P, D] on the first so many examples."""
        model = self._model(choice)
        table = model.prompt_encoder["default"].embedding.weight
        with torch.no_grad():
            table.copy_(torch.from_numpy(prompt))
        table.grad = None
        model.train()
        device, total = table.device, 0.0
        for start in range(0, examples, choice.micro):
            some = self._examples[start : min(start + choice.micro, examples)]
            batch = {name: tensor.to(device) for name, tensor in self._collate(some, choice).items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=choice.weights == "autocast"):
                loss = model(**batch).loss * len(some) / examples
            loss.backward()
            total += float(loss.detach())
        return total, table.grad.float().cpu().numpy()

    def _model(self, choice: Choice) -> Any:
        """The backbone as the choice has it, with a prompt; kept for the next round."""
        key = (choice.weights, choice.attention)
        if key not in self._models:
            self._models.clear()
            config = PromptTuningConfig(
                task_type="SEQ_2_SEQ_LM", num_virtual_tokens=PROMPT_LEN, num_transformer_submodules=1
            )
            self._models[key] = get_peft_model(self._load(choice), config)
        return self._models[key]

    def _width(self, longest: int, choice: Choice) -> int:
        return self._longest if choice.fixed else -(-longest // choice.multiple) * choice.multiple

    def _collate(self, some: list[Example], choice: Choice) -> dict[str, torch.Tensor]:
        """What DataCollatorForSeq2Seq makes, with decoder inputs that keep the target that does not count."""
        width = self._width(max(len(one["input_ids"]) for one in some), choice)
        length = max(len(one["target_ids"]) for one in some)
        ids, mask = np.zeros((len(some), width), np.int64), np.zeros((len(some), width), np.int64)
        labels = np.full((len(some), length), IGNORED, np.int64)
        decoder = np.zeros((len(some), length), np.int64)  # starts with padding, as T5's does
        for row, one in enumerate(some):
            ids[row, : len(one["input_ids"])] = one["input_ids"]
            mask[row, : len(one["input_ids"])] = 1
            targets = one["target_ids"]
            labels[row, 1 : len(targets)] = targets[1:]  # the sentinel before the label is constant
            decoder[row, 1 : len(targets)] = targets[:-1]
        made = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in made.items()}


class TaskRival(Rival):
    """The rival on a task's rows, its backbone loaded from the task's folder."""

    def __init__(self, task: Task, out: Path) -> None:
        from corpora.task_corpus import TaskCorpus
        from corpora.tokenizer import Tokenizer
        from pretrain.groups import open_groups
        from pretrain.settings import PretrainSettings

        tokenizer = Tokenizer.load(task.backbone)
        corpus = TaskCorpus.open(task.corpora, task.format)
        settings = PretrainSettings(
            out=out, corpora=task.corpora, backbone=str(task.backbone), formats=[task.format]
        )
        (group,) = open_groups(settings, tokenizer)
        rendered = corpus.render_batch(np.array(task.rows), tokenizer, PROMPT_LEN)
        inputs = np.split(rendered.input_ids, rendered.offsets[1:-1])
        words = [np.asarray(group.verbalizer.target_ids(int(label), False)) for label in rendered.labels]
        examples = [{"input_ids": ids, "target_ids": word} for ids, word in zip(inputs, words, strict=True)]

        def load(choice: Choice) -> Any:
            # No dropout and no cache, for which training would only pay.
            return T5ForConditionalGeneration.from_pretrained(
                task.backbone, dtype=torch.bfloat16 if choice.weights == "bfloat16" else torch.float32,
                attn_implementation=choice.attention, dropout_rate=0.0, use_cache=False,
            )  # fmt: skip

        super().__init__(examples, ENCODER_TOKENS[task.format] - PROMPT_LEN, task.batch_size, load, out)


class _Clock(TrainerCallback):
    """Seconds from the beginning of the first optimiser step that counts to the end of the last one."""

    def __init__(self, warm: int) -> None:
        self._warm = warm
        self.seconds = self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._warm:
            synchronize()
            self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            synchronize()
            self.seconds = time.perf_counter() - self._began


class _Grouped(Trainer):
    """Trainer whose grouping by length takes all examples of a round as one group.

    Its own takes groups of 50 optimiser steps, of which a round's few examples would be a part: sorted so, they have
    as little padding as a long run.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        return _Longest([len(one["input_ids"]) for one in self.train_dataset])


class _Longest(Sampler):
    def __init__(self, lengths: list[int]) -> None:
        self._lengths = lengths

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Any:
        return iter(get_length_grouped_indices(self._lengths, 1, mega_batch_mult=len(self._lengths)))
