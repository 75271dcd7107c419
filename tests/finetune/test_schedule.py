"""Cells that come and go in one bank, and schedules that are killed and go on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corpora.common.rng import generator
from finetune import schedule, tune
from finetune.calibrate import ItemSet, score_sets
from finetune.fewshot import run_fewshot
from finetune.inputs import Item
from finetune.methods import rows_for
from finetune.plan import plan
from finetune.results import Results
from finetune.score import Scores
from finetune.shares import FOLDER
from finetune.tune import Bank, Outcome, Trial, TuneOptions, tune_prompts
from finetune.workshop import Cell, Workshop
from pretrain.backbone import Backbone

OPTIONS = TuneOptions(
    eval_every=2, batch_tokens=256, weight_decay=1e-3, clip=1.0, ft_weight_decay=0.01, count="label", length_normalised=False
)  # fmt: skip


def shop(folder: Path, request: pytest.FixtureRequest, dtype: str) -> tuple[Workshop, list[Cell]]:
    """A workshop and cells of two tasks, two methods and several seeds and rates."""
    from finetune.settings import FewshotSettings

    files, backbone = request.getfixturevalue("task_files"), str(request.getfixturevalue("backbone_dir"))
    workshop = Workshop(
        FewshotSettings(
            out=str(folder), backbone=backbone, prompts=str(request.getfixturevalue("prompts_dir")),
            tasks=(files["mood"], files["pair"]), seeds=(0, 1), shots=10, dev_shots=7, epochs=3, batch_size=4,
            prompt_len=4, device="cpu", dtype=dtype, eval_every=2,
        )
    )  # fmt: skip
    return workshop, [
        Cell(name, 10, row, seed, rate)
        for name in workshop.settings.tasks
        for row in rows_for(workshop.task(name), ("vanilla_pt", "ppt"))
        for seed in (0, 1)
        for rate in (0.1, 1.0)
    ]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Any, list[Trial]]:
    """A backbone in float64 and trials on it; some test items of each trial are in `unseen`."""
    workshop, cells = shop(tmp_path_factory.mktemp("run"), request, "float32")
    net = workshop.net("main")
    net.model.double()  # so that rounding is far below what a wrong neighbour would do
    trials = [workshop.trial(cell) for cell in cells]
    unseen.update(
        (trial.same_start, workshop.test_items(cell)[:5]) for trial, cell in zip(trials, cells, strict=True)
    )
    return net, trials


unseen: dict[str, list[Item]] = {}
_alone: dict[tuple[str, bytes, float, int, int | None], Outcome] = {}


def tuned_alone(net: Any, trial: Trial, patience: int | None) -> Outcome:
    assert trial.start_PD is not None
    start = trial.start_PD.numpy().tobytes()
    key = (trial.same_start, start, trial.learning_rate, len(trial.order), patience)
    if key not in _alone:
        (_alone[key],) = tune_prompts(net, [trial], replace(OPTIONS, patience=patience, batch_tokens=2000))
    return _alone[key]


@given(
    picks=st.lists(st.tuples(st.integers(0, 15), st.integers(1, 9)), min_size=1, max_size=7),
    places=st.integers(1, 5),
    patience=st.sampled_from([None, 1, 2]),
    batch_tokens=st.sampled_from([64, 200, 2000]),
)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_trials_in_any_number_of_places_end_as_each_does_alone(
    pool: tuple[Any, list[Trial]],
    picks: list[tuple[int, int]],
    places: int,
    patience: int | None,
    batch_tokens: int,
) -> None:
    ends_as_alone(pool[0], pool[1], picks, places, patience, batch_tokens)


def ends_as_alone(
    net: Any,
    trials: list[Trial],
    picks: list[tuple[int, int]],
    places: int,
    patience: int | None,
    batch_tokens: int,
) -> list[tuple[Trial, Outcome, Outcome]]:
    """Tunes the picked trials together and alone and compares.

    Returns:
        Each trial with what came of it together and alone.
    """
    chosen = [replace(trials[i], order=trials[i].order[:steps]) for i, steps in picks]
    options = replace(OPTIONS, patience=patience, batch_tokens=batch_tokens)
    together = tune_prompts(net, chosen, options, places)
    found = []
    for trial, outcome in zip(chosen, together, strict=True):
        alone = tuned_alone(net, trial, patience)
        assert (outcome.step, outcome.dev, outcome.waited) == (alone.step, alone.dev, alone.waited)
        assert [point["step"] for point in outcome.curve] == [point["step"] for point in alone.curve]
        assert [point["dev"] for point in outcome.curve] == [point["dev"] for point in alone.curve]
        assert isinstance(outcome.best, torch.Tensor) and isinstance(alone.best, torch.Tensor)
        torch.testing.assert_close(
            outcome.best, alone.best, atol=1e-5 * net.backbone.embedding_rms, rtol=1e-5
        )
        items = [ItemSet(unseen[trial.same_start], trial.verbalizer, number) for number in (0, 1)]
        both_KPD = torch.stack([outcome.best, alone.best])
        first, second = score_sets(net.backbone, items, both_KPD, batch_tokens=2000)
        np.testing.assert_array_equal(first.predictions, second.predictions)
        np.testing.assert_allclose(first.log_probs, second.log_probs, atol=1e-4)
        found.append((trial, outcome, alone))
    return found


def of_length(trial: Trial, prompt_len: int) -> Trial:
    """A trial from a random prompt of another length, the same for equal starts."""
    old = trial.start_PD
    assert old is not None
    noise = generator(prompt_len, "start", trial.same_start).standard_normal((prompt_len, old.shape[1]))
    return replace(trial, start_PD=torch.from_numpy(noise).to(old) * old.std())


@pytest.mark.torture
@pytest.mark.parametrize("prompt_len", [1, 4, 9])
@given(
    picks=st.lists(st.tuples(st.integers(0, 15), st.integers(1, 9)), min_size=1, max_size=12),
    places=st.integers(1, 8),
    patience=st.sampled_from([None, 1, 2]),
    batch_tokens=st.sampled_from([64, 200, 2000]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_trials_of_any_prompt_length_end_as_alone_and_predict_the_same(
    pool: tuple[Any, list[Trial]],
    prompt_len: int,
    picks: list[tuple[int, int]],
    places: int,
    patience: int | None,
    batch_tokens: int,
) -> None:
    net, trials = pool
    own = [of_length(trial, prompt_len) for trial in trials]
    for trial, *outcomes in ends_as_alone(net, own, picks, places, patience, batch_tokens):
        predicted = []
        for outcome in outcomes:
            assert isinstance(outcome.best, torch.Tensor)
            items = [ItemSet(trial.dev, trial.renderer.verbalizer)]
            (scores,) = score_sets(net.backbone, items, outcome.best[None], batch_tokens=2000)
            predicted.append(scores.predictions)
            assert scores.accuracy == outcome.dev
        np.testing.assert_array_equal(*predicted)


def test_in_bfloat16_trials_end_as_alone_but_for_its_rounding(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Measured: dev losses differ by up to 0.005 and log probabilities by up to 0.05, those of two trials by 0.04 and 0.13 or more."""
    workshop, cells = shop(tmp_path, request, "bfloat16")
    net, cells = workshop.net("main"), cells[1::2]
    trials = [workshop.trial(cell) for cell in cells]
    together = tune_prompts(net, trials, OPTIONS, 5)
    for trial, cell, outcome in zip(trials, cells, together, strict=True):
        (alone,) = tune_prompts(net, [trial], replace(OPTIONS, batch_tokens=2000))
        for one, other in zip(outcome.curve, alone.curve, strict=True):
            assert one["dev_loss"] == pytest.approx(other["dev_loss"], abs=0.02)
        assert isinstance(outcome.best, torch.Tensor) and isinstance(alone.best, torch.Tensor)
        items = [ItemSet(workshop.test_items(cell), trial.verbalizer, number) for number in (0, 1)]
        first, second = score_sets(
            net.backbone, items, torch.stack([outcome.best, alone.best]), batch_tokens=2000
        )
        np.testing.assert_allclose(first.log_probs, second.log_probs, atol=0.1)
        ordered_NC = np.sort(second.log_probs, axis=1)
        clear = ordered_NC[:, -1] - ordered_NC[:, -2] > 0.2  # rounding alone cannot turn it
        assert clear.any()
        np.testing.assert_array_equal(first.predictions[clear], second.predictions[clear])


def test_a_finished_trial_gives_its_place_to_one_that_waits(pool: tuple[Any, list[Trial]]) -> None:
    net, trials = pool
    bank = Bank(net, OPTIONS, 2, 4)
    for trial, steps in zip(trials, (1, 4), strict=False):
        bank.put(replace(trial, order=trial.order[:steps]))
    assert not bank.free and bank.round() == {}  # a step of both
    assert list(bank.round()) == [0] and bank.free  # the short one is scored and leaves
    assert bank.put(trials[2]) == 0
    place = bank.places[1]
    bank.round()
    assert place is not None and place.step == 2  # the long one went on meanwhile


def test_a_trial_out_of_patience_stops_and_its_steps_count_as_done(
    pool: tuple[Any, list[Trial]], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, trials = pool
    losses = iter([8.0, 4.0, 4.0, 2.0, 2.0, 2.0, 1.0])

    def falling(backbone: Any, sets: list[Any], *rest: Any, **options: Any) -> list[Scores]:
        labels, loss = np.zeros(3, dtype=np.int64), np.full(3, next(losses))
        return [Scores(np.zeros((3, 2)), loss, labels > 0, labels, np.zeros((3, 2)))] * len(sets)

    monkeypatch.setattr(tune, "score_sets", falling)
    done: list[int] = []
    options = replace(OPTIONS, patience=2)
    (outcome,) = tune_prompts(net, [replace(trials[0], eval_every=1)], options, advance=done.append)
    # The second score is no better than 4 once, the last two no better than 2.
    assert [point["dev_loss"] for point in outcome.curve] == [8.0, 4.0, 4.0, 2.0, 2.0, 2.0]
    assert (outcome.step, outcome.waited) == (3, 2) and sum(done) == len(trials[0].order)


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
