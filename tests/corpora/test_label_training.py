"""Tests of corpora/label_training.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpora.common.errors import UserError
from corpora.label_training import calibrate, train
from corpora.labeller import load_labeller
from corpora.linear_labeller import TextLabeller, TokenLabeller
from corpora.reviews import FIVE_WORDS
from corpora.sequence_labeller import SequenceClassifier
from corpora.tokenizer import Tokenizer

Rows = Callable[..., list[dict[str, Any]]]
Write = Callable[[Path, Sequence[dict[str, Any]]], Path]


def manifest(folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return fields


@pytest.mark.parametrize("reads", ["text", "tokens"])
def test_training_reports_agreement_with_reviews_that_nothing_else_read(
    tmp_path: Path,
    star_reviews: Rows,
    jsonl: Write,
    tokenizer_dir: Path,
    capsys: pytest.CaptureFixture[str],
    reads: str,
) -> None:
    tokenizer = tokenizer_dir if reads == "tokens" else None
    rows = [*star_reviews(300), *[{"text": "superb meal", "label": 4}] * 100]
    report = train(jsonl(tmp_path / "reviews.jsonl", rows), tmp_path / "labeller", tokenizer=tokenizer)
    assert (report.n_train, report.n_calibration, report.n_test) == (360, 20, 20)
    assert report.accuracy >= 0.95 > 0.7 > report.majority and report.within_one >= report.accuracy
    assert report.line() in capsys.readouterr().err
    there = manifest(tmp_path / "labeller")
    assert there["agreement"] == report.fields()
    assert (
        there["temperature"] == report.temperature == load_labeller(tmp_path / "labeller").temperature != 1.0
    )
    test = jsonl(tmp_path / "test.jsonl", star_reviews(10))
    other = train(tmp_path / "reviews.jsonl", tmp_path / "other", test=test, tokenizer=tokenizer)
    assert (other.n_train, other.n_calibration, other.n_test, other.majority) == (380, 20, 10, 0.2)


def test_training_twice_gives_the_same_bytes_and_another_seed_another_split(
    tmp_path: Path, star_reviews: Rows, jsonl: Write, tokenizer_dir: Path
) -> None:
    path = jsonl(tmp_path / "reviews.jsonl", star_reviews(100))
    for tokenizer, names in (
        (None, ("model.safetensors", "vocabulary.json", "manifest.json")),
        (tokenizer_dir, ("model.safetensors", "manifest.json")),
    ):
        folders = [tmp_path / f"{name}{tokenizer is None}" for name in "abc"]
        for folder, seed in zip(folders, (0, 0, 1), strict=True):
            train(path, folder, seed=seed, tokenizer=tokenizer)
        one, two, other = ([(folder / name).read_bytes() for name in names] for folder in folders)
        assert one == two and one[0] != other[0]


def test_the_weights_of_text_are_those_of_scikit_learn(
    tmp_path: Path, star_reviews: Rows, jsonl: Write
) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    from corpora.calibration import tempered
    from corpora.common.rng import generator

    for classes in (2, 5):
        rows = star_reviews(250, classes)
        test = jsonl(tmp_path / f"test{classes}.jsonl", star_reviews(20, classes))
        folder = tmp_path / f"labeller{classes}"
        train(jsonl(tmp_path / f"{classes}.jsonl", rows), folder, test=test, words=FIVE_WORDS[:classes])
        # A twentieth is for the temperature.
        rows = [rows[i] for i in sorted(generator(0, "labeller", "held-out").permutation(250)[12:].tolist())]
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        features = vectorizer.fit_transform([row["text"] for row in rows])
        model = LogisticRegression(C=4.0, class_weight="balanced", max_iter=500)
        model.fit(features, [row["label"] for row in rows])
        texts = ["the soup was awful", "a superb room", "weak and slow today"]
        labeller = TextLabeller(folder)
        expected = tempered(model.predict_proba(vectorizer.transform(texts)), labeller.temperature)
        np.testing.assert_allclose(labeller.predict(texts), expected, atol=4e-3)


def test_the_weights_of_tokens_are_those_of_a_regression_on_counts_times_idf(
    tmp_path: Path, star_reviews: Rows, jsonl: Write, tokenizer_dir: Path, tokenizer: Tokenizer
) -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    from corpora.calibration import tempered
    from corpora.common.rng import generator

    for classes in (2, 5):
        rows = star_reviews(250, classes)
        folder = tmp_path / f"labeller{classes}"
        test = jsonl(tmp_path / f"test{classes}.jsonl", star_reviews(20, classes))
        path = jsonl(tmp_path / f"{classes}.jsonl", rows)
        train(path, folder, test=test, words=FIVE_WORDS[:classes], tokenizer=tokenizer_dir)
        rows = [rows[i] for i in sorted(generator(0, "labeller", "held-out").permutation(250)[12:].tolist())]
        texts = ["the soup was awful", "a superb room", "weak and slow today"]
        vectorizer = CountVectorizer(analyzer=str.split, ngram_range=(1, 1), min_df=2)

        def spelt(lines: list[str]) -> list[str]:
            """Ids and their pairs as words."""
            ids = [[str(i) for i in unit.tolist()] for unit in tokenizer.encode(lines)]
            return [" ".join([*unit, *map("-".join, pairwise(unit))]) for unit in ids]

        def features(lines: list[str], counts: Any, idf: np.ndarray) -> Any:
            lengths = [len(unit) for unit in tokenizer.encode(lines)]
            return counts.toarray() * idf / np.sqrt(lengths)[:, None]

        lines = [row["text"] for row in rows]
        counts = vectorizer.fit_transform(spelt(lines))
        idf = np.log((1 + len(rows)) / (1 + (counts > 0).toarray().sum(0)))
        norm = np.sqrt((features(lines, counts, idf) ** 2).sum(1).mean())
        model = LogisticRegression(C=4.0, class_weight="balanced", max_iter=500)
        model.fit(features(lines, counts, idf) / norm, [row["label"] for row in rows])
        expected = model.predict_proba(features(texts, vectorizer.transform(spelt(texts)), idf) / norm)
        labeller = TokenLabeller(folder)
        found = labeller.predict_ids(*tokenizer.encode_flat(texts))
        np.testing.assert_allclose(found, tempered(expected, labeller.temperature), atol=1e-2)


def test_two_classes_of_chinese_are_read_by_characters_and_named_in_the_manifest(
    tmp_path: Path, jsonl: Write
) -> None:
    rows = [
        {"text": f"{'房间很好' if i % 2 else '服务太差'}，{'早餐晚餐'[i % 4]}第{i}次", "label": i % 2}
        for i in range(100)
    ]
    report = train(jsonl(tmp_path / "reviews.jsonl", rows), tmp_path / "labeller", words=["差", "好"])
    assert report.accuracy == 1.0
    labeller = TextLabeller(tmp_path / "labeller")
    there = manifest(tmp_path / "labeller")
    assert there["words"] == ["差", "好"] and there["analyzer"] == "char" and there["language"] == "zh"
    assert labeller.predict(["很好", "太差"]).argmax(1).tolist() == [1, 0]


def test_a_class_without_reviews_is_an_error_that_names_it(
    tmp_path: Path, star_reviews: Rows, jsonl: Write
) -> None:
    path = jsonl(tmp_path / "reviews.jsonl", star_reviews(50, classes=2))
    with pytest.raises(UserError, match="no reviews of class maybe, good, great"):
        train(path, tmp_path / "labeller")
    with pytest.raises(UserError, match="does not exist"):
        train(tmp_path / "none.jsonl", tmp_path / "labeller")
    with pytest.raises(UserError, match="is no tokenizer"):
        train(path, tmp_path / "labeller", tokenizer=path)
    assert not (tmp_path / "labeller").exists()


def test_a_folder_that_may_not_be_written_fails_with_one_line_and_leaves_nothing(
    tmp_path: Path,
    star_reviews: Rows,
    jsonl: Write,
    without_rights: Callable[[Callable[[], object]], tuple[int, str]],
) -> None:
    path = jsonl(tmp_path / "reviews.jsonl", star_reviews(50))
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o755)
    code, message = without_rights(lambda: train(path, closed / "labeller"))
    assert code == 1 and "permission denied" in message and "\n" not in message
    assert not list(closed.iterdir())


def test_a_classifier_is_calibrated_on_half_of_the_reviews_and_measured_on_the_other(
    tmp_path: Path, star_reviews: Rows, jsonl: Write, classifier_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from corpora.calibration import tempered

    path = jsonl(tmp_path / "reviews.jsonl", star_reviews(41))
    report = calibrate(str(classifier_dir), path, tmp_path / "labeller")
    assert (report.n_train, report.n_calibration, report.n_test) == (0, 20, 21)
    assert report.line() in capsys.readouterr().err and "trained on" not in report.line()
    assert manifest(tmp_path / "labeller")["agreement"] == report.fields()
    labeller, plain = load_labeller(tmp_path / "labeller"), SequenceClassifier(str(classifier_dir))
    assert isinstance(labeller, SequenceClassifier) and labeller.fingerprint != plain.fingerprint
    texts = ["the room was superb", "awful"]
    expected = tempered(plain.predict(texts), report.temperature)
    np.testing.assert_allclose(labeller.predict(texts), expected, atol=1e-5)
    assert labeller.describe()["temperature"] == report.temperature != 1.0
    with pytest.raises(UserError, match="already exists"):
        calibrate(str(classifier_dir), path, tmp_path / "labeller")


def test_a_classifier_that_changed_after_its_calibration_is_refused(
    tmp_path: Path, star_reviews: Rows, jsonl: Write, classifier_dir: Path
) -> None:
    calibrate(str(classifier_dir), jsonl(tmp_path / "reviews.jsonl", star_reviews(10)), tmp_path / "labeller")
    fields = manifest(tmp_path / "labeller") | {"classifier": "another"}
    (tmp_path / "labeller" / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"is not the classifier that .* was calibrated for"):
        load_labeller(tmp_path / "labeller")
