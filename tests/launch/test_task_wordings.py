"""A copy of a task file with wordings, wherever it goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.datasets import load_task
from finetune.task import Task
from finetune.word_search import Assignment, Found
from launch.task_wordings import write_wordings

TASK = "name: mood\nformat: single_text\nverbalizer: [bad, good]\npattern: '{text} <X>'\n"


def found(path: str | Path) -> Found:
    """Words for the two labels of a task, as a search finds them."""
    best = [Assignment(("dull", "nice"), 0.75, 0.5, 0.5, 0.6)]
    return Found(Task.load(path), "hard", [], None, best, 32, 32, 0, "a backbone", "its weights")


@pytest.fixture
def mood(tmp_path: Path) -> Path:
    """A task file with its data in a folder of the task's name beside it."""
    for part in ("train", "test"):
        path = tmp_path / "mine" / "mood" / f"{part}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"text": "a {part}", "label": "bad"}}\n{{"text": "b {part}", "label": "good"}}\n')
    (tmp_path / "mine" / "task.yaml").write_text(TASK)
    return tmp_path / "mine" / "task.yaml"


@pytest.mark.parametrize("out", ["far/away/words.yaml", "mine/words.yaml", "words.yaml"])
@pytest.mark.parametrize(
    "local", ["", "local: {folder: mood, test: [test]}\n", "local: {folder: ../mine/mood}\n"]
)
def test_a_copy_in_any_folder_finds_the_data_that_lie_beside_the_file(
    mood: Path, tmp_path: Path, out: str, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mood.write_text(TASK + local)
    monkeypatch.chdir(tmp_path)
    assert write_wordings(Path("mine/task.yaml"), Path(out), found("mine/task.yaml")) == 1
    copy = Task.load(tmp_path / out)
    assert load_task(copy, None).train == load_task(Task.load(mood), None).train
    assert copy.local.test == Task.load(mood).local.test and copy.wordings[0].verbalizer == ("dull", "nice")


def test_a_folder_below_the_data_that_were_named_stays_as_it_is(mood: Path, tmp_path: Path) -> None:
    mood.write_text(TASK + "local: {folder: mood}\n")
    data = tmp_path / "data"
    data.mkdir()
    (mood.parent / "mood").rename(data / "mood")
    out = tmp_path / "far" / "words.yaml"
    write_wordings(mood, out, found(mood), str(data))
    assert Task.load(out).local.folder == "mood" and len(load_task(Task.load(out), data).train) == 2
    write_wordings(Task.path_of("sst2"), tmp_path / "far" / "sst2.yaml", found("sst2"))
    assert Task.load(tmp_path / "far" / "sst2.yaml").local == Task.load("sst2").local
