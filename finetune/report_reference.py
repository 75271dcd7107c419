"""Figures of the paper beside a run's, where they are asked for; they are unverified and say so wherever they stand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from corpora.common.blocks import Entry, Notes, Section, Table, Text
from corpora.common.settings import read_yaml
from finetune.report_tables import METHOD_NAMES, Places, percent

FILE = Path(__file__).with_name("reference.yaml")
UNVERIFIED = "unverified"


@dataclass(frozen=True)
class Reference:
    """The figures of `reference.yaml`.

    Attributes:
        source: where they are said to stand.
        backbone: what they were made with.
        examples: training examples of a task.
        tasks: task names.
        scores: (method, task) -> mean and standard deviation in percent.
    """

    source: str
    backbone: str
    examples: int
    tasks: tuple[str, ...]
    scores: dict[tuple[str, str], tuple[float, float]]


@cache
def reference() -> Reference:
    """Read the figures that come with the project."""
    values: dict[str, Any] = read_yaml(FILE)
    scores = {
        (method, task): (float(mean), float(deviation))
        for method, figures in values["methods"].items()
        for task, (mean, deviation) in zip(values["tasks"], figures, strict=True)
    }
    return Reference(
        str(values["source"]),
        str(values["backbone"]),
        int(values["examples"]),
        tuple(values["tasks"]),
        scores,
    )


def reference_section(places: Places, shots: dict[str, int]) -> Section:
    """This run's means beside the paper's, for the tasks and methods that both have."""
    known = reference()
    tasks = [task for task, n in shots.items() if task in known.tasks and n == known.examples]
    warning = Notes(
        (
            f"Every figure marked “?” is {UNVERIFIED}: recalled, not read from the paper ({known.source}). Do not cite it and "
            f"do not test against it; it was made with {known.backbone}, other code and other draws.",
        ),
        warning=True,
    )
    if not tasks:
        named = ", ".join(known.tasks)
        text = (
            f"No task of this report has one: reference figures are for {known.examples} examples of {named}."
        )
        return Section(f"Reference figures ({UNVERIFIED})", (warning, Text(text)))
    own: dict[tuple[str, str], list[str]] = {}
    for (line, task, n), stat in sorted(places.items(), key=lambda place: place[0]):
        if task in tasks and n == known.examples:
            text = f"{percent(stat.mean)} ± {percent(stat.std)}"
            own.setdefault((line.method, task), []).append(text)
    body = []
    for method, title in METHOD_NAMES.items():
        if not any((method, task) in own for task in tasks):
            continue
        entries = [Entry(title)]
        for task in tasks:
            mean, deviation = known.scores[method, task]
            entries.append(Entry("; ".join(own.get((method, task), ["–"]))))
            entries.append(Entry(f"{mean:.1f} ± {deviation:.1f} ?", quiet=True))
        body.append(tuple(entries))
    head = ["method"]
    for task in tasks:
        head += [task, f"{task}, {UNVERIFIED}"]
    return Section(f"Reference figures ({UNVERIFIED})", (warning, Table(tuple(head), tuple(body))))
