"""What a report says of its runs is true of them."""

from __future__ import annotations

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
