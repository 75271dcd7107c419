"""What a user's files hold: which is which, and what a column's values say of each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from corpora.common.errors import UserError
from finetune.task_look import no_labels
from finetune.task_new import new_task
from launch.task_commands import Chooser


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        (["0", "1", "2", "-1"], ["-1"]),
        (["-1", "0", "1"], []),
        (["-1", "1"], []),
        (["-2", "-1", "0", "1", "2"], []),
        (["1", "2", "3", "-1"], []),
        (["yes", "no", "-"], ["-"]),
        (["+", "-"], []),
        (["+", "-", "0"], []),
        (["None", "Hate", "Offensive"], []),
        (["calm", "angry", "N/A", "null", "nan", ""], ["N/A", "null", "nan"]),
        (["calm", "N/A"], []),
    ],
)
def test_what_says_that_a_row_has_no_label_is_told_by_the_other_labels(
    values: list[str], missing: list[str]
) -> None:
    assert no_labels(values) == missing


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.csv", "b.csv"], "name the training file"),
        (["readme.md"], "holds no data"),
        (["test.csv", "dev.csv"], "no training file"),
    ],
)
def test_folders_that_do_not_say_which_file_is_which_are_refused(
    tmp_path: Path, names: list[str], message: str
) -> None:
    for name in names:
        (tmp_path / name).write_text("text,label\na,b\n")
    with pytest.raises(UserError, match=message):
        new_task([tmp_path], tmp_path / "t.yaml", Chooser({}, asking=False))
    with pytest.raises(UserError, match=r"data.json: expected a name that ends in .jsonl.* an object a line"):
        (tmp_path / "data.json").write_text("[]")
        new_task([tmp_path / "data.json"], tmp_path / "t.yaml", Chooser({}, asking=False))
