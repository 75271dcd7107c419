"""A run's cells shared out over processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune import shares
from finetune.fewshot import run_fewshot
from finetune.plan import plan
from finetune.shares import FOLDER, Share, SharedSteps, shared_rows
from finetune.workshop import Workshop


def test_shares_hold_every_choice_once_and_cost_about_the_same() -> None:
    choices: Any = [f"choice {i}" for i in range(23)]
    costs = [float(1 + i * 7 % 10) for i in range(23)]
    parts = [Share(rank, 3).of(choices, costs) for rank in range(3)]
    assert sorted(choice for part in parts for choice in part) == sorted(choices)
    loads = [sum(costs[choices.index(choice)] for choice in part) for part in parts]
    assert max(loads) - min(loads) <= max(costs)
    assert all(part == sorted(part, key=choices.index) for part in parts)


def test_the_first_process_takes_over_what_the_others_finished_and_runs_the_rest(
    small_run: Any, tmp_path: Path, comparable: Any
) -> None:
    changes: dict[str, Any] = {"methods": ["vanilla_pt", "ppt"], "prompts_together": 2}
    whole = comparable(run_fewshot(small_run(out=str(tmp_path / "one"), **changes)))
    settings = small_run(out=str(tmp_path / "two"), **changes)
    out = Path(settings.out)
    run_fewshot(settings, Share(1, 2))
    others = shared_rows(out)
    assert 0 < len(others) < len(whole) and not (out / "results.jsonl").exists()
    run_fewshot(settings, Share(1, 2))
    assert len(shared_rows(out)) == len(others)  # nothing is run twice
    run_fewshot(settings, Share(0, 2))
    rows = comparable(out)
    assert rows.keys() == whole.keys() and not (out / FOLDER).exists()
    for cell, row in whole.items():
        assert rows[cell]["chosen"] == row["chosen"] and rows[cell]["step"] == row["step"]
        assert rows[cell]["dev_loss"] == pytest.approx(row["dev_loss"], abs=1e-4)


def test_rows_of_a_job_of_two_that_was_killed_are_taken_over_by_one_process(
    small_run: Any, tmp_path: Path, read_rows: Any
) -> None:
    settings = small_run(out=str(tmp_path / "run"), methods=["vanilla_pt"])
    run_fewshot(settings, Share(1, 2))
    done = {row["cell"]: row for row in shared_rows(Path(settings.out))}
    run_fewshot(settings)
    rows = {row["cell"]: row for row in read_rows(settings.out)}
    assert len(rows) == 4 and all(rows[cell] == row for cell, row in done.items())


def test_a_longer_task_costs_more(small_run: Any, task_files: dict[str, str]) -> None:
    workshop = Workshop(small_run(tasks=[task_files["mood"], task_files["pair"]], methods=["vanilla_pt"]))
    costs = {choice.cells[0].task: workshop.cost(choice.cells, choice.steps) for choice in plan(workshop)}
    assert costs[task_files["pair"]] > costs[task_files["mood"]] > 0


def test_the_first_process_hears_of_the_others_steps_and_not_of_an_earlier_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "TELL_EVERY", 0.0)
    silent: list[int] = []
    SharedSteps(tmp_path, Share(1, 2), silent.append).advance(40)  # an earlier start
    seen: list[int] = []
    first = SharedSteps(tmp_path, Share(0, 2), seen.append)
    first.advance(3)
    assert sum(seen) == 3
    other = SharedSteps(tmp_path, Share(1, 2), silent.append)
    other.advance(5)  # begins again at nothing
    first.look()
    other.advance(4)
    first.advance(2)
    assert sum(seen) == 3 + 2 + 4
