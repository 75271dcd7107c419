"""A test set that is held out where there is none."""

from __future__ import annotations

import json
from pathlib import Path

from finetune.task_draft import Draft
from finetune.task_look import Table
from finetune.task_new import new_task, split_rows
from launch.task_commands import Chooser


def test_a_rare_label_has_a_row_in_a_held_out_test_set() -> None:
    rows = tuple({"text": f"Day {i} was fine.", "label": "rare" if i < 3 else "often"} for i in range(60))
    draft = Draft(label="label", fields={"text": "text"})
    train, test = split_rows(Table((), rows), draft, 0.1)
    assert [row["label"] for row in test].count("rare") == 1 and len(test) == 7 and len(train) == 53


def test_one_file_is_split_alike_under_all_names(tmp_path: Path) -> None:
    rows = [{"text": f"Day {i} was fine.", "label": ["yes", "no"][i % 2]} for i in range(60)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("one", "other"):
        new_task([tmp_path / "all.jsonl"], tmp_path / f"{name}.yaml", Chooser({}, asking=False), split=0.25)
    one, other = ((tmp_path / name / "test.jsonl").read_text(encoding="utf-8") for name in ("one", "other"))
    assert one == other and len(one.splitlines()) == 16
