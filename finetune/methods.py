"""Every row of the paper's main table, as data: what is trained, from where, with which pattern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune.task import PatternKind, Task


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    title: str
    trains: Literal["prompt", "backbone"]
    init: Literal["random", "pretrained", "none"]  # of the prompt
    pattern: PatternKind
    backbone: Literal["main", "lm"]  # `lm`: the backbone that was trained further as a language model
    group: Literal["own", "unified"] = "own"  # whose pre-trained prompt: the task's format's, or `unified`


METHODS: dict[str, Method] = {
    "ft": Method("FT", "backbone", "none", "hard", "main"),
    "vanilla_pt": Method("Vanilla PT", "prompt", "random", "plain", "main"),
    "hybrid_pt": Method("Hybrid PT", "prompt", "random", "hard", "main"),
    "lm_adaption": Method("LM Adaption", "prompt", "random", "plain", "lm"),
    "ppt": Method("PPT", "prompt", "pretrained", "plain", "main"),
    "hybrid_ppt": Method("Hybrid PPT", "prompt", "pretrained", "hard", "main"),
    "unified_ppt": Method("Unified PPT", "prompt", "pretrained", "unified", "main", "unified"),
}


@dataclass(frozen=True)
class Row:
    """A method on a task: what is run, and which rows of the table its result fills."""

    method: str
    pattern: PatternKind
    group: str | None  # format whose pre-trained prompt it starts from; None: no pre-trained prompt
    fills: tuple[str, ...] = ()  # other rows that the same run stands for

    @property
    def spec(self) -> Method:
        """The method's line in the table."""
        return METHODS[self.method]


def rows_for(task: Task, methods: tuple[str, ...]) -> list[Row]:
    """What to run so that every asked row of the table is filled.

    In a task of more than five labels PPT starts from the `unified` prompt with the multiple-choice pattern: that is
    Unified PPT, so it runs once and fills both rows (method.md, downstream patterns).

    Raises:
        UserError: the task's file lacks a pattern that a method needs.
    """
    rows = []
    for name in methods:
        spec = METHODS[name]
        if name == "unified_ppt" and task.format == "unified" and "ppt" in methods:
            continue
        task.pattern_text(spec.pattern)
        group = None
        if spec.init == "pretrained":
            group = "unified" if spec.group == "unified" else task.format
        fills = (
            ("unified_ppt",)
            if name == "ppt" and task.format == "unified" and "unified_ppt" in methods
            else ()
        )
        rows.append(Row(name, spec.pattern, group, fills))
    return rows
