"""Tests of corpora/labeller.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from corpora.common.errors import UserError
from corpora.label_training import train
from corpora.labeller import check_tokenizer, load_labeller
from corpora.linear_labeller import TextLabeller, TokenLabeller
from corpora.reviews import FIVE_WORDS
from corpora.sequence_labeller import SequenceClassifier
from corpora.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory,
    star_reviews: Callable[..., list[dict[str, object]]],
    jsonl: Callable[..., Path],
    tokenizer_dir: Path,
) -> dict[str, Path]:
    """A labeller that reads text and one that reads token ids."""
    folder = tmp_path_factory.mktemp("labellers")
    reviews = jsonl(folder / "reviews.jsonl", star_reviews(300))
    train(reviews, folder / "text")
    train(reviews, folder / "tokens", tokenizer=tokenizer_dir)
    return {name: folder / name for name in ("text", "tokens")}


def test_each_kind_is_loaded_by_its_folder_and_says_what_it_reads(
    folders: dict[str, Path], classifier_dir: Path
) -> None:
    for name, kind in (("text", TextLabeller), ("tokens", TokenLabeller)):
        labeller = load_labeller(folders[name])
        assert isinstance(labeller, kind) and labeller.reads == name
        assert labeller.linear and labeller.thresholds is None and labeller.language == "en"
        assert labeller.words == FIVE_WORDS and labeller.describe()["reads"] == name
    classifier = load_labeller(classifier_dir)
    assert isinstance(classifier, SequenceClassifier) and classifier.reads == "text" and not classifier.linear


def test_other_words_than_it_was_trained_with_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="was trained with the words"):
        load_labeller(folders["tokens"], words=["a", "b", "c", "d", "e"])


def test_token_ids_of_another_vocabulary_are_refused_naming_both(
    folders: dict[str, Path], tokenizer: Tokenizer
) -> None:
    labeller = load_labeller(folders["tokens"])
    check_tokenizer(labeller, tokenizer.name, tokenizer.fingerprint)
    with pytest.raises(UserError) as error:
        check_tokenizer(labeller, "another", "f" * 64)
    for part in (Path(tokenizer.name).name, tokenizer.fingerprint[:12], "another", "f" * 12, "train it"):
        assert part in str(error.value)
    check_tokenizer(load_labeller(folders["text"]), "another", "f" * 64)  # text has no ids


def test_a_name_that_is_no_labeller_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a labeller's folder nor a sequence classifier"):
        load_labeller(tmp_path / "empty")
