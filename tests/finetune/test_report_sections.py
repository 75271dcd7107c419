"""What a report says of its runs is true of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.report import report

if TYPE_CHECKING:
    from finetune.settings import FewshotSettings


def test_a_report_of_a_widened_grid_does_not_say_that_test_was_looked_at_once(
    tmp_path: Path, small_run: Callable[..., FewshotSettings]
) -> None:
    from finetune.fewshot import run_fewshot

    run = small_run(methods=["vanilla_pt"], seeds=[0], epochs=1, learning_rates=[0.3]).out
    for rates in ([0.3], [0.1, 0.3, 1.0]):
        run_fewshot(small_run(methods=["vanilla_pt"], seeds=[0], epochs=1, learning_rates=rates))
    assert len((Path(run) / "results.jsonl").read_text().splitlines()) == 3
    opening = report([run], tmp_path / "out").text.split("## What was run")[1].split("\n## ")[0]
    assert "once" not in opening
    assert (
        "Test scores are those of the step and the learning rate that the development examples chose."
        in opening
    )


def test_settings_of_every_command_stand_in_the_report(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "earlier").mkdir(parents=True)
    row = {
        "cell": "a", "task": "sst2", "method": "ppt", "shots": 32, "seed": 0, "learning_rate": 0.3, "dev": 0.5, "chosen": True,
        "test": 0.5,
    }  # fmt: skip
    (run / "results.jsonl").write_text(json.dumps(row) + "\n")
    (run / "config.yaml").write_text("epochs: 3\n")
    (run / "earlier" / "a.yaml").write_text("epochs: 50\n")
    text = report([run], tmp_path / "out").text
    assert "epochs: 3\n" in text and "epochs: 50\n" in text
    assert f"Settings of an earlier command ({run / 'earlier' / 'a.yaml'})" in text
    stored = json.loads((tmp_path / "out" / "report.json").read_text())["runs"][0]
    assert stored["settings"] == {"epochs": 3} and stored["earlier_settings"] == [{"epochs": 50}]
