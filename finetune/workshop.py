"""What a process needs to run cells, loaded once: backbones, data, drawn and rendered examples, prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from corpora.common.errors import UserError
from corpora.common.rng import generator
from corpora.tokenizer import LETTERS
from finetune.backbones import Backbones
from finetune.calibrate import ItemSet, content_free_items
from finetune.datasets import TaskData, load_task
from finetune.draws import Draw, IntArray, batches, draw_for, sampled_test_rows
from finetune.inputs import EncodedRow, Item, Renderer, encode_rows
from finetune.methods import Row
from finetune.rows import LabelledRow
from finetune.settings import FewshotSettings
from finetune.task import BY_DEV, FIRST, PatternKind, Task
from finetune.tune import Trial
from finetune.wordings import WordingChoices, choice_key, distinct, score_wordings
from pretrain.artifact import PromptInfo, check_backbone, load_prompt, prompt_fingerprint, prompts_folder
from pretrain.prompts import init_prompt

COST_SAMPLE = 8  # rows whose lengths stand for a task's
DRAWN_KEPT = 8  # rendered draws; a whole training set may be 100,000 rows, and the rates of a choice come one after the other

DrawnKey = tuple[str, str, PatternKind, str, int, int]  # task, backbone, pattern, wording, shots, seed


@dataclass(frozen=True)
class Cell:
    """One run of one method: the smallest thing that has a row in results.jsonl."""

    task: str  # as the settings name it
    shots: int
    row: Row
    seed: int
    learning_rate: float
    init: str = "normal"  # of a prompt that is not pre-trained
    wording: str = FIRST  # as the settings ask for it: a wording's name, or dev


@dataclass(frozen=True)
class Drawn:
    """The rendered rows that the learning rates of a choice, and methods of one pattern, have in common."""

    train: list[Item]
    dev: list[Item]
    content_free: list[Item]


class Workshop(Backbones):
    """Loads what cells ask for and keeps it; two cells that share a draw, a pattern or a backbone share its object."""

    def __init__(self, settings: FewshotSettings, follows: bool = False) -> None:
        """Load nothing yet.

        Args:
            settings: of the run.
            follows: another process of the same run chooses wordings.
        """
        super().__init__(settings)
        self.follows = follows
        self._tasks: dict[str, Task] = {}
        self._data: dict[str, TaskData] = {}
        self._encoded: dict[tuple[str, str, str, int], EncodedRow] = {}
        self._renderers: dict[tuple[str, str, PatternKind, str], Renderer] = {}
        self._items: dict[tuple[str, str, PatternKind, str], list[Item]] = {}
        self._drawn: dict[DrawnKey, Drawn] = {}
        self._prompts: dict[str, tuple[torch.Tensor, PromptInfo]] = {}
        self._draws: dict[tuple[str, int, int], Draw] = {}
        self._worded: dict[tuple[str, str], Task] = {}
        self._choices: dict[tuple[str, str, PatternKind, int], str] = {}
        self.present: list[str] | None = None  # tasks that have data, as the settings name them
        self.left_out: dict[str, str] = {}  # task name -> why it is not run

    @cached_property
    def wordings(self) -> WordingChoices:
        """The choices of wordings that the run's folder holds, and new ones."""
        return WordingChoices(self.settings.out)

    def task(self, name: str) -> Task:
        """A task of the run."""
        if name not in self._tasks:
            self._tasks[name] = Task.load(name)
        return self._tasks[name]

    def data(self, name: str) -> TaskData:
        """A task's rows."""
        if name not in self._data:
            self._data[name] = load_task(
                self.task(name), self.settings.data, or_hub=self.settings.skip_missing
            )
        return self._data[name]

    def draw(self, name: str, shots: int, seed: int) -> Draw:
        """A seed's training and dev rows: the same for every method."""
        if (name, shots, seed) not in self._draws:
            labels = [row.label for row in self.data(name).train]
            self._draws[name, shots, seed] = draw_for(
                self.task(name), labels, self.settings.asked, shots, seed
            )
        return self._draws[name, shots, seed]

    def test_rows(self, name: str) -> IntArray:
        """Positions of the test rows that are scored."""
        return sampled_test_rows(len(self.data(name).test), self.settings.max_test, self.task(name).name)

    def renderer(self, cell: Cell) -> Renderer:
        """A cell's pattern and label words, for its backbone's tokenizer."""
        which, kind = cell.row.spec.backbone, cell.row.pattern
        return self._renderer(cell.task, which, kind, self.wording(cell))

    def _renderer(self, name: str, which: str, kind: PatternKind, wording: str) -> Renderer:
        key = (name, which, kind, wording)
        if key not in self._renderers:
            try:
                self._renderers[key] = Renderer(
                    self._worded_task(name, wording), kind, self.tokenizer(which), self.settings.prompt_len
                )
            except UserError as error:
                where = "" if wording == FIRST else f" (wording {wording})"
                raise UserError(f"{error}{where}") from error
        return self._renderers[key]

    def task_of(self, cell: Cell) -> Task:
        """A cell's task under its wording: what is rendered, and what a tuned prompt is saved with."""
        return self._worded_task(cell.task, self.wording(cell))

    def _worded_task(self, name: str, wording: str) -> Task:
        key = (name, wording)
        if key not in self._worded:
            self._worded[key] = self.task(name).worded(wording)
        return self._worded[key]

    def wording(self, cell: Cell) -> str:
        """The name of a cell's wording; where dev chooses it, the choice for its seed, pattern and backbone.

        Raises:
            UserError: the task has no such wording, or one has words that the backbone cannot spell.
        """
        if cell.wording != BY_DEV:
            return cell.wording
        which, kind = cell.row.spec.backbone, cell.row.pattern
        key = (cell.task, which, kind, cell.seed)
        if key not in self._choices:
            self._choices[key] = self._choose_wording(cell, which, kind)
        return self._choices[key]

    def _choose_wording(self, cell: Cell, which: str, kind: PatternKind) -> str:
        task, tasks = self.task(cell.task), distinct(self.task(cell.task), kind)
        if len(tasks) == 1:
            return FIRST
        dev = self.draw(cell.task, cell.shots, cell.seed).dev
        backbone = self.backbone(which)
        data = self.data(cell.task).fingerprint
        line = choice_key(self.settings, task, data, backbone, kind, cell.seed, dev)
        if self.follows:
            return self.wordings.wait_for(line, tasks, kind)
        known = self.wordings.known(line, tasks, kind)
        if known is not None:
            return known
        encoded = self._encoded_rows(cell.task, which, "train", dev)
        sets = {}
        for name in tasks:
            renderer = self._renderer(cell.task, which, kind, name)
            items = renderer.render(encoded)
            free = content_free_items(renderer, items) if self.settings.calibration else ()
            sets[name] = ItemSet(items, renderer.verbalizer, content_free=free)
        candidates = score_wordings(
            self.net(which).backbone,
            sets,
            tasks,
            kind,
            batch_tokens=self.options(which).batch_tokens,
            length_normalised=self.settings.length_normalised,
        )
        return self.wordings.add(line, candidates)

    def items(self, cell: Cell, split: str, rows: IntArray) -> list[Item]:
        """Rendered rows of `train` or `test`; texts are tokenised once for all patterns."""
        encoded = self._encoded_rows(cell.task, cell.row.spec.backbone, split, rows)
        return self.renderer(cell).render(encoded)

    def _encoded_rows(self, name: str, which: str, split: str, rows: IntArray) -> list[EncodedRow]:
        source: list[LabelledRow] = getattr(self.data(name), split)
        keys = [(name, which, split, int(row)) for row in rows]
        new = [key for key in dict.fromkeys(keys) if key not in self._encoded]
        for key, row in zip(
            new, encode_rows(self.tokenizer(which), [source[key[3]] for key in new]), strict=True
        ):
            self._encoded[key] = row
        return [self._encoded[key] for key in keys]

    def test_items(self, cell: Cell) -> list[Item]:
        """Rendered test rows under a cell's pattern."""
        key = (cell.task, cell.row.spec.backbone, cell.row.pattern, self.wording(cell))
        if key not in self._items:
            self._items[key] = self.items(cell, "test", self.test_rows(cell.task))
        return self._items[key]

    def content_free(self, cell: Cell, items: Sequence[Item]) -> list[Item]:
        """What scores of a cell's items are calibrated by; nothing where the settings ask for no calibration."""
        if self.settings.calibration is None:
            return []
        return content_free_items(self.renderer(cell), items)

    def trial(self, cell: Cell) -> Trial:
        """What a cell trains on, in which order and from where."""
        task, drawn = self.task(cell.task), self._drawn_items(cell)
        return Trial(
            renderer=self.renderer(cell),
            train=drawn.train,
            dev=drawn.dev,
            content_free=drawn.content_free,
            order=self.order(cell),
            eval_every=self.settings.eval_every_of(task.name),
            learning_rate=cell.learning_rate,
            start_PD=self.start(cell),
            name=f"{task.name} {cell.row.method} seed {cell.seed}",
            same_start=f"{task.name} {cell.row.method} {cell.shots} {cell.seed} {cell.init} {cell.wording}",
        )

    def _drawn_items(self, cell: Cell) -> Drawn:
        which, kind = cell.row.spec.backbone, cell.row.pattern
        key = (cell.task, which, kind, self.wording(cell), cell.shots, cell.seed)
        if key not in self._drawn:
            rows = self.draw(cell.task, cell.shots, cell.seed)
            train, dev = self.items(cell, "train", rows.train), self.items(cell, "train", rows.dev)
            while len(self._drawn) >= DRAWN_KEPT:
                del self._drawn[next(iter(self._drawn))]  # the oldest
            self._drawn[key] = Drawn(train, dev, self.content_free(cell, dev))
        return self._drawn[key]

    def order(self, cell: Cell) -> list[IntArray]:
        """A cell's batches: positions among its training examples, one array an optimiser step."""
        task, settings = self.task(cell.task), self.settings
        n = len(self.draw(cell.task, cell.shots, cell.seed).train)
        epochs = settings.epochs_of(task.name, cell.row.spec.trains)
        return batches(n, settings.batch_size, epochs, cell.seed, task.name)

    def start(self, cell: Cell) -> torch.Tensor | None:
        """The prompt [P, D] that a cell starts from: a seed's random one, the same for all methods, or a pre-trained one."""
        if cell.row.spec.trains == "backbone":
            return None
        if cell.row.group is not None:
            return self.prompt(cell.row.group)[0]
        which = cell.row.spec.backbone
        return init_prompt(
            cell.init,
            self.backbone(which),
            self.tokenizer(which),
            self.settings.prompt_len,
            generator(cell.seed, "prompt", cell.init, self.task(cell.task).name),
            words=self.task_of(cell).verbalizer,
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
        return cell.init

    def label_words(self, cell: Cell) -> list[str]:
        """Words of the labels, for the row: the verbalizer, or letters where each row has options of its own."""
        task = self.task_of(cell)
        return list(task.verbalizer) or list(LETTERS[: task.max_options])

    def word_search(self, cell: Cell) -> dict[str, Any] | None:
        """How `ppt task words` found a cell's label words, for the row; None where it did not."""
        name = self.wording(cell)
        found = {wording.name: wording.search for wording in self.task(cell.task).wordings}.get(name)
        return found.model_dump(mode="json") if found else None

    def cost(self, cells: Sequence[Cell], steps: int) -> float:
        """About how many encoder tokens some cells of one row read in all, a step back counted twice a step forward."""
        settings, cell = self.settings, cells[0]
        drawn = self.draw(cell.task, cell.shots, cell.seed)
        sample = self.items(cell, "train", drawn.train[:COST_SAMPLE])
        length = settings.prompt_len + float(np.mean([len(item.input_ids) for item in sample]))
        dev_scores = steps / settings.eval_every_of(self.task(cell.task).name) + len(cells)
        scored = len(drawn.dev) * dev_scores + len(self.test_rows(cell.task))
        return length * (3 * steps * min(settings.batch_size, len(drawn.train)) + scored)

    def forget_task(self, name: str) -> None:
        """Let go of a task's rendered rows."""
        self._encoded = {key: row for key, row in self._encoded.items() if key[0] != name}
        self._items = {key: items for key, items in self._items.items() if key[0] != name}
        self._drawn = {key: items for key, items in self._drawn.items() if key[0] != name}
