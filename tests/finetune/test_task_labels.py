"""Which values of a column are labels, which say that a row has none, and from where options are counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from corpora.common.errors import UserError
from finetune.datasets import load_task
from finetune.task import Task
from finetune.task_draft import Draft
from finetune.task_new import new_task
from launch.task_commands import Chooser


def rows_of(labels: Sequence[Any], **more: Any) -> list[dict[str, Any]]:
    """A row for each label, every text another."""
    return [{"text": f"Tom moved boat {i} along.", "label": label, **more} for i, label in enumerate(labels)]


def made(folder: Path, rows: Sequence[dict[str, Any]], **flags: str) -> tuple[Draft, Task, Chooser]:
    """A task file of some rows, a fifth of which are held out; the file reads all of them."""
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chooser = Chooser({name.replace("_", "-"): value for name, value in flags.items()}, asking=False)
    draft = new_task([folder / "data.jsonl"], folder / "t.yaml", chooser, split=0.2, overwrite=True)
    return draft, Task.load(folder / "t.yaml"), chooser


def test_a_scale_from_minus_one_and_a_class_called_none_lose_no_row(tmp_path: Path) -> None:
    rows = rows_of([i % 3 - 1 for i in range(60)])
    draft, task, chooser = made(tmp_path, rows, words="bad,maybe,good")
    assert task.labels == ("-1", "0", "1") and draft.unlabelled == () and not task.local.unlabelled
    assert "--labels -1,0,1" in chooser.guessed  # told: it may be wrong
    data = load_task(task, None)
    assert len(data.train) + len(data.test) == 60 and [row.label for row in data.train[:3]] == [0, 1, 2]
    _, task, _ = made(tmp_path, rows_of([(-1, "+1")[i % 2] for i in range(40)]), words="bad,good")
    assert task.labels == ("-1", "+1")
    _, task, chooser = made(tmp_path, rows_of([("None", "Hate", "Offensive")[i % 3] for i in range(60)]))
    assert task.labels == ("Hate", "None", "Offensive") and "--labels Hate,None,Offensive" in chooser.guessed


def test_labels_decide_what_counts_and_what_says_that_a_row_has_none(tmp_path: Path) -> None:
    rows = rows_of([(0, 1, 2, -1)[i % 4] for i in range(80)])
    draft, task, chooser = made(tmp_path, rows, words="no,maybe,yes")
    assert draft.unlabelled == ("-1",) and "--labels 0,1,2" in chooser.guessed
    assert load_task(task, None).counts["unlabelled"] > 0
    draft, task, chooser = made(tmp_path, rows, labels="-1,0,1,2", words="a b,no,maybe,yes")
    assert task.labels == ("-1", "0", "1", "2") and draft.counts["-1"] == 20 and not draft.unlabelled
    assert load_task(task, None).counts["unlabelled"] == 0 and "--labels" not in " ".join(chooser.guessed)
    scale = rows_of([i % 3 - 1 for i in range(60)])
    with pytest.raises(UserError, match=r'where "-1" says that a row has no label: --labels 0,1$'):
        made(tmp_path, scale)
    draft, task, _ = made(tmp_path, scale, labels="0,1", words="bad,good")
    assert task.labels == ("0", "1") and draft.unlabelled == ("-1",)
    with pytest.raises(UserError, match='--labels lacks "1"'):
        made(tmp_path, scale, labels="-1,0", words="bad,good")
    with pytest.raises(UserError, match='--labels names "7"'):
        made(tmp_path, scale, labels="-1,0,1,7", words="a b,c d,e f,g h")


def test_labels_that_leave_no_doubt_are_not_told(tmp_path: Path) -> None:
    _, _, chooser = made(tmp_path, rows_of([("calm", "angry", "")[i % 3] for i in range(60)]))
    assert "--labels" not in " ".join(chooser.guessed)


def test_numbers_that_a_labels_json_names_leave_minus_one_without_a_label(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('["negative", "positive"]')
    draft, task, _ = made(tmp_path, rows_of([(0, 1, -1)[i % 3] for i in range(60)]))
    assert task.labels == ("negative", "positive") and draft.unlabelled == ("-1",)


def test_null_is_no_label_and_not_the_class_none(tmp_path: Path) -> None:
    rows = rows_of([("None", "Hate", None, " ")[i % 4] for i in range(80)])
    draft, task, _ = made(tmp_path, rows)
    assert task.labels == ("Hate", "None") and draft.unlabelled == (None, "")
    data = load_task(task, None)
    assert data.counts["unlabelled"] == 40 and len(data.train) == 32 and len(data.test) == 8
    (tmp_path / "t.yaml").write_text((tmp_path / "t.yaml").read_text().replace("[null, ''", "[''"))
    (tmp_path / "t" / "train.jsonl").write_text(json.dumps({"text": "a", "label": None}) + "\n")
    with pytest.raises(UserError, match='field "label" is null; expected one of Hate, None'):
        load_task(Task.load(tmp_path / "t.yaml"), None)


@pytest.mark.parametrize(
    ("answers", "n_options", "first", "told"),
    [
        ([1, 2], [3], 1, True),  # nothing says it but that no row has 0
        ([1, 2], [3, 2], 1, False),  # the second of two
        ([1, 2, 3], [3], 1, False),
        ([0, 1], [3], 0, False),
        (["A", "B"], [3], 0, False),
    ],
)
def test_where_options_are_counted_from_is_told_where_it_is_a_guess(
    tmp_path: Path, answers: list[Any], n_options: list[int], first: int, told: bool
) -> None:
    rows = [
        {"q": f"What of boat {i}?", "options": [f"it {i}", f"that {i}", f"this {i}"][: n_options[i % len(n_options)]],
         "answer": answers[i % len(answers)]}
        for i in range(60)
    ]  # fmt: skip
    _, task, chooser = made(tmp_path, rows)
    assert task.local.first_option == first and ("--first-option 1" in chooser.guessed) == told
    if told:
        _, task, chooser = made(tmp_path, rows, first_option="0")
        assert task.local.first_option == 0 and "--first-option 1" not in chooser.guessed


def test_answers_that_are_options_texts_say_nothing_about_counting(tmp_path: Path) -> None:
    rows = [
        {"q": f"What of boat {i}?", "options": ["10", "20", "30"], "answer": ("10", "20")[i % 2]}
        for i in range(40)
    ]
    _, task, chooser = made(tmp_path, rows)
    assert task.local.first_option == 0 and "first-option" not in " ".join(chooser.guessed)
    assert {row.label for row in load_task(task, None).train} == {0, 1}


def test_a_guess_with_commas_in_labels_may_be_said_again(tmp_path: Path) -> None:
    rows = rows_of([("world, news", "sports", "N/A")[i % 3] for i in range(60)])
    _, task, chooser = made(tmp_path, rows)
    assert "--labels 'sports,world, news'" in chooser.guessed
    assert made(tmp_path, rows, labels="sports,world, news")[1] == task
