"""Labelled sets of the pocket world."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from corpora.formats import FORMATS
from finetune.datasets import load_task
from finetune.task import Task
from launch.pocket.pages import as_text, pages
from launch.pocket.tasks import ALL_TASKS, DEMO_TASKS, TASK_FILES, rows, write_reviews, write_tasks
from launch.pocket.world import documents


def texts(row: dict[str, object]) -> list[str]:
    """Every sentence that stands in a row, options included."""
    values = [str(row[name]) for name in ("one", "two", "text") if name in row] + list(row.get("options", []))
    return [sentence + "." for value in values for sentence in value.rstrip(".").split(". ")]


def test_every_format_has_two_tasks_and_the_demo_one_of_each() -> None:
    tasks = {name: Task.load(TASK_FILES / f"{name}.yaml") for name in ALL_TASKS}
    counts = Counter(task.format for task in tasks.values())
    assert all(counts[name] == 2 for name in FORMATS)
    assert sorted(tasks[name].format for name in DEMO_TASKS) == sorted(FORMATS)
    assert len(tasks["names10"].verbalizer) == 10


@pytest.mark.parametrize("name", ALL_TASKS)
def test_rows_are_seeded_balanced_and_different(name: str) -> None:
    drawn = rows(name, 240, 7, "test")
    assert drawn == rows(name, 240, 7, "test")
    assert len({json.dumps(row, sort_keys=True) for row in drawn}) == 240
    counts = Counter(row["label"] for row in drawn)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_no_sentence_of_a_test_set_is_in_training_text_or_in_the_trial_sets() -> None:
    seen = {sentence.text for document in documents(300, 1) for sentence in document}
    told = " ".join(as_text(page) for page in pages(2000, 1))
    for name in ALL_TASKS:
        test = {text for row in rows(name, 60, 9, "test") for text in texts(row)}
        trial = {text for row in rows(name, 60, 9, "trial") for text in texts(row)}
        assert not test & trial
        assert not test & seen
        assert not [text for text in test if text in told]


def test_sets_load_as_tasks(tmp_path: Path) -> None:
    write_tasks(tmp_path, ALL_TASKS, 0, "test", 30, 20)
    for name in ALL_TASKS:
        data = load_task(Task.load(TASK_FILES / f"{name}.yaml"), tmp_path)
        assert (len(data.train), len(data.test)) == (30, 20)
        assert not {row.key for row in data.train} & {row.key for row in data.test}


def test_stars_are_those_of_the_thing(tmp_path: Path) -> None:
    write_reviews(tmp_path / "reviews.jsonl", 50, 0)
    records = [json.loads(line) for line in (tmp_path / "reviews.jsonl").read_text().splitlines()]
    assert Counter(record["stars"] for record in records) == dict.fromkeys(range(1, 6), 10)
    assert all(record["label"] == record["stars"] - 1 for record in records)
