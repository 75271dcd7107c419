"""What was chosen among a task's wordings: every candidate's score by seed, from `wordings.jsonl`; and what `ppt task words` found."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from corpora.common.blocks import Entry, Section, Table, Text
from corpora.common.errors import UserError
from finetune.report_read import Row, Run, read_lines
from finetune.report_tables import percent
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


def search_sections(rows: Iterable[Row]) -> tuple[list[Section], list[str]]:
    """A section with the searched label words of the rows and how they did in their search, and a warning where a seed of the search is reported."""
    seeds: dict[str, set[int]] = {}
    first: dict[str, Row] = {}
    for row in rows:
        if row.get("word_search"):
            search = [row["task"], row["chosen_wording"], row["verbalizer"], row["word_search"]]
            key = json.dumps(search, sort_keys=True)
            seeds.setdefault(key, set()).add(int(row["seed"]))
            first.setdefault(key, row)
    if not first:
        return [], []
    body, warnings = [], []
    for key, row in first.items():
        search, some = row["word_search"], sorted(seeds[key])
        texts = (
            row["task"], row["chosen_wording"], ", ".join(row["verbalizer"]),
            str(search["backbone"]).rstrip("/").rsplit("/", 1)[-1], KINDS.get(search["pattern"], search["pattern"]),
            str(search["seed"]), f"{percent(search['accuracy'])} of {search['n_train']}",
            f"{percent(search['dev_accuracy'])} of {search['n_dev']}",
            f"{percent(search['own_accuracy'])}, {percent(search['own_dev_accuracy'])}", ", ".join(map(str, some)),
        )  # fmt: skip
        body.append(tuple(map(Entry, texts)))
        if search["seed"] in some:
            warnings.append(
                f"The label words of {row['task']}, wording {row['chosen_wording']}, were searched on the examples of seed "
                f"{search['seed']}, which is among the seeds reported here: fair for that seed, whose training examples they are, "
                "but every other seed learns from them too; search with a seed that is not reported (`ppt task words --seed`)"
            )
    text = (
        "`ppt task words` found these words with the backbone alone, on the training examples of one seed's draw. Accuracy in "
        "percent there, on the same draw's development examples, which the search did not see, and of the task's own words on "
        "both. Whichever seed uses them, these examples stand behind its result beside its own."
    )
    head = (
        "task", "wording", "words", "searched with", "pattern", "its seed", "training examples", "development examples",
        "own words", "used by seeds",
    )  # fmt: skip
    return [
        Section("Label words that a search found", (Text(text), Table(head, tuple(body), words=True)))
    ], warnings
