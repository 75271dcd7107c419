"""Label scores and metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from corpora.common.rng import generator
from corpora.formats import Verbalizer
from corpora.tokenizer import Tokenizer
from finetune.inputs import Item
from finetune.score import Scores, score_items
from pretrain.backbone import Backbone

N, P = 11, 4


@pytest.fixture(scope="module")
def items(tokenizer: Tokenizer) -> list[Item]:
    rng = generator(0, "items")
    return [
        Item(
            np.append(rng.integers(3, 150, int(rng.integers(3, 30))), tokenizer.sentinel(0)).astype(np.int32),
            i % 3,
            3,
        )
        for i in range(N)
    ]


@pytest.fixture(scope="module")
def prompts_KPD(backbone: Backbone) -> torch.Tensor:
    noise = generator(1, "prompts").standard_normal((2, P, backbone.d_model))
    return torch.from_numpy(noise).float() * backbone.embedding_rms


def reference(
    backbone: Backbone, item: Item, prompt_PD: torch.Tensor, word: tuple[int, ...], sentinel: int
) -> float:
    """Log probability of one word by the plain Hugging Face forward, one example, in float64."""
    model = backbone.model.double()
    try:
        embeds = model.get_input_embeddings()(torch.from_numpy(item.input_ids).long()[None])
        inputs = torch.cat([prompt_PD[None].double(), embeds], dim=1)
        decoder_ids = torch.tensor([[0, sentinel, *word]])
        with torch.no_grad():
            logits = model(inputs_embeds=inputs, decoder_input_ids=decoder_ids).logits[0].log_softmax(-1)
        return float(sum(logits[1 + t, token] for t, token in enumerate(word)))
    finally:
        model.float()


@pytest.mark.parametrize("words", [("no", "maybe", "yes"), ("water", "the old man", "my sister found")])
def test_scores_are_the_plain_models_log_probabilities(
    words: tuple[str, ...],
    backbone: Backbone,
    tokenizer: Tokenizer,
    items: list[Item],
    prompts_KPD: torch.Tensor,
) -> None:
    verbalizer = Verbalizer(tokenizer, words)
    which = np.arange(N) % 2
    scores = score_items(backbone, verbalizer, items, prompts_KPD, which, batch_tokens=120)
    for i, item in enumerate(items):
        for label, ids in enumerate(verbalizer.ids):
            expected = reference(backbone, item, prompts_KPD[which[i]], ids, tokenizer.sentinel(0))
            assert scores.log_probs[i, label] == pytest.approx(expected, abs=2e-4)
        assert scores.losses[i] == pytest.approx(
            -scores.log_probs[i, item.label] / len(verbalizer.ids[item.label])
        )
        assert scores.predictions[i] == scores.log_probs[i].argmax()


@pytest.mark.defect(3)
@pytest.mark.parametrize("batch_tokens", [64, 100, 10_000])
def test_no_example_is_dropped_whatever_the_batches_are(
    batch_tokens: int, backbone: Backbone, tokenizer: Tokenizer, items: list[Item], prompts_KPD: torch.Tensor
) -> None:
    verbalizer = Verbalizer(tokenizer, ("no", "maybe", "yes"))
    scores = score_items(
        backbone, verbalizer, items, prompts_KPD, np.zeros(N, int), batch_tokens=batch_tokens
    )
    alone = [score_items(backbone, verbalizer, [item], prompts_KPD[:1], batch_tokens=100) for item in items]
    assert scores.labels.tolist() == [item.label for item in items]
    assert np.isfinite(scores.log_probs).all()
    np.testing.assert_allclose(scores.log_probs, np.concatenate([one.log_probs for one in alone]), atol=1e-4)


def test_a_label_that_a_row_lacks_is_never_predicted(
    backbone: Backbone, tokenizer: Tokenizer, items: list[Item], prompts_KPD: torch.Tensor
) -> None:
    two = [Item(item.input_ids, item.label % 2, 2) for item in items]
    scores = score_items(backbone, Verbalizer.letters(tokenizer, 4), two, prompts_KPD, batch_tokens=500)
    assert scores.predictions.max() <= 1 and np.isneginf(scores.log_probs[:, 2:]).all()
    assert np.isfinite(scores.losses).all()


@pytest.mark.defect(9)
def test_full_vocabulary_accuracy_stands_beside_the_one_over_label_words(
    backbone: Backbone, tokenizer: Tokenizer, items: list[Item], prompts_KPD: torch.Tensor
) -> None:
    verbalizer = Verbalizer(tokenizer, ("no", "maybe", "yes"))
    scores = score_items(backbone, verbalizer, items, prompts_KPD, batch_tokens=500)
    # A random model's best token is hardly ever a label word, but one label word is always the best of three.
    assert scores.vocabulary_accuracy < scores.accuracy
    winner = int(scores.predictions[0])
    everything = _all_words(tokenizer)
    open_ended = [Item(items[0].input_ids, 0, len(everything))]
    best = score_items(backbone, everything, open_ended, prompts_KPD, batch_tokens=500)
    right = [Item(items[0].input_ids, int(best.predictions[0]), len(everything))]
    assert score_items(backbone, everything, right, prompts_KPD, batch_tokens=500).vocabulary_accuracy == 1.0
    assert scores.log_probs[0, winner] <= best.log_probs.max() + 1e-6


def _all_words(tokenizer: Tokenizer) -> Verbalizer:
    made: Any = Verbalizer.letters(tokenizer, 16)
    made.ids = tuple((i,) for i in range(tokenizer.size))
    made.words = tuple(map(str, range(tokenizer.size)))
    return made


def test_length_normalised_scores_compare_means_over_tokens(
    backbone: Backbone, tokenizer: Tokenizer, items: list[Item], prompts_KPD: torch.Tensor
) -> None:
    verbalizer = Verbalizer(tokenizer, ("water", "the old man found"))
    two = [Item(item.input_ids, 0, 2) for item in items]
    lengths = np.asarray([len(ids) for ids in verbalizer.ids])
    assert lengths[1] > lengths[0]
    summed = score_items(backbone, verbalizer, two, prompts_KPD, batch_tokens=500)
    mean = score_items(backbone, verbalizer, two, prompts_KPD, batch_tokens=500, length_normalised=True)
    np.testing.assert_array_equal(summed.log_probs, mean.log_probs)
    np.testing.assert_array_equal(mean.predictions, (mean.log_probs / lengths).argmax(1))
    assert (summed.predictions == 0).all() and (mean.predictions == 1).any()


def test_macro_f1_is_the_mean_over_labels() -> None:
    labels = np.array([0, 0, 0, 1])
    predictions = np.array([0, 0, 1, 1])
    scores = Scores(np.zeros((4, 2)), np.zeros(4), np.zeros(4, bool), labels, predictions)
    assert scores.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2) and scores.accuracy == 0.75


def test_a_diverged_prompt_scores_without_a_crash(
    backbone: Backbone, tokenizer: Tokenizer, items: list[Item], prompts_KPD: torch.Tensor
) -> None:
    verbalizer = Verbalizer(tokenizer, ("no", "maybe", "yes"))
    prompts = prompts_KPD.clone()
    prompts[1] = float("nan")
    scores = score_items(backbone, verbalizer, items, prompts, np.arange(N) % 2, batch_tokens=200)
    assert np.isnan(scores.losses[1::2]).all() and np.isfinite(scores.losses[::2]).all()
