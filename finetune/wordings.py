"""Which of a task's wordings a seed takes: each is scored on its dev examples by the frozen backbone, without a soft prompt.

Dev alone decides, not the training examples beside it: dev is what a seed chooses by, and it is the same for every number of
training examples, so that a curve over them keeps one wording. Dev chooses the step and the learning rate as well, which makes
its own score too high, as every choice does; test is not looked at.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corpora.common.errors import UserError, at
from corpora.common.files import hash_json, write_text_atomic
from finetune.calibrate import ItemSet, score_sets
from finetune.draws import IntArray
from finetune.methods import Row as MethodRow
from finetune.settings import FewshotSettings
from finetune.task import BY_DEV, PatternKind, Task
from pretrain.backbone import Backbone

FILE = "wordings.jsonl"
# Settings under which other scores come out, and so perhaps another choice.
DECIDING = ("calibration", "dtype", "length_normalised", "prompt_len", "weights")
LOOK_EVERY = 0.2  # seconds between looks at what another process has chosen


@dataclass(frozen=True)
class Candidate:
    """A wording and its score: accuracy and mean loss of the right labels over the dev examples."""

    name: str
    pattern: str
    verbalizer: tuple[str, ...]
    accuracy: float
    loss: float

    def row(self) -> dict[str, Any]:
        """As it stands in `wordings.jsonl`."""
        loss = round(self.loss, 6) if np.isfinite(self.loss) else None
        return {
            "name": self.name, "pattern": self.pattern, "verbalizer": list(self.verbalizer),
            "accuracy": round(self.accuracy, 6), "loss": loss,
        }  # fmt: skip


def best(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate with the highest accuracy, of equals the one with the lower loss, then the earlier in the file."""
    return min(candidates, key=lambda one: (-one.accuracy, one.loss if np.isfinite(one.loss) else np.inf))


def distinct(task: Task, kind: PatternKind) -> dict[str, Task]:
    """The wordings that differ under one kind of pattern, by name; of equal ones the first stands for all."""
    found: dict[tuple[str, tuple[str, ...]], tuple[str, Task]] = {}
    for name in task.wording_names():
        worded = task.worded(name)
        found.setdefault((worded.pattern_text(kind), worded.verbalizer), (name, worded))
    return dict(found.values())


def variants(
    task: Task, row: MethodRow, inits: Sequence[str], wordings: Sequence[str]
) -> list[tuple[str, str]]:
    """(start, wording) of every line that a method has in the table.

    Starts differ only where the prompt's is random, and of wordings that are the same under the method's pattern the
    first stands for all.

    Raises:
        UserError: the task's file has no such wording.
    """
    found: dict[object, str] = {}
    for name in wordings:
        by_dev = name == BY_DEV and len(distinct(task, row.pattern)) > 1
        worded = task if name == BY_DEV else task.worded(name)
        found.setdefault(BY_DEV if by_dev else (worded.pattern_text(row.pattern), worded.verbalizer), name)
    starts = inits if row.spec.init == "random" else inits[:1]
    return [(init, wording) for wording in found.values() for init in starts]


def used_wordings(task: Task, row: MethodRow, wordings: Sequence[str]) -> tuple[str, ...]:
    """The wordings that a method of a run uses: those that are asked for, and the candidates of dev's choice.

    Raises:
        UserError: the task's file has no such wording.
    """
    asked = [wording for _, wording in variants(task, row, ("",), wordings)]
    by_dev = distinct(task, row.pattern) if BY_DEV in asked else {}
    return tuple(dict.fromkeys((*(name for name in asked if name != BY_DEV), *by_dev)))


def score_wordings(
    backbone: Backbone,
    sets: Mapping[str, ItemSet],
    tasks: Mapping[str, Task],
    kind: PatternKind,
    *,
    batch_tokens: int,
    length_normalised: bool,
) -> list[Candidate]:
    """Score wordings with the backbone alone.

    Args:
        backbone: the frozen model.
        sets: wording -> the dev examples as it renders them, in the order of the file.
        tasks: wording -> the task under it.
        kind: which pattern of the wordings this is.
        batch_tokens, length_normalised: see `score_items`.
    """
    scores = score_sets(
        backbone,
        list(sets.values()),
        None,
        batch_tokens=batch_tokens,
        length_normalised=length_normalised,
    )
    return [
        Candidate(name, tasks[name].pattern_text(kind), tasks[name].verbalizer, one.accuracy, one.loss)
        for name, one in zip(sets, scores, strict=True)
    ]


def choice_key(
    settings: FewshotSettings,
    task: Task,
    data_fingerprint: str,
    backbone: Backbone,
    kind: PatternKind,
    seed: int,
    dev: IntArray,
) -> dict[str, Any]:
    """What a choice hangs on, but for the texts of its candidates: the fields that its line starts with."""
    return {
        "task": task.name,
        "task_version": task.version,
        "data_fingerprint": data_fingerprint,
        "backbone": backbone.name,
        "backbone_fingerprint": backbone.fingerprint,
        "kind": kind,
        "seed": seed,
        "n_dev": len(dev),
        "examples": hash_json(sorted(dev.tolist()))[:16],
        "max_tokens": task.encoder_tokens(kind),
        "shorten": list(task.shorten),
        **settings.model_dump(mode="json", include=set(DECIDING)),
    }


class WordingChoices:
    """The choices of a run, as `wordings.jsonl` keeps them.

    A choice that is there is taken as it is: a run that goes on, perhaps on another machine whose last bit differs, must
    not go on with other words.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read what a run has chosen so far.

        Raises:
            UserError: a line is not one of a choice.
        """
        self.path = Path(folder) / FILE
        self.rows: dict[str, dict[str, Any]] = {}
        self._new = False
        self._read()

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                self.rows[self._name(row, row["candidates"])] = row
                _ = row["chosen"]
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"{at(self.path, number)}: not a choice of a wording; remove it") from error

    def known(self, key: dict[str, Any], tasks: Mapping[str, Task], kind: PatternKind) -> str | None:
        """The wording that was chosen before among the same candidates, or None."""
        texts = [
            {"name": name, "pattern": task.pattern_text(kind), "verbalizer": list(task.verbalizer)}
            for name, task in tasks.items()
        ]
        row = self.rows.get(self._name(key, texts))
        return str(row["chosen"]) if row else None

    def wait_for(self, key: dict[str, Any], tasks: Mapping[str, Task], kind: PatternKind) -> str:
        """What another process chooses and writes down: all processes of a run have the same cells."""
        while (found := self.known(key, tasks, kind)) is None:
            time.sleep(LOOK_EVERY)  # the launcher ends this process when the other one dies
            self._read()
        return found

    def add(self, key: dict[str, Any], candidates: Sequence[Candidate]) -> str:
        """Choose, and note the choice.

        Returns:
            The wording's name.
        """
        chosen = best(candidates).name
        row = {**key, "candidates": [candidate.row() for candidate in candidates], "chosen": chosen}
        self.rows[self._name(row, row["candidates"])] = row
        self._new = True
        return chosen

    def save(self) -> None:
        """Write `wordings.jsonl` where there is something new to write."""
        if self._new:
            lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in self.rows.values())
            write_text_atomic(self.path, "".join(f"{line}\n" for line in lines))
            self._new = False

    @staticmethod
    def _name(key: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]) -> str:
        texts = [[one["name"], one["pattern"], one["verbalizer"]] for one in candidates]
        names = (
            "task", "task_version", "data_fingerprint", "backbone_fingerprint", "kind", "seed", "examples", "max_tokens", "shorten",
            *DECIDING,
        )  # fmt: skip
        # A line of an earlier release lacks the last of them: it is nobody's choice now.
        return hash_json([{name: key.get(name) for name in names}, texts])
