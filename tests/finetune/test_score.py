"""Label scores and metrics."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from corpora.common.rng import generator
from corpora.formats import Verbalizer
from corpora.tokenizer import Tokenizer
from finetune import score
from finetune.inputs import Item
from finetune.score import Scores, score_items
from pretrain.backbone import Backbone
from pretrain.forward import ForwardOptions
from pretrain.frozen_layers import freeze_norms

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


@pytest.fixture(scope="module")
def exact(backbone: Backbone) -> Backbone:
    """The same model in float64, norms and softmax included."""
    model = copy.deepcopy(backbone.model).double()
    freeze_norms(model)  # transformers' own compute in float32
    model.set_attn_implementation("sdpa")  # and so does its eager softmax
    return Backbone(model, backbone.name)


def reference(
    backbone: Backbone, item: Item, prompt_PD: torch.Tensor | None, word: tuple[int, ...], sentinel: int
) -> float:
    """Log probability of one word by transformers' own forward, one example and one label."""
    inputs = backbone.embed(torch.from_numpy(item.input_ids).long()[None])
    if prompt_PD is not None:
        inputs = torch.cat([prompt_PD[None].to(inputs.dtype), inputs], dim=1)
    decoder_ids = torch.tensor([[0, sentinel, *word]])
    with torch.no_grad():
        output = backbone.model(inputs_embeds=inputs, decoder_input_ids=decoder_ids, use_cache=False)
    log_probs = output.logits[0].log_softmax(-1)
    return float(sum(log_probs[1 + t, token] for t, token in enumerate(word)))


def words_of(tokenizer: Tokenizer, ids: Sequence[tuple[int, ...]]) -> Verbalizer:
    """A verbalizer of any ids."""
    made: Any = Verbalizer.letters(tokenizer, 16)
    made.ids, made.words = tuple(ids), tuple(map(str, ids))
    return made  # type: ignore[no-any-return]


word_ids = st.lists(st.integers(3, 12), min_size=1, max_size=4).map(tuple)  # few ids: words share beginnings
drawn_verbalizers = st.lists(st.lists(word_ids, min_size=2, max_size=5, unique=True), min_size=1, max_size=3)
drawn_items = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 1), st.integers(0, 2), st.integers(0, 4)),
    min_size=1,
    max_size=7,
)


@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(verbalizers=drawn_verbalizers, drawn=drawn_items, budget=st.integers(64, 300), prompted=st.booleans())
def test_scores_are_those_of_transformers_for_each_example_and_label_alone(
    verbalizers: list[list[tuple[int, ...]]],
    drawn: list[tuple[int, int, int, int]],
    budget: int,
    prompted: bool,
    exact: Backbone,
    tokenizer: Tokenizer,
    prompts_KPD: torch.Tensor,
) -> None:
    made = [words_of(tokenizer, ids) for ids in verbalizers]
    rng, sentinel = generator(2, "drawn items"), tokenizer.sentinel(0)
    each = [made[verbalizer % len(made)] for _, _, verbalizer, _ in drawn]
    items = [
        Item(rng.integers(3, 150, length).astype(np.int32), label % len(words), len(words))
        for (length, _, _, label), words in zip(drawn, each, strict=True)
    ]
    which = [prompt for _, prompt, _, _ in drawn]
    prompts = prompts_KPD.double() if prompted else None
    scores = score_items(exact, each, items, prompts, which if prompted else None, batch_tokens=budget)
    for i, (item, words) in enumerate(zip(items, each, strict=True)):
        prompt_PD = prompts[which[i]] if prompts is not None else None
        alone = np.array([reference(exact, item, prompt_PD, ids, sentinel) for ids in words.ids])
        np.testing.assert_allclose(scores.log_probs[i, : len(words)], alone, rtol=0, atol=1e-9)
        assert np.isneginf(scores.log_probs[i, len(words) :]).all()
        assert scores.losses[i] == pytest.approx(-alone[item.label] / len(words.ids[item.label]), abs=1e-9)
        assert scores.predictions[i] == scores.log_probs[i].argmax()


@pytest.mark.parametrize("words", [("no", "maybe", "yes"), ("water", "the old man", "my sister found")])
def test_in_float32_scores_are_the_plain_models_to_rounding(
    words: tuple[str, ...],
    backbone: Backbone,
    exact: Backbone,
    tokenizer: Tokenizer,
    items: list[Item],
    prompts_KPD: torch.Tensor,
) -> None:
    verbalizer, which = Verbalizer(tokenizer, words), np.arange(N) % 2
    scores = score_items(backbone, verbalizer, items, prompts_KPD, which, batch_tokens=120)
    for i, item in enumerate(items):
        for label, ids in enumerate(verbalizer.ids):
            expected = reference(exact, item, prompts_KPD[which[i]], ids, tokenizer.sentinel(0))
            assert scores.log_probs[i, label] == pytest.approx(expected, abs=2e-5)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Every pass: its kind, its rows, and of a decoder pass the examples whose states it reads."""
    made: list[tuple[str, int, int]] = []
    encode, output, logits = score.encode_prompted, Backbone.decoder_output, Backbone.logits

    def encoded(*arguments: Any) -> Any:
        found = encode(*arguments)
        made.append(("encoder", len(found[0]), 0))
        return found

    def decoded(self: Backbone, states_BLD: torch.Tensor, mask_BL: Any, ids_RT: torch.Tensor) -> Any:
        made.append(("decoder", len(ids_RT), len(states_BLD)))
        return output(self, states_BLD, mask_BL, ids_RT)

    def headed(self: Backbone, outputs: torch.Tensor) -> Any:
        made.append(("head", len(outputs), 0))
        return logits(self, outputs)

    monkeypatch.setattr(score, "encode_prompted", encoded)
    monkeypatch.setattr(Backbone, "decoder_output", decoded)
    monkeypatch.setattr(Backbone, "logits", headed)
    return made


def test_words_of_one_token_cost_one_decoder_pass_for_all_labels(
    calls: list[tuple[str, int, int]],
    backbone: Backbone,
    tokenizer: Tokenizer,
    items: list[Item],
    prompts_KPD: torch.Tensor,
) -> None:
    score_items(backbone, Verbalizer.letters(tokenizer, 16), items, prompts_KPD, batch_tokens=10_000)
    assert calls == [("encoder", N, 0), ("decoder", N, N), ("head", N, 0)]


def test_longer_words_cost_one_pass_over_the_same_states_and_shared_beginnings_are_read_once(
    calls: list[tuple[str, int, int]],
    backbone: Backbone,
    tokenizer: Tokenizer,
    items: list[Item],
    prompts_KPD: torch.Tensor,
) -> None:
    verbalizer = words_of(tokenizer, [(5,), (5, 6, 7), (5, 6, 8), (9, 4)])
    long = [Item(item.input_ids, item.label, 4) for item in items]
    score_items(backbone, verbalizer, long, prompts_KPD, batch_tokens=10_000)
    # Rows: 5 6 and 9; what a token follows: nothing, 5, 5 6, 9.
    assert calls == [("encoder", N, 0), ("decoder", 2 * N, N), ("head", 4 * N, 0)]


def test_tasks_with_words_of_one_token_and_of_more_share_the_encoder(
    calls: list[tuple[str, int, int]],
    backbone: Backbone,
    tokenizer: Tokenizer,
    items: list[Item],
    prompts_KPD: torch.Tensor,
) -> None:
    short, other = words_of(tokenizer, [(20,), (30,), (40,)]), Verbalizer.letters(tokenizer, 3)
    long = words_of(tokenizer, [(5, 6), (7, 8), (9, 4)])
    each = [(short, other, long)[i % 3] for i in range(N)]
    shared = score_items(backbone, each, items, prompts_KPD, batch_tokens=10_000)
    ones, others = sum(one is not long for one in each), sum(one is long for one in each)
    assert [call for call in calls if call[0] != "head"] == [
        ("encoder", N, 0), ("decoder", ones, ones), ("decoder", 3 * others, others),
    ]  # fmt: skip
    for i, item in enumerate(items):
        alone = score_items(backbone, each[i], [item], prompts_KPD, batch_tokens=10_000)
        np.testing.assert_allclose(shared.log_probs[i], alone.log_probs[0], atol=1e-5)


def test_a_micro_batch_computes_with_the_prompts_of_its_own_examples_alone(
    monkeypatch: pytest.MonkeyPatch, backbone: Backbone, tokenizer: Tokenizer, items: list[Item]
) -> None:
    encode, given = score.encode_prompted, []

    def encoded(backbone: Backbone, prompts_KPD: torch.Tensor, *rest: Any) -> Any:
        given.append(prompts_KPD)
        return encode(backbone, prompts_KPD, *rest)

    monkeypatch.setattr(score, "encode_prompted", encoded)
    noise = generator(3, "many prompts").standard_normal((40, P, backbone.d_model))
    prompts_KPD, which = torch.from_numpy(noise).float(), np.repeat([7, 30], [N - 4, 4])
    score_items(backbone, Verbalizer.letters(tokenizer, 3), items, prompts_KPD, which, batch_tokens=10_000)
    (used_KPD,) = given
    torch.testing.assert_close(used_KPD, prompts_KPD[[7, 30]])


def test_many_long_words_are_decoded_in_parts_that_fit_the_budget(
    calls: list[tuple[str, int, int]],
    backbone: Backbone,
    tokenizer: Tokenizer,
    items: list[Item],
    prompts_KPD: torch.Tensor,
) -> None:
    verbalizer = words_of(tokenizer, [(i, i + 1, i + 2) for i in range(3, 19)])
    many = [Item(item.input_ids, item.label, 16) for item in items]
    whole = score_items(backbone, verbalizer, many, prompts_KPD, batch_tokens=10_000)
    calls.clear()
    parts = score_items(backbone, verbalizer, many, prompts_KPD, batch_tokens=300)
    # 16 rows of 4 positions an example: four examples a pass, though more fit the encoder.
    decoded = [examples for kind, _, examples in calls if kind == "decoder"]
    assert max(decoded) == 4 and sum(decoded) == N
    assert max(examples for kind, examples, _ in calls if kind == "encoder") > 4
    np.testing.assert_allclose(parts.log_probs, whole.log_probs, atol=1e-5)


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
    everything = words_of(tokenizer, [(i,) for i in range(tokenizer.size)])
    open_ended = [Item(items[0].input_ids, 0, len(everything))]
    best = score_items(backbone, everything, open_ended, prompts_KPD, batch_tokens=500)
    right = [Item(items[0].input_ids, int(best.predictions[0]), len(everything))]
    assert score_items(backbone, everything, right, prompts_KPD, batch_tokens=500).vocabulary_accuracy == 1.0
    assert scores.log_probs[0, winner] <= best.log_probs.max() + 1e-6


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
    log_probs_NC = np.log([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    scores = Scores(log_probs_NC, np.zeros(4), np.zeros(4, bool), labels, log_probs_NC)
    assert scores.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2) and scores.accuracy == 0.75


@pytest.mark.parametrize("attention", ["grouped", "flex"])
def test_a_diverged_prompt_scores_nan_and_leaves_the_others_of_its_batch_alone(
    attention: Any, backbone: Backbone, tokenizer: Tokenizer, items: list[Item], prompts_KPD: torch.Tensor
) -> None:
    """Torch's fused kernel multiplies what it masks by 0, and 0 x NaN is NaN: all of its batch would be."""
    verbalizer, options = Verbalizer(tokenizer, ("no", "maybe", "yes")), ForwardOptions(attention)
    prompts, which = prompts_KPD.clone(), np.arange(N) % 2
    sound = score_items(backbone, verbalizer, items, prompts, which, batch_tokens=10_000, options=options)
    prompts[1, 2, 3] = float("nan")
    scores = score_items(backbone, verbalizer, items, prompts, which, batch_tokens=10_000, options=options)
    np.testing.assert_array_equal(scores.log_probs[::2], sound.log_probs[::2])
    assert np.isnan(scores.log_probs[1::2]).all() and np.isnan(scores.losses[1::2]).all()
    assert not scores.vocabulary_right[1::2].any() and (scores.predictions[1::2] == 0).all()


def test_a_model_whose_norms_train_is_scored_as_it_is_and_stays_so(
    backbone: Backbone, tokenizer: Tokenizer, items: list[Item]
) -> None:
    tuned = Backbone(copy.deepcopy(backbone.model), backbone.name)
    model = tuned.model.requires_grad_(True)
    kinds = [type(module) for module in model.modules()]
    with torch.no_grad():
        model.encoder.final_layer_norm.weight.mul_(1.5)
    verbalizer = Verbalizer(tokenizer, ("no", "maybe", "yes"))
    scores = score_items(tuned, verbalizer, items, None, batch_tokens=500)
    expected = reference(tuned, items[3], None, verbalizer.ids[1], tokenizer.sentinel(0))
    assert scores.log_probs[3, 1] == pytest.approx(expected, abs=2e-5)
    assert [type(module) for module in model.modules()] == kinds
    assert all(parameter.requires_grad for parameter in model.parameters())
