"""Schedules that are killed and go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune import schedule
from finetune.fewshot import run_fewshot
from finetune.plan import plan
from finetune.results import Results
from finetune.shares import FOLDER
from finetune.tune import Bank
from finetune.workshop import Workshop
from pretrain.backbone import Backbone


class Killed(Exception):
    """Stands in for SIGKILL: nothing catches it."""


def killed_at(n: int, monkeypatch: pytest.MonkeyPatch, run: Any) -> bool:
    """Whether a run was ended before its `n`-th round."""
    real, calls = Bank.round, 0

    def mortal(self: Bank, *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > n:
            raise Killed
        return real(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Bank, "round", mortal)
        try:
            run()
        except Killed:
            return True
    return False


CHANGES: dict[str, Any] = {
    "methods": ["vanilla_pt", "ppt", "lm_adaption"], "prompts_together": 3, "epochs": 2, "save_seconds": 0.0
}  # fmt: skip


def test_a_run_killed_over_and_over_makes_up_the_same_batches_and_ends_with_the_same_bytes(
    small_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comparable: Any
) -> None:
    whole = run_fewshot(small_run(out=str(tmp_path / "whole"), **CHANGES))
    run = small_run(out=str(tmp_path / "killed"), **CHANGES)
    kills = 0
    rng = np.random.default_rng(0)
    while killed_at(int(rng.integers(1, 8)), monkeypatch, lambda: run_fewshot(run)):
        kills += 1
    assert kills > 3
    assert comparable(run.out) == comparable(whole)
    for folder in ("curves", "predictions", "prompts"):
        names = sorted(path.relative_to(whole) for path in (whole / folder).rglob("*") if path.is_file())
        assert names == sorted(
            p.relative_to(run.out) for p in (Path(run.out) / folder).rglob("*") if p.is_file()
        )
        assert all((whole / name).read_bytes() == (Path(run.out) / name).read_bytes() for name in names)
    assert not (Path(run.out) / FOLDER).exists()


def test_rows_that_a_kill_left_in_the_checkpoint_alone_are_added_and_not_run_again(
    small_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_rows: Any
) -> None:
    run = small_run(out=str(tmp_path / "run"), **{**CHANGES, "methods": ["vanilla_pt"]})
    real = Results.add

    def refuse(self: Results, rows: Any) -> None:
        if rows:
            raise Killed
        real(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Results, "add", refuse)
        with pytest.raises(Killed):
            run_fewshot(run)
    assert not read_rows(run.out)
    steps: list[int] = []
    real_step = Bank._train_step
    monkeypatch.setattr(Bank, "_train_step", lambda self: steps.append(real_step(self)) or steps[-1])
    run_fewshot(run)
    rows = read_rows(run.out)
    assert len(rows) == 4 and sum(steps) < sum(
        row["steps"] for row in rows
    )  # the first choice was not tuned again


def test_a_kill_between_two_choices_that_end_together_tunes_neither_again(
    small_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_rows: Any, comparable: Any
) -> None:
    changes = {**CHANGES, "methods": ["vanilla_pt"], "prompts_together": 8, "save_seconds": 1e9}
    whole = run_fewshot(small_run(out=str(tmp_path / "whole"), **changes))
    run = small_run(out=str(tmp_path / "run"), **changes)  # all four cells, two choices, end in one round
    real, calls = schedule.finish_choice, 0

    def second_is_fatal(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Killed
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(schedule, "finish_choice", second_is_fatal)
        with pytest.raises(Killed):
            run_fewshot(run)
    assert len(read_rows(run.out)) == 2
    monkeypatch.setattr(Bank, "_train_step", lambda self: pytest.fail("trained again"))
    run_fewshot(run)
    assert comparable(run.out) == comparable(whole)


def test_a_wider_grid_after_a_kill_that_left_rows_in_the_checkpoint_ends(
    small_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_rows: Any
) -> None:
    changes = {**CHANGES, "methods": ["vanilla_pt"], "seeds": [0], "prompts_together": 4}
    run = small_run(out=str(tmp_path / "run"), **changes)

    def refuse(self: Results, rows: Any) -> None:
        if rows:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Results, "add", refuse)
        with pytest.raises(Killed):
            run_fewshot(run)
    run_fewshot(small_run(out=run.out, **{**changes, "learning_rates": [0.1, 1.0, 0.5]}))
    rows = read_rows(run.out)
    assert sorted(row["learning_rate"] for row in rows) == [0.1, 0.5, 1.0]
    assert sum(row["chosen"] for row in rows) == 1


def test_another_length_of_prompts_begins_again(
    small_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_rows: Any
) -> None:
    changes = {**CHANGES, "methods": ["vanilla_pt"], "seeds": [0]}
    run = small_run(out=str(tmp_path / "run"), **changes)
    assert killed_at(2, monkeypatch, lambda: run_fewshot(run))
    run_fewshot(small_run(out=run.out, **changes, prompt_len=6))
    assert len(read_rows(run.out)) == 2


@pytest.mark.parametrize("spoil", [b"", b"not a checkpoint"])
def test_a_spoilt_checkpoint_is_told_and_what_was_under_way_begins_again(
    small_run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    spoil: bytes,
    comparable: Any,
) -> None:
    changes = {**CHANGES, "methods": ["vanilla_pt"]}
    whole = run_fewshot(small_run(out=str(tmp_path / "whole"), **changes))
    run = small_run(out=str(tmp_path / "spoilt"), **changes)
    assert killed_at(3, monkeypatch, lambda: run_fewshot(run))
    (Path(run.out) / FOLDER / "0" / "main.safetensors").write_bytes(spoil)
    run_fewshot(run)
    assert capfd.readouterr().err.count("main.safetensors is spoilt") == 1
    assert comparable(run.out) == comparable(whole)


def test_another_number_of_places_begins_again_what_was_under_way_and_says_so(
    small_run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    read_rows: Any,
) -> None:
    changes = {**CHANGES, "methods": ["vanilla_pt"]}
    run = small_run(out=str(tmp_path / "run"), **changes)
    assert killed_at(3, monkeypatch, lambda: run_fewshot(run))
    run_fewshot(small_run(out=run.out, **{**changes, "prompts_together": 4}))
    assert "another prompts_together than before" in capfd.readouterr().err
    assert len(read_rows(run.out)) == 4


def test_what_a_checkpoint_holds_goes_back_to_where_the_bank_is(
    small_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(out=str(tmp_path / "run"), **CHANGES)
    assert killed_at(4, monkeypatch, lambda: run_fewshot(run))
    elsewhere = torch.device("meta")  # stands for a GPU: nothing is computed there
    monkeypatch.setattr(Backbone, "embedding_device", elsewhere)
    workshop = Workshop(run)
    choices = [choice for choice in plan(workshop) if choice.cells[0].row.spec.backbone == "main"]
    taken = schedule.Schedule(workshop, "main", choices, Path(run.out) / FOLDER / "0" / "main.safetensors")
    outcomes = [*taken.done.values(), *(place.outcome for place in taken.bank.places if place)]
    best = [outcome.best for outcome in outcomes if outcome.best is not None]
    assert len(best) > 2 and {prompt_PD.device for prompt_PD in best} == {elsewhere}
    assert taken.bank.bank.prompts_KPD.device == elsewhere


def test_a_checkpoint_holds_nothing_of_the_backbone(
    small_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import safe_open

    run = small_run(out=str(tmp_path / "run"), **CHANGES)
    assert killed_at(4, monkeypatch, lambda: run_fewshot(run))
    with safe_open(Path(run.out) / FOLDER / "0" / "main.safetensors", framework="pt") as file:
        names = set(file.keys())
        state = json.loads(file.metadata()["state"])
    assert {name for name in names if name.startswith("bank.")} == {
        "bank.prompts", "bank.mean", "bank.square", "bank.steps"
    }  # fmt: skip
    assert {name.removeprefix("best.") for name in names if name.startswith("best.")} <= set(
        state["outcomes"]
    )
