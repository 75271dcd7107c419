"""Cells that come and go in one bank: each ends as it does alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corpora.common.rng import generator
from finetune import tune
from finetune.calibrate import ItemSet, score_sets
from finetune.inputs import Item
from finetune.methods import rows_for
from finetune.score import Scores
from finetune.tune import Bank, Outcome, Trial, TuneOptions, tune_prompts
from finetune.workshop import Cell, Workshop

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
