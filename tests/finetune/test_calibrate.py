"""Contextual calibration, and sets of several tasks scored at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from corpora.common.rng import generator
from corpora.tokenizer import Tokenizer
from finetune import score
from finetune.calibrate import CONTENT_FREE, ItemSet, calibrated, content_free_items, score_sets
from finetune.datasets import LabelledRow
from finetune.inputs import Item, Renderer, encode_rows
from finetune.plan import plan
from finetune.score import Scores, score_items
from finetune.task import Task
from finetune.workshop import Workshop
from pretrain.backbone import Backbone

P = 4


def scores_of(probabilities: list[list[float]], labels: list[int], factor: float = 1.0) -> Scores:
    """Scores as a model gives them whose label words have these probabilities, times `factor`."""
    with np.errstate(divide="ignore"):
        log_probs_NC = np.log(np.array(probabilities) * factor)
    n = len(labels)
    losses = -log_probs_NC[np.arange(n), labels]
    return Scores(log_probs_NC, losses, np.zeros(n, bool), np.array(labels), log_probs_NC)


def test_probabilities_are_divided_by_the_mean_of_those_that_say_nothing() -> None:
    scores = scores_of([[0.6, 0.4], [0.9, 0.1]], [1, 0], factor=1e-3)
    free = scores_of([[0.8, 0.2], [0.7, 0.3], [0.6, 0.4]], [0, 0, 0], factor=0.01)
    found = calibrated(scores, free)
    # The mean is 0.7, 0.3: 0.6 / 0.7 to 0.4 / 0.3 and 0.9 / 0.7 to 0.1 / 0.3.
    expected = [[0.857142857, 1.333333333], [1.285714286, 0.333333333]]
    normalised = [[a / (a + b), b / (a + b)] for a, b in expected]
    np.testing.assert_allclose(np.exp(found.ranked), normalised, rtol=1e-8)
    assert scores.predictions.tolist() == [0, 0] and found.predictions.tolist() == [1, 0]
    assert scores.accuracy == 0.5 and found.accuracy == 1.0


def test_each_content_free_text_counts_alike_however_likely_its_labels_are_together() -> None:
    scores = scores_of([[0.5, 0.5]], [0])
    free = scores_of([[0.9, 0.1], [1e-6 * 0.1, 1e-6 * 0.9]], [0, 0])
    np.testing.assert_allclose(np.exp(calibrated(scores, free).ranked), [[0.5, 0.5]])


def test_loss_and_the_models_own_scores_stay_as_they_are() -> None:
    scores, free = scores_of([[0.6, 0.3]], [1]), scores_of([[0.9, 0.1]], [0])
    found = calibrated(scores, free)
    assert found.predictions.tolist() == [1] and scores.predictions.tolist() == [0]
    np.testing.assert_array_equal(found.losses, scores.losses)
    np.testing.assert_array_equal(found.log_probs, scores.log_probs)
    np.testing.assert_array_equal(found.vocabulary_right, scores.vocabulary_right)


def test_rows_with_fewer_options_are_calibrated_by_texts_with_as_many() -> None:
    scores = scores_of([[0.6, 0.4, 0.0], [0.5, 0.3, 0.2]], [1, 2])
    free = scores_of([[0.75, 0.25, 0.0], [0.4, 0.4, 0.2]], [0, 0])
    ranked = calibrated(scores, free).ranked
    np.testing.assert_allclose(np.exp(ranked[0]), [0.8 / 2.4, 1.6 / 2.4, 0.0])
    np.testing.assert_allclose(np.exp(ranked[1]), [1.25 / 3, 0.75 / 3, 1 / 3])
    with pytest.raises(ValueError, match="has 3 labels"):
        calibrated(scores, free.of(slice(0, 1)))


def test_a_prompt_that_scores_nan_stays_so() -> None:
    lost = scores_of([[np.nan, np.nan]], [1])
    found = calibrated(lost, lost)
    assert np.isnan(found.ranked).all() and found.predictions.tolist() == [0]


def test_content_free_texts_stand_in_every_field_and_fixed_options_stay(
    task_files: dict[str, str], tokenizer: Tokenizer
) -> None:
    task = Task.load(task_files["pair"])
    rows = [LabelledRow({"one": "the boat", "two": "the water"}, (), 0)]
    renderer = Renderer(task, "unified", tokenizer, P)
    items = renderer.render(encode_rows(tokenizer, rows))
    free = content_free_items(renderer, items)
    spelt = [text for text in CONTENT_FREE["en"] if tokenizer.unk_id not in tokenizer.encode([text])[0]]
    assert "" in spelt and len(free) == len(spelt)
    for text, item in zip(spelt, free, strict=True):
        (wanted,) = renderer.render(encode_rows(tokenizer, [LabelledRow({"one": text, "two": text}, (), 0)]))
        np.testing.assert_array_equal(item.input_ids, wanted.input_ids)
        assert item.n_labels == 3
    shown = tokenizer.decode(free[spelt.index("")].input_ids.tolist())
    assert all(word in shown for word in task.verbalizer) and "boat" not in shown


def test_where_options_are_each_rows_own_letters_alone_are_left_for_every_number_of_options(
    task_files: dict[str, str], tokenizer: Tokenizer
) -> None:
    renderer = Renderer(Task.load(task_files["quiz"]), "plain", tokenizer, P)
    rows = [
        LabelledRow({"q": "the boat"}, options, 0)
        for options in (("rose", "water"), ("rose", "water", "seed"), ("bread", "soup"))
    ]
    free = content_free_items(renderer, renderer.render(encode_rows(tokenizer, rows)))
    assert sorted({item.n_labels for item in free}) == [2, 3]
    for item in free:
        letters = [int(index) for index in item.input_ids if index in tokenizer.letters]
        assert letters == list(tokenizer.letters[: item.n_labels])
        shown = tokenizer.decode(item.input_ids.tolist())
        assert not any(word in shown for word in ("rose", "water", "soup", "boat"))


def test_a_text_that_the_vocabulary_cannot_spell_is_left_out(
    task_files: dict[str, str], tokenizer: Tokenizer
) -> None:
    task = Task.load(task_files["mood"]).model_copy(update={"language": "zh"})
    assert tokenizer.unk_id in tokenizer.encode(["无"])[0]
    renderer = Renderer(task, "plain", tokenizer, P)
    free = content_free_items(
        renderer, renderer.render(encode_rows(tokenizer, [LabelledRow({"text": "rose"}, (), 0)]))
    )
    assert 1 <= len(free) < 3
    assert not any(tokenizer.unk_id in item.input_ids for item in free)


@pytest.fixture(scope="module")
def prompts_KPD(backbone: Backbone) -> torch.Tensor:
    noise = generator(1, "prompts").standard_normal((2, P, backbone.d_model))
    return torch.from_numpy(noise).float() * backbone.embedding_rms


def sets_of(task_files: dict[str, str], tokenizer: Tokenizer) -> list[ItemSet]:
    """One set of two labels and one of three, each with a prompt of its own; the second is to be calibrated."""
    mood = Renderer(Task.load(task_files["mood"]), "hard", tokenizer, P)
    pair = Renderer(Task.load(task_files["pair"]), "plain", tokenizer, P)
    texts = ["the boat near the water", "a rose", "bread and soup of the kitchen", "the captain left"]
    one = mood.render(encode_rows(tokenizer, [LabelledRow({"text": text}, (), 0) for text in texts]))
    rows = [LabelledRow({"one": text, "two": text[:9]}, (), 2) for text in texts]
    two = pair.render(encode_rows(tokenizer, rows))
    return [ItemSet(one, mood.verbalizer, 1), ItemSet(two, pair.verbalizer, 0, content_free_items(pair, two))]


def test_sets_scored_together_score_what_each_scores_alone(
    task_files: dict[str, str],
    tokenizer: Tokenizer,
    backbone: Backbone,
    prompts_KPD: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode, batches = score.encode_prompted, []

    def counting(*arguments: object) -> object:
        batches.append(arguments)
        return encode(*arguments)  # type: ignore[arg-type]

    sets = sets_of(task_files, tokenizer)
    monkeypatch.setattr(score, "encode_prompted", counting)
    mood, pair = score_sets(backbone, sets, prompts_KPD, batch_tokens=10_000)
    assert len(batches) == 1
    alone = [
        score_items(backbone, one.verbalizer, one.items, prompts_KPD[[one.prompt]], batch_tokens=500)
        for one in sets
    ]
    free = score_items(backbone, sets[1].verbalizer, sets[1].content_free, prompts_KPD[:1], batch_tokens=500)
    assert mood.log_probs.shape == (4, 2) and pair.log_probs.shape == (4, 3)
    for found, wanted in ((mood, alone[0]), (pair, calibrated(alone[1], free))):
        np.testing.assert_allclose(found.log_probs, wanted.log_probs, atol=1e-5)
        np.testing.assert_allclose(found.ranked, wanted.ranked, atol=1e-5)
        np.testing.assert_array_equal(found.labels, wanted.labels)
    assert np.abs(pair.ranked - alone[1].ranked).max() > 0.1
    assert score_sets(backbone, [], prompts_KPD, batch_tokens=500) == []


def test_calibrated_cells_are_other_cells(small_run: Any) -> None:
    plain, other = (
        {key["cell"] for job in plan(Workshop(small_run(calibration=way))) for key in job.keys}
        for way in (None, "contextual")
    )
    assert plain and len(plain) == len(other) and not plain & other


def test_calibrated_scores_of_the_texts_themselves_favour_no_label_on_average(
    task_files: dict[str, str], tokenizer: Tokenizer, backbone: Backbone, prompts_KPD: torch.Tensor
) -> None:
    (_, pair) = sets_of(task_files, tokenizer)
    one_text: list[Item] = list(pair.content_free[:1])
    (found,) = score_sets(
        backbone, [ItemSet(one_text, pair.verbalizer, 0, one_text)], prompts_KPD, batch_tokens=500
    )
    np.testing.assert_allclose(
        np.exp(found.ranked), np.full((1, 3), 1 / 3), rtol=1e-5
    )  # float32, in other rows of a batch
