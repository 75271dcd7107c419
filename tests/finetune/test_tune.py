"""Many prompts at once, and full tuning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from corpora.common.errors import UserError
from finetune.methods import rows_for
from finetune.tune import Outcome, TuneOptions, tune_prompts
from finetune.workshop import Cell, Workshop
from pretrain import side_by_side

OPTIONS = TuneOptions(
    eval_every=2, batch_tokens=256, weight_decay=1e-3, clip=1.0, ft_weight_decay=0.01, count="label", length_normalised=False
)  # fmt: skip


def cells(workshop: Workshop, methods: tuple[str, ...] = ("vanilla_pt", "ppt", "unified_ppt")) -> list[Cell]:
    name = workshop.settings.tasks[0]
    rows = rows_for(workshop.task(name), methods)
    return [
        Cell(name, 12, row, seed, rate, workshop.settings.inits[0])
        for row in rows
        for seed in workshop.settings.seeds
        for rate in workshop.settings.rates(row.method)
    ]


def test_prompts_tuned_together_end_as_each_does_alone(small_run: Any, task_files: dict[str, str]) -> None:
    workshop = Workshop(small_run(tasks=[task_files["pair"]]))
    trials = [workshop.trial(cell) for cell in cells(workshop)]
    backbone = workshop.backbone("main")
    together = tune_prompts(workshop.net("main"), trials, OPTIONS)
    assert len({tuple(trial.train[0].input_ids) for trial in trials}) > 1
    for trial, outcome in zip(trials, together, strict=True):
        (alone,) = tune_prompts(workshop.net("main"), [trial], OPTIONS)
        assert (outcome.step, outcome.dev) == (alone.step, alone.dev)
        for one, other in zip(outcome.curve, alone.curve, strict=True):
            assert one["step"] == other["step"]
            assert one["dev_loss"] == pytest.approx(other["dev_loss"], abs=1e-3)
        torch.testing.assert_close(outcome.best, alone.best, atol=1e-3 * backbone.embedding_rms, rtol=1e-3)


def test_a_micro_batch_budget_changes_rounding_only(small_run: Any) -> None:
    workshop = Workshop(small_run())
    trials = [workshop.trial(cell) for cell in cells(workshop)[:3]]
    one = tune_prompts(workshop.net("main"), trials, OPTIONS)
    other = tune_prompts(workshop.net("main"), trials, replace(OPTIONS, batch_tokens=4096))
    for a, b in zip(one, other, strict=True):
        assert a.curve[-1]["dev_loss"] == pytest.approx(b.curve[-1]["dev_loss"], abs=1e-3)


def test_micro_batches_side_by_side_change_rounding_only_and_give_the_same_bits_again(
    small_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = Workshop(small_run())
    trials = [workshop.trial(cell) for cell in cells(workshop)[:3]]
    options = replace(OPTIONS, batch_tokens=1024)
    one = tune_prompts(workshop.net("main"), trials, options)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        monkeypatch.setattr(side_by_side, "FEWEST_TOKENS", 64)
        several, again = (tune_prompts(workshop.net("main"), trials, options) for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    for a, b, c in zip(one, several, again, strict=True):
        assert a.curve[-1]["dev_loss"] == pytest.approx(b.curve[-1]["dev_loss"], abs=1e-3)
        assert (b.curve, b.step) == (c.curve, c.step)
        assert b.best is not None
        assert c.best is not None
        assert torch.equal(b.best, c.best)


def test_a_prompt_learns_its_training_examples_and_the_backbone_does_not_move(small_run: Any) -> None:
    workshop = Workshop(small_run(epochs=30, learning_rates=[0.3], seeds=[0]))
    backbone = workshop.backbone("main")
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    trial = workshop.trial(cells(workshop, ("vanilla_pt",))[0])
    (outcome,) = tune_prompts(workshop.net("main"), [trial], OPTIONS)
    losses = [point["train_loss"] for point in outcome.curve[1:]]
    assert np.mean(losses[-3:]) < 0.85 * losses[0]  # a random backbone: only a bias can be learnt
    assert all(torch.equal(before[name], p) for name, p in backbone.model.named_parameters())


def test_every_method_trains_on_the_same_examples_in_the_same_order(small_run: Any) -> None:
    workshop = Workshop(small_run(seeds=[0]))
    trials = [
        workshop.trial(cell) for cell in cells(workshop, ("ft", "vanilla_pt", "lm_adaption", "hybrid_ppt"))
    ]
    first = trials[0]
    for trial in trials[1:]:
        assert [item.label for item in trial.train] == [item.label for item in first.train]
        assert [item.label for item in trial.dev] == [item.label for item in first.dev]
        assert all(np.array_equal(a, b) for a, b in zip(trial.order, first.order, strict=True))


@pytest.mark.defect(1)
@pytest.mark.parametrize("init", ["normal", "vocabulary"])
def test_vanilla_pt_starts_from_different_rows_at_the_embeddings_scale(init: str, small_run: Any) -> None:
    workshop = Workshop(small_run(init=init, prompt_len=40, methods=["vanilla_pt"]))
    start_PD = workshop.trial(cells(workshop, ("vanilla_pt",))[0]).start_PD
    assert start_PD is not None and start_PD.shape[0] == 40
    rms = float(start_PD.double().pow(2).mean().sqrt())
    assert 0.5 < rms / workshop.backbone("main").embedding_rms < 2
    distances = torch.cdist(start_PD, start_PD) + torch.eye(40) * 1e9
    assert (
        distances.min(dim=1).values > 1e-3 * rms
    ).float().mean() > 0.5  # words may be drawn twice, not all the same
    other = workshop.trial(replace(cells(workshop, ("vanilla_pt",))[0], seed=1)).start_PD
    assert not torch.equal(start_PD, other)


@pytest.mark.defect(1)
def test_label_words_are_an_initialisation_of_their_own(small_run: Any) -> None:
    workshop = Workshop(small_run(init="label_words", methods=["vanilla_pt"]))
    cell = cells(workshop, ("vanilla_pt",))[0]
    backbone = workshop.backbone("main")
    table = backbone.model.get_input_embeddings().weight
    start_PD = workshop.trial(cell).start_PD
    assert start_PD is not None
    word = torch.tensor(workshop.tokenizer("main").word_ids("good"))
    assert float((start_PD[1] - table[word].mean(dim=0)).abs().max()) < 1e-5  # rows 0, 1: bad, good


@pytest.mark.defect(2)
def test_the_first_step_moves_every_number_of_the_given_prompt_by_the_learning_rate(
    small_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = 1e-2
    workshop = Workshop(small_run(seeds=[0], epochs=1, batch_size=12, learning_rates=[rate]))
    trial = workshop.trial(cells(workshop, ("ppt",))[0])
    seen: dict[int, torch.Tensor] = {}
    evaluated = Outcome.evaluated

    def watch(self: Outcome, step: int, scores: Any, snapshot: Any) -> None:
        seen[step] = snapshot()
        evaluated(self, step, scores, snapshot)

    monkeypatch.setattr(Outcome, "evaluated", watch)
    tune_prompts(workshop.net("main"), [trial], replace(OPTIONS, weight_decay=0.0))
    assert sorted(seen) == [0, 1] and torch.equal(seen[0], workshop.prompt("single_text")[0])
    moved_PD = (seen[1] - seen[0]).abs() / (rate * workshop.backbone("main").embedding_rms)
    # Adam's first step is the rate in every number whose gradient is well above eps.
    assert 0.9 < float(moved_PD.median()) < 1.1 and float(moved_PD.max()) < 1.1


def test_prompts_without_a_gradient_are_refused_by_the_cells_name(small_run: Any) -> None:
    workshop = Workshop(small_run(seeds=[3], learning_rates=[0.1]))
    trial = workshop.trial(cells(workshop, ("ppt",))[0])
    backbone = workshop.backbone("main")
    with torch.no_grad():
        for block in backbone.model.decoder.block:  # the decoder no longer hears the encoder
            block.layer[1].EncDecAttention.o.weight.zero_()
    with pytest.raises(
        UserError, match="prompt mood ppt seed 3 does not train: its gradient has been zero for 3"
    ):
        tune_prompts(workshop.net("main"), [trial], OPTIONS)


def test_the_step_with_the_best_dev_score_wins_then_the_lower_loss_then_the_earlier() -> None:
    class Fake:
        def __init__(self, accuracy: float, loss: float) -> None:
            self.accuracy, self.loss = accuracy, loss

    outcome = Outcome()
    for step, (accuracy, loss) in enumerate([(0.5, 0.9), (0.7, 0.8), (0.7, 0.6), (0.7, 0.6), (0.6, 0.1)]):
        outcome.evaluated(step, Fake(accuracy, loss), lambda step=step: torch.tensor([float(step)]))  # type: ignore[arg-type]
    assert outcome.step == 2 and outcome.best is not None and float(outcome.best[0]) == 2.0


def test_a_diverged_trial_keeps_its_best_step_and_leaves_the_others_alone(small_run: Any) -> None:
    workshop = Workshop(small_run(seeds=[0, 1], learning_rates=[0.1], clip=0.0))
    good, bad = (workshop.trial(cell) for cell in cells(workshop, ("vanilla_pt",)))
    bad = replace(bad, learning_rate=1e38)
    options = replace(OPTIONS, clip=0.0)
    alone, pair = tune_prompts(workshop.net("main"), [good], options), tune_prompts(
        workshop.net("main"), [good, bad], options
    )  # fmt: skip
    assert pair[1].diverged is not None and pair[1].best is not None and torch.isfinite(pair[1].best).all()
    assert pair[0].diverged is None
    assert pair[0].dev_loss == pytest.approx(alone[0].dev_loss, abs=1e-3)
