"""One thing that is wrong with a task file or its data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune.rows import LabelledRow

SHOWN = 40  # characters of a text in a message


@dataclass(frozen=True)
class Problem:
    """An error keeps a run from starting, a warning is said before it starts."""

    level: Literal["error", "warning"]
    kind: str  # for programs: missing_field, unknown_label, unknown_word, same_tokens, too_few, ...
    text: str  # what there is, and what to change


def plural(n: int, what: str) -> str:
    """A count and what is counted."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def likewise(n: int, what: str) -> str:
    """The end of a line that stands for `n` more like it; empty where there is none."""
    return f"; {plural(n, what)} likewise" if n else ""


def shown_text(row: LabelledRow) -> str:
    """The beginning of a row's first text, so that it can be found."""
    text = " ".join(next(iter(row.fields.values()), "").split())
    return f'"{text[:SHOWN]}..."' if len(text) > SHOWN else f'"{text}"'
