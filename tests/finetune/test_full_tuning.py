"""Full tuning: what it computes, where it starts, which weights it keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corpora.common.errors import UserError
from finetune.calibrate import ItemSet
from finetune.full_tuning import FullTuner, full_tuner
from finetune.full_weights import FullWeights
from finetune.memory import MOST_TOKENS, SHARE, training_tokens
from finetune.tune import Trial, TuneOptions
from pretrain.backbone import load_backbone
from pretrain.batching import collate, example_losses

OPTIONS = TuneOptions(
    eval_every=2, batch_tokens=256, weight_decay=1e-3, clip=1.0, ft_weight_decay=0.01, count="label", length_normalised=False
)  # fmt: skip


def plain_loss(trial: Trial, backbone: Any, count: Any) -> torch.Tensor:
    """The same loss by padded batches through the model's own layers."""
    items = list(trial.train)
    batch = collate(
        [item.input_ids for item in items],
        [0] * len(items),
        trial.renderer.target_ids(items),
        pad_id=backbone.pad_id,
        start_id=backbone.start_id,
        count=count,
    )
    embeds_BLD = backbone.model.get_input_embeddings()(batch.input_ids_BL)
    logits_BTV = backbone.target_logits(embeds_BLD, batch.mask_BL, batch.decoder_ids_BT)
    return example_losses(logits_BTV, batch).mean()


@pytest.mark.parametrize("count", ["label", "all"])
@pytest.mark.parametrize("task", ["mood", "ten"])
def test_loss_and_gradient_are_those_of_padded_batches(
    small_run: Any, ft_trials: Any, task_files: dict[str, str], task: str, count: Any
) -> None:
    settings = small_run(tasks=[task_files[task]])
    (trial,) = ft_trials(settings)
    assert len({len(item.input_ids) for item in trial.train}) > 1
    backbone = load_backbone(settings.backbone)
    backbone.model.requires_grad_(True)
    wanted = plain_loss(trial, backbone, count)
    wanted.backward()  # type: ignore[no-untyped-call]
    for batch_tokens in (64, 4096):  # several micro-batches, and one
        weights = FullWeights(
            settings.backbone, "cpu", replace(OPTIONS, count=count, batch_tokens=batch_tokens)
        )
        weights.reset()
        found = weights.backward(trial.train, trial.renderer.target_ids(trial.train))
        assert found == pytest.approx(float(wanted.detach()), abs=1e-5)
        for (name, own), other in zip(
            weights.model.named_parameters(), backbone.model.parameters(), strict=True
        ):
            assert own.grad is not None and other.grad is not None, name
            torch.testing.assert_close(own.grad, other.grad, atol=1e-6, rtol=1e-3, msg=name)


def test_a_step_is_that_of_plain_adamw_with_the_gradient_clipped(small_run: Any, ft_trials: Any) -> None:
    settings = small_run()
    (trial,) = ft_trials(settings)
    backbone = load_backbone(settings.backbone)
    backbone.model.requires_grad_(True)
    for p in backbone.model.parameters():
        p.data = p.data.clone()  # not the pages of the file
    matrices = [p for p in backbone.model.parameters() if p.ndim > 1]
    vectors = [p for p in backbone.model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.5}, {"params": vectors, "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=1e-2, foreach=False)
    options = replace(OPTIONS, clip=0.05, ft_weight_decay=0.5)
    weights = FullWeights(settings.backbone, "cpu", options)
    weights.reset()
    for _ in range(3):
        plain.zero_grad()
        plain_loss(trial, backbone, "label").backward()  # type: ignore[no-untyped-call]
        assert float(torch.nn.utils.clip_grad_norm_(backbone.model.parameters(), options.clip)) > options.clip
        plain.step()
        weights.backward(trial.train, trial.renderer.target_ids(trial.train))
        weights.update(1e-2)
    for (name, own), other in zip(weights.model.named_parameters(), backbone.model.parameters(), strict=True):
        # Adam divides by the gradient's own size, so that where it is rounding alone the step is too.
        far = (own - other).abs() > 1e-4
        assert float(far.float().mean()) < 0.01, name


def test_full_tuning_learns_and_starts_each_trial_from_the_backbones_weights(
    small_run: Any, ft_trials: Any
) -> None:
    settings = small_run(epochs=15, ft_learning_rates=[3e-3])
    (trial,) = ft_trials(settings)
    assert trial.start_PD is None
    before = {n: p.clone() for n, p in load_backbone(settings.backbone).model.named_parameters()}
    tuner = full_tuner(settings, settings.backbone, OPTIONS)
    first, again = tuner.tune(trial), tuner.tune(trial)
    losses = [point["train_loss"] for point in first.curve[1:]]
    assert losses[-1] < 0.7 * losses[0]
    assert first.curve == again.curve
    assert all(
        torch.equal(before[n], p) for n, p in load_backbone(settings.backbone).model.named_parameters()
    )


class Spy(FullWeights):
    """Remembers the weights at each dev score, and how often some were kept."""

    seen: list[torch.Tensor]
    kept_times: int

    def reset(self) -> None:
        super().reset()
        self.seen, self.kept_times = [], 0

    def score(self, items: ItemSet) -> Any:
        self.seen.append(self.model.shared.weight.detach().clone())
        return super().score(items)

    def keep(self) -> None:
        self.kept_times += 1
        super().keep()


def test_what_is_scored_at_the_end_are_the_weights_of_the_best_step_of_all_rates(
    small_run: Any, ft_trials: Any
) -> None:
    settings = small_run(epochs=10, ft_learning_rates=[1e-4, 3e-3, 1e-2])
    trials = ft_trials(settings)
    weights = Spy(settings.backbone, "cpu", OPTIONS)
    tuner = FullTuner(weights, OPTIONS)
    outcomes = tuner.tune_rates(trials)
    ranks = [(-o.dev, o.dev_loss, t.learning_rate) for o, t in zip(outcomes, trials, strict=True)]
    best = ranks.index(min(ranks))
    assert outcomes[best].step > 0  # else every rate's best weights are the backbone's
    scores = tuner.score_best(ItemSet(trials[0].dev, trials[0].verbalizer))
    assert scores.accuracy == outcomes[best].dev
    assert scores.loss == pytest.approx(outcomes[best].dev_loss, abs=1e-6)
    tuner.tune(trials[best])
    place = [point["step"] for point in outcomes[best].curve].index(outcomes[best].step)
    wanted = weights.seen[place]
    tuner.score_best(ItemSet(trials[0].dev, trials[0].verbalizer))
    assert torch.equal(weights.model.shared.weight.detach(), wanted)


def test_no_weights_are_kept_of_a_rate_that_an_earlier_one_beats(small_run: Any, ft_trials: Any) -> None:
    settings = small_run(epochs=3)
    (trial,) = ft_trials(settings)
    weights = Spy(settings.backbone, "cpu", OPTIONS)
    tuner = FullTuner(weights, OPTIONS)
    outcome = tuner.tune(trial, rival=(-1.0, 0.0, 1e-9))
    assert weights.kept_times == 0 and len(outcome.curve) > 2
    tuner.tune(trial, rival=(-outcome.dev, outcome.dev_loss, 2 * trial.learning_rate))
    assert weights.kept_times == 1  # of equals the smaller rate


def test_a_rate_that_diverges_keeps_its_best_step_and_the_next_one_starts_sound(
    small_run: Any, ft_trials: Any
) -> None:
    settings = small_run(ft_learning_rates=[1e-3, 1e30])
    good, bad = ft_trials(settings)
    tuner = full_tuner(settings, settings.backbone, replace(OPTIONS, clip=0.0))
    done: list[int] = []
    outcome = tuner.tune(bad, done.append)
    assert outcome.diverged is not None and outcome.step == 0 and sum(done) == len(bad.order)
    assert np.isfinite(tuner.score_best(ItemSet(bad.dev, bad.verbalizer)).loss)
    after = tuner.tune(good)
    assert after.diverged is None
    assert after.curve == full_tuner(settings, settings.backbone, replace(OPTIONS, clip=0.0)).tune(good).curve


class Breaks(FullWeights):
    """Its loss is no number at the fourth step."""

    steps = 0

    def backward(self, items: Any, targets: Any) -> float:
        loss, self.steps = super().backward(items, targets), self.steps + 1
        return float("nan") if self.steps == 4 else loss


def test_nothing_is_scored_after_a_loss_that_is_no_number(small_run: Any, ft_trials: Any) -> None:
    settings = small_run(epochs=5)
    (trial,) = ft_trials(settings)
    due = trial.scored_at(OPTIONS)
    assert due[:3] == [0, 2, 4] and len(trial.order) > 4  # the step after the broken one would be scored
    done: list[int] = []
    outcome = FullTuner(Breaks(settings.backbone, "cpu", OPTIONS), OPTIONS).tune(trial, done.append)
    assert outcome.diverged == 3 and [point["step"] for point in outcome.curve] == [0, 2]
    assert sum(done) == len(trial.order)  # the steps that are left out among them


def test_masters_without_a_place_are_refused(small_run: Any) -> None:
    for stage in (None, 0):
        with pytest.raises(ValueError, match="expected ft_zero_stage 1, 2 or 3"):
            small_run(ft_dtype="bfloat16", ft_zero_stage=stage)


def test_a_backbone_that_is_not_there_is_refused(small_run: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot load the backbone"):
        full_tuner(small_run(), str(tmp_path / "none"), OPTIONS)


def test_micro_batches_of_full_tuning_grow_with_the_memory_and_never_vanish(small_run: Any) -> None:
    backbone = load_backbone(small_run().backbone)
    tokens = [training_tokens(backbone, free) for free in (-1e9, 1e8, 2e8, 1e12)]
    assert tokens[0] == 256 < tokens[1] < tokens[2] < tokens[3] == MOST_TOKENS
    assert all(n % 256 == 0 for n in tokens)


def test_training_keeps_no_more_memory_a_token_than_is_counted(small_run: Any, ft_trials: Any) -> None:
    settings = small_run()
    (trial,) = ft_trials(settings)
    weights = FullWeights(settings.backbone, "cpu", replace(OPTIONS, batch_tokens=4096))
    items = list(trial.train)
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in weights.model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        weights.backward(items, trial.renderer.target_ids(items))
    n = sum(len(item.input_ids) for item in items)
    counted = SHARE * 1e9 / training_tokens(backbone=weights.backbone, free=1e9)  # bytes a token
    assert sum(kept.values()) / n < counted
