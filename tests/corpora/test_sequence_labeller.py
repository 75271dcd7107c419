"""Tests of corpora/sequence_labeller.py."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora.common.errors import UserError
from corpora.labeller import load_labeller
from corpora.linear_labeller import MAX_TOKENS
from corpora.reviews import FIVE_WORDS
from corpora.sequence_labeller import MULTIPLE, SequenceClassifier, _packed

TEXTS = ["the room was awful", "superb " * 1000, "nice", "", "the boat was superb perfect nice fine"] * 7


def test_each_text_gets_what_a_plain_forward_pass_gives_it_and_only_its_first_tokens(
    classifier_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    labeller = SequenceClassifier(str(classifier_dir))
    monkeypatch.setattr(labeller, "batch_tokens", 600)  # several batches
    found = labeller.predict(TEXTS)
    model = AutoModelForSequenceClassification.from_pretrained(classifier_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier_dir)
    for text, row in zip(TEXTS[:5], found[:5], strict=True):
        inputs = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        np.testing.assert_allclose(row, model(**inputs).logits.softmax(-1)[0].detach().numpy(), atol=1e-5)
    assert np.abs(found[0] - found[2]).max() > 1e-3  # the texts differ, and so do they


def test_groups_are_classified_one_after_the_other_and_the_next_is_read_meanwhile(
    classifier_dir: Path,
) -> None:
    labeller = SequenceClassifier(str(classifier_dir))
    read: list[int] = []

    def groups() -> Iterator[list[str]]:
        for number in range(4):
            read.append(number)
            yield TEXTS[number : number + 5] if number != 2 else []

    found = []
    for number, probabilities in enumerate(labeller.predict_groups(groups())):
        found.append(probabilities)
        assert len(read) <= number + 2  # one ahead, no more
    assert [len(group) for group in found] == [5, 5, 0, 5]
    for number in (0, 1, 3):
        assert np.array_equal(found[number], labeller.predict(TEXTS[number : number + 5]))


def test_an_error_while_the_next_group_is_read_is_raised(classifier_dir: Path) -> None:
    def groups() -> Iterator[list[str]]:
        yield ["nice"]
        raise UserError("no text")

    with pytest.raises(UserError, match="no text"):
        list(SequenceClassifier(str(classifier_dir)).predict_groups(groups()))


@given(st.lists(st.integers(0, 256), max_size=60), st.integers(8, 2000))
def test_batches_hold_every_text_once_within_the_budget_the_longest_first(
    lengths: list[int], budget: int
) -> None:
    batches = [batch.tolist() for batch in _packed(np.array(lengths, np.int64), budget)]
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = -(-max(max(lengths[row] for row in batch), 1) // MULTIPLE) * MULTIPLE
        assert len(batch) * padded <= budget or len(batch) == 1
    order = [lengths[row] for batch in batches for row in batch]
    assert order == sorted(lengths, reverse=True)


def test_a_classifier_has_words_thresholds_and_a_fingerprint(classifier_dir: Path) -> None:
    labeller = SequenceClassifier(str(classifier_dir))
    assert labeller.words == FIVE_WORDS and labeller.thresholds == (0.95, 0.5, 0.5, 0.5, 0.7)
    assert labeller.fingerprint == load_labeller(classifier_dir).fingerprint
    five = ["a", "b", "c", "d", "e"]
    assert load_labeller(classifier_dir, words=five).words == tuple(five)
    with pytest.raises(UserError, match="5 classes and 2 label words"):
        load_labeller(classifier_dir, words=["bad", "good"])


def test_a_tokenizer_that_cannot_pad_is_refused(classifier_dir: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "no_pad"
    shutil.copytree(classifier_dir, folder)
    for name in ("vocab.txt", "special_tokens_map.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    PreTrainedTokenizerFast(tokenizer_file=str(classifier_dir / "tokenizer.json")).save_pretrained(folder)
    with pytest.raises(UserError, match="no padding token"):
        SequenceClassifier(str(folder))
