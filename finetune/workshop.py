"""What a process needs to run cells, loaded once: backbones, data, drawn and rendered examples, prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from corpora.common.errors import UserError
from corpora.common.rng import generator
from corpora.tokenizer import LETTERS, Tokenizer
from finetune.calibrate import content_free_items
from finetune.datasets import TaskData, load_task
from finetune.draws import Draw, IntArray, batches, draw_for, sampled_test_rows
from finetune.inputs import EncodedRow, Item, Renderer, encode_rows
from finetune.memory import fitting_tokens
from finetune.methods import METHODS, Row
from finetune.rows import LabelledRow
from finetune.settings import FewshotSettings
from finetune.task import PatternKind, Task
from finetune.tune import Trial, TuneOptions
from pretrain.artifact import PromptInfo, check_backbone, load_prompt, prompt_fingerprint, prompts_folder
from pretrain.backbone import Backbone, load_backbone
from pretrain.forward import ForwardOptions, PromptedBackbone
from pretrain.prompts import init_prompt

CPU_TOKENS = 4096  # of a micro-batch
COST_SAMPLE = 8  # rows whose lengths stand for a task's


@dataclass(frozen=True)
class Cell:
    """One run of one method: the smallest thing that has a row in results.jsonl."""

    task: str  # as the settings name it
    shots: int
    row: Row
    seed: int
    learning_rate: float


class Workshop:
    """Loads what cells ask for and keeps it; two cells that share a draw, a pattern or a backbone share its object."""

    def __init__(self, settings: FewshotSettings) -> None:
        self.settings = settings
        self._tasks: dict[str, Task] = {}
        self._data: dict[str, TaskData] = {}
        self._backbones: dict[str, Backbone] = {}
        self._nets: dict[str, PromptedBackbone] = {}
        self._tokenizers: dict[str, Tokenizer] = {}
        self._encoded: dict[tuple[str, str, str, int], EncodedRow] = {}
        self._renderers: dict[tuple[str, str, PatternKind], Renderer] = {}
        self._items: dict[tuple[str, str, PatternKind], list[Item]] = {}
        self._prompts: dict[str, tuple[torch.Tensor, PromptInfo]] = {}

    def task(self, name: str) -> Task:
        """A task of the run."""
        if name not in self._tasks:
            self._tasks[name] = Task.load(name)
        return self._tasks[name]

    def data(self, name: str) -> TaskData:
        """A task's rows."""
        if name not in self._data:
            self._data[name] = load_task(self.task(name), self.settings.data)
        return self._data[name]

    def backbone(self, which: str) -> Backbone:
        """The frozen backbone `main` or `lm`.

        Raises:
            UserError: it is not given, cannot be loaded, or its tokenizer does not fit it.
        """
        settings = self.settings
        if which not in self._backbones:
            methods = [METHODS[name] for name in settings.methods]
            computes = any(spec.trains == "prompt" and spec.backbone == which for spec in methods)
            self._backbones[which] = load_backbone(
                settings.needs(which),
                dtype=settings.dtype,
                # Full tuning loads its own; this one is then asked what it is, and need not leave its file.
                device=settings.resolved_device if computes else "cpu",
            )
        return self._backbones[which]

    def net(self, which: str) -> PromptedBackbone:
        """The backbone as prompts are tuned on it: frozen, examples end to end."""
        if which not in self._nets:
            on_gpu = torch.device(self.settings.resolved_device).type == "cuda"
            options = ForwardOptions("flex", compiled=True) if on_gpu else ForwardOptions()
            self._nets[which] = PromptedBackbone(self.backbone(which), options).requires_grad_(False).eval()
        return self._nets[which]

    def options(self, which: str) -> TuneOptions:
        """What all cells on a backbone share.

        On a CPU micro-batches of 4,096 tokens are the fastest: at 2.6M weights 7 % less time than 1,024 in float32 and 21 % less in
        bfloat16. On a GPU as many as its memory holds.
        """
        settings, device = self.settings, torch.device(self.settings.resolved_device)
        tokens = settings.batch_tokens
        if tokens is None and device.type == "cuda":
            tokens = fitting_tokens(self.backbone(which), torch.cuda.mem_get_info(device)[0])
        return TuneOptions(
            eval_every=settings.eval_every,
            batch_tokens=tokens or CPU_TOKENS,
            weight_decay=settings.weight_decay,
            ft_weight_decay=settings.ft_weight_decay,
            clip=settings.clip,
            count=settings.count,
            length_normalised=settings.length_normalised,
            patience=settings.patience,
        )

    def tokenizer(self, which: str) -> Tokenizer:
        """The tokenizer beside a backbone."""
        if which not in self._tokenizers:
            backbone = self.backbone(which)
            tokenizer = backbone.tokenizer()
            backbone.check_tokenizer(tokenizer)
            self._tokenizers[which] = tokenizer
        return self._tokenizers[which]

    def draw(self, name: str, shots: int, seed: int) -> Draw:
        """A seed's training and dev rows: the same for every method."""
        labels = [row.label for row in self.data(name).train]
        return draw_for(self.task(name), labels, self.settings.asked, shots, seed)

    def test_rows(self, name: str) -> IntArray:
        """Positions of the test rows that are scored."""
        return sampled_test_rows(len(self.data(name).test), self.settings.max_test, self.task(name).name)

    def renderer(self, name: str, which: str, kind: PatternKind) -> Renderer:
        """One of a task's patterns for a backbone's tokenizer."""
        key = (name, which, kind)
        if key not in self._renderers:
            self._renderers[key] = Renderer(
                self.task(name), kind, self.tokenizer(which), self.settings.prompt_len
            )
        return self._renderers[key]

    def items(self, cell: Cell, split: str, rows: IntArray) -> list[Item]:
        """Rendered rows of `train` or `test`; texts are tokenised once for all patterns."""
        which = cell.row.spec.backbone
        source: list[LabelledRow] = getattr(self.data(cell.task), split)
        keys = [(cell.task, which, split, int(row)) for row in rows]
        new = [key for key in dict.fromkeys(keys) if key not in self._encoded]
        for key, row in zip(
            new, encode_rows(self.tokenizer(which), [source[key[3]] for key in new]), strict=True
        ):
            self._encoded[key] = row
        return self.renderer(cell.task, which, cell.row.pattern).render([self._encoded[key] for key in keys])

    def test_items(self, cell: Cell) -> list[Item]:
        """Rendered test rows under a cell's pattern."""
        key = (cell.task, cell.row.spec.backbone, cell.row.pattern)
        if key not in self._items:
            self._items[key] = self.items(cell, "test", self.test_rows(cell.task))
        return self._items[key]

    def content_free(self, cell: Cell, items: Sequence[Item]) -> list[Item]:
        """What scores of a cell's items are calibrated by; nothing where the settings ask for no calibration."""
        if self.settings.calibration is None:
            return []
        return content_free_items(self.renderer(cell.task, cell.row.spec.backbone, cell.row.pattern), items)

    def trial(self, cell: Cell) -> Trial:
        """What a cell trains on, in which order and from where."""
        settings, task = self.settings, self.task(cell.task)
        drawn = self.draw(cell.task, cell.shots, cell.seed)
        dev = self.items(cell, "train", drawn.dev)
        return Trial(
            renderer=self.renderer(cell.task, cell.row.spec.backbone, cell.row.pattern),
            train=self.items(cell, "train", drawn.train),
            dev=dev,
            content_free=self.content_free(cell, dev),
            order=batches(len(drawn.train), settings.batch_size, settings.epochs, cell.seed, task.name),
            learning_rate=cell.learning_rate,
            start_PD=self.start(cell),
            name=f"{task.name} {cell.row.method} seed {cell.seed}",
            same_start=f"{task.name} {cell.row.method} {cell.shots} {cell.seed}",
        )

    def start(self, cell: Cell) -> torch.Tensor | None:
        """The prompt [P, D] that a cell starts from: a seed's random one, the same for all methods, or a pre-trained one."""
        if cell.row.spec.trains == "backbone":
            return None
        if cell.row.group is not None:
            return self.prompt(cell.row.group)[0]
        which = cell.row.spec.backbone
        return init_prompt(
            self.settings.init,
            self.backbone(which),
            self.tokenizer(which),
            self.settings.prompt_len,
            generator(cell.seed, "prompt", self.settings.init, self.task(cell.task).name),
            words=self.task(cell.task).verbalizer,
        )

    def prompt(self, group: str) -> tuple[torch.Tensor, PromptInfo]:
        """The pre-trained prompt of a format.

        Raises:
            UserError: none is given, it is missing, of another length or format, or of another backbone or tokenizer
                (naming both).
        """
        if group not in self._prompts:
            settings = self.settings
            if settings.prompts is None:
                raise UserError(
                    f"the setting prompts is not given: PPT starts from the pre-trained {group} prompt; "
                    "name the run of `ppt pretrain` or leave its methods out"
                )
            folder = prompts_folder(settings.prompts) / group
            if not folder.is_dir():
                there = sorted(path.parent.name for path in folder.parent.glob("*/prompt.json"))
                raise UserError(
                    f"no {group} prompt: {folder} does not exist; found {', '.join(there) or 'none'}"
                )
            prompt_PD, info = load_prompt(folder)
            if info.format != group:
                raise UserError(
                    f"{folder} holds a prompt of the format {info.format}, expected one of {group}; "
                    "a prompt lies in the folder of its format"
                )
            check_backbone(info, self.backbone("main"), self.tokenizer("main"))
            if len(prompt_PD) != settings.prompt_len:
                raise UserError(
                    f"{folder} has {len(prompt_PD)} tokens and prompt_len is {settings.prompt_len}; make them equal"
                )
            self._prompts[group] = prompt_PD, info
        return self._prompts[group]

    def start_name(self, cell: Cell) -> str | None:
        """What a cell's prompt starts from, for its key: an initialiser's name or a prompt's fingerprint."""
        if cell.row.spec.trains == "backbone":
            return None
        if cell.row.group is not None:
            return prompt_fingerprint(self.prompt(cell.row.group)[0])
        return self.settings.init

    def label_words(self, cell: Cell) -> list[str]:
        """Words of the labels, for the row: the verbalizer, or letters where each row has options of its own."""
        task = self.task(cell.task)
        return list(task.verbalizer) or list(LETTERS[: task.max_options])

    def cost(self, cells: Sequence[Cell], steps: int) -> float:
        """About how many encoder tokens some cells of one row read in all, a step back counted twice a step forward."""
        settings, cell = self.settings, cells[0]
        drawn = self.draw(cell.task, cell.shots, cell.seed)
        sample = self.items(cell, "train", drawn.train[:COST_SAMPLE])
        length = settings.prompt_len + float(np.mean([len(item.input_ids) for item in sample]))
        scored = len(drawn.dev) * (steps / settings.eval_every + len(cells)) + len(self.test_rows(cell.task))
        return length * (3 * steps * min(settings.batch_size, len(drawn.train)) + scored)

    def forget_task(self, name: str) -> None:
        """Let go of a task's rendered rows."""
        self._encoded = {key: row for key, row in self._encoded.items() if key[0] != name}
        self._items = {key: items for key, items in self._items.items() if key[0] != name}
