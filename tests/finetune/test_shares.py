"""A run's cells shared out over processes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from corpora.common.errors import MachineError
from corpora.common.progress import Progress
from finetune import fewshot, shares
from finetune.fewshot import run_fewshot
from finetune.full_tuning import FullTuner
from finetune.plan import plan
from finetune.results import Results
from finetune.shares import FOLDER, Share, SharedSteps, shared_rows
from finetune.workshop import Workshop


class Killed(Exception):
    """Stands in for SIGKILL: nothing catches it."""


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


def counted(out: Path, share: Share) -> tuple[Progress, SharedSteps]:
    share.locked(out).mkdir(parents=True, exist_ok=True)
    progress = Progress("tuning")
    return progress, SharedSteps(out, share, progress)


def test_the_first_process_hears_of_the_others_steps_and_not_of_an_earlier_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "TELL_EVERY", 0.0)
    _, earlier = counted(tmp_path, Share(1, 2))
    earlier.advance(40)
    earlier.tell()
    progress, first = counted(tmp_path, Share(0, 2))
    first.advance(3)
    assert progress.done == 3
    _, other = counted(tmp_path, Share(1, 2))
    other.skip(35)  # of the earlier 40
    other.advance(5)
    other.tell()
    first.look()
    assert (progress.done, progress.skipped) == (3 + 40, 35)
    other.advance(4)
    other.tell()
    first.advance(2)
    assert (progress.done, progress.skipped) == (3 + 40 + 4 + 2, 35)


def test_a_process_that_does_nothing_countable_is_heard_of_as_long_as_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "TELL_EVERY", 0.01)
    _, first = counted(tmp_path, Share(0, 2))
    with counted(tmp_path, Share(1, 2))[1]:
        time.sleep(0.2)
        first.look()
        assert first.silent < 0.1
    time.sleep(0.2)
    first.look()
    time.sleep(0.2)
    first.look()
    assert first.silent > 0.15


def test_a_first_process_whose_others_ended_without_their_rows_says_so_and_ends(
    small_run: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], read_rows: Any
) -> None:
    monkeypatch.setattr(fewshot, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(fewshot, "SAY_AFTER", 0.1)
    monkeypatch.setattr(fewshot, "GONE_AFTER", 0.5)
    settings = small_run(methods=["vanilla_pt"], epochs=1)
    with pytest.raises(
        MachineError, match="2 cells are left to other processes, none of which was heard of in"
    ):
        run_fewshot(settings, Share(0, 2))
    assert capfd.readouterr().err.count("waiting for them") == 1
    assert len(read_rows(settings.out)) == 2  # its own


@pytest.mark.parametrize(
    ("whose", "which", "method", "killed_at"),
    [
        (Results, "add", "vanilla_pt", 2),  # rows are in the checkpoint alone, other cells are under way
        (FullTuner, "tune", "ft", 2),  # a rate is finished
    ],
)
def test_a_run_that_goes_on_counts_each_step_once_and_those_of_before_as_skipped(
    small_run: Any, monkeypatch: pytest.MonkeyPatch, whose: Any, which: str, method: str, killed_at: int
) -> None:
    lines: list[Progress] = []
    monkeypatch.setattr(fewshot, "Progress", lambda *given: lines.append(Progress(*given)) or lines[-1])
    settings = small_run(methods=[method], seeds=[0, 1], prompts_together=3, ft_learning_rates=[1e-3, 2e-3])
    real, calls = getattr(whose, which), 0

    def mortal(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == killed_at:
            raise Killed
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(whose, which, mortal)
        with pytest.raises(Killed):
            run_fewshot(settings)
    run_fewshot(settings)
    last = lines[-1]
    assert last.done == last.total and 0 < last.skipped < last.done
