"""What was chosen among a task's wordings: every candidate's score by seed, from `wordings.jsonl`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from corpora.common.blocks import Entry, Section, Table, Text
from corpora.common.errors import UserError
from finetune.report_read import Run, read_lines
from finetune.wordings import FILE

Choice = dict[str, Any]  # a line of wordings.jsonl
KINDS = {"plain": "plain", "hard": "hard prompt", "unified": "multiple choice"}


def wording_sections(runs: Sequence[Run]) -> list[Section]:
    """A section with the candidates' means and how often each was chosen, and one with every seed; none where dev chose nothing.

    Raises:
        UserError: a line of a run's `wordings.jsonl` is not one of a choice.
    """
    choices: dict[tuple[str, str, str, int], Choice] = {}
    for run in runs:
        path = run.folder / FILE
        for number, line in enumerate(read_lines(path) if path.exists() else [], start=1):
            try:
                key = (line["task"], line["kind"], line["backbone_fingerprint"], int(line["seed"]))
                _ = line["candidates"][0]["accuracy"], line["chosen"], line["n_dev"]
            except (KeyError, IndexError, TypeError) as error:
                raise UserError(f"{path} line {number}: expected a choice of a wording") from error
            choices.setdefault(key, line)
    if not choices:
        return []
    groups: dict[tuple[str, str, str], list[Choice]] = {}
    for key, choice in choices.items():
        groups.setdefault(key[:3], []).append(choice)
    n_dev = " or ".join(map(str, sorted({choice["n_dev"] for choice in choices.values()})))
    text = (
        f"Accuracy and loss of the backbone alone, without any soft prompt, on each seed's {n_dev} development examples: "
        "means over seeds. Each seed took the wording with the highest accuracy, of equals the one with the lower loss, then "
        "the earlier in the task's file. With so few examples, differences of a few points say nothing."
    )
    head = ("task", "pattern", "wording", "words", "text", "accuracy, %", "loss", "chosen by")
    table = Table(head, tuple(_lines(groups)), words=True)
    return [
        Section("Wordings chosen on development examples", (Text(text), table)),
        Section("Wordings of every seed", (_seeds(groups),), folded=True),
    ]


def _title(group: tuple[str, str, str], groups: dict[tuple[str, str, str], list[Choice]]) -> tuple[str, str]:
    """Task and pattern; the backbone beside it where the report has several."""
    task, kind, backbone = group
    several = len({other[2] for other in groups if other[:2] == group[:2]}) > 1
    name = str(groups[group][0].get("backbone") or backbone[:8]).rstrip("/").rsplit("/", 1)[-1]
    return task, KINDS.get(kind, kind) + (f", {name}" if several else "")


def _lines(groups: dict[tuple[str, str, str], list[Choice]]) -> list[tuple[Entry, ...]]:
    body: list[tuple[Entry, ...]] = []
    for group, choices in groups.items():
        task, pattern = _title(group, groups)
        for candidate in choices[0]["candidates"]:
            name = candidate["name"]
            scores = [one for choice in choices for one in choice["candidates"] if one["name"] == name]
            losses = [one["loss"] for one in scores if one["loss"] is not None]
            n = sum(choice["chosen"] == name for choice in choices)
            body.append(
                (
                    Entry(task),
                    Entry(pattern),
                    Entry(name),
                    Entry(", ".join(candidate["verbalizer"]) or "letters"),
                    Entry(candidate["pattern"]),
                    Entry(f"{100 * statistics.fmean(one['accuracy'] for one in scores):.1f}", strong=n > 0),
                    Entry(f"{statistics.fmean(losses):.2f}" if losses else "–"),
                    Entry(f"{n} of {len(choices)} seeds", quiet=n == 0),
                )
            )
    return body


def _seeds(groups: dict[tuple[str, str, str], list[Choice]]) -> Table:
    body = []
    for group, choices in groups.items():
        task, pattern = _title(group, groups)
        for choice in sorted(choices, key=lambda one: int(one["seed"])):
            for one in choice["candidates"]:
                loss = "–" if one["loss"] is None else f"{one['loss']:.3f}"
                body.append(
                    (
                        Entry(task),
                        Entry(pattern),
                        Entry(str(choice["seed"])),
                        Entry(one["name"]),
                        Entry(f"{100 * one['accuracy']:.1f}", strong=one["name"] == choice["chosen"]),
                        Entry(loss),
                    )
                )
    return Table(("task", "pattern", "seed", "wording", "accuracy, %", "loss"), tuple(body), words=True)
