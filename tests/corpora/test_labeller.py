from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from corpora.common.errors import UserError
from corpora.common.rng import generator
from corpora.labeller import FIVE_WORDS, MAX_TOKENS, Labeller, head, train

SAID = {
    0: "awful horrible broken",
    1: "poor weak slow",
    2: "average okay usual",
    3: "nice fine tasty",
    4: "superb perfect",
}


def reviews(n: int, classes: int = 5) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for i in range(n):
        rng, label = generator(0, "reviews", i), i % classes
        said = " ".join(rng.choice(SAID[label].split(), 2))
        rows.append({"text": f"the {rng.choice(['soup', 'room', 'train'])} was {said} today", "label": label})
    return rows


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_training_reports_held_out_accuracy_beside_the_majority_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "reviews.jsonl", [*reviews(300), *[{"text": "superb meal", "label": 4}] * 100])
    report = train(path, tmp_path / "labeller")
    assert (report.n_train, report.n_test) == (360, 40)
    assert report.accuracy > 0.95 > 0.7 > report.majority
    assert report.line() in capsys.readouterr().err
    assert "held-out accuracy" in report.line() and f"{report.majority:.4f}" in report.line()
    other = train(path, tmp_path / "other", test=write(tmp_path / "test.jsonl", reviews(10)))
    assert (other.n_train, other.n_test, other.majority) == (400, 10, 0.2)


def test_a_saved_labeller_predicts_what_it_did_and_holds_no_pickle(tmp_path: Path) -> None:
    path = write(tmp_path / "reviews.jsonl", reviews(300))
    train(path, tmp_path / "labeller")
    labeller = Labeller.load(tmp_path / "labeller")
    assert labeller.words == FIVE_WORDS and labeller.linear and labeller.thresholds is None
    texts = [f"the room was {SAID[label]}" for label in range(5)]
    probabilities = labeller.predict(texts)
    assert probabilities.shape == (5, 5) and probabilities.dtype == np.float32
    assert probabilities.argmax(1).tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    one_by_one = np.concatenate([labeller.predict([text]) for text in texts])
    assert (one_by_one == probabilities).all()  # batches change nothing
    copy = tmp_path / "copy"
    copy.mkdir()
    labeller.save(copy)
    assert (Labeller.load(copy).predict(texts) == probabilities).all()
    names = {file.name for file in (tmp_path / "labeller").iterdir()}
    assert names == {"model.safetensors", "vocabulary.json", "manifest.json"}


def test_training_twice_gives_the_same_bytes_and_another_seed_another_split(tmp_path: Path) -> None:
    path = write(tmp_path / "reviews.jsonl", reviews(100))
    train(path, tmp_path / "a")
    train(path, tmp_path / "b")
    train(path, tmp_path / "c", seed=1)
    for name in ("model.safetensors", "vocabulary.json", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "model.safetensors").read_bytes() != (
        tmp_path / "c" / "model.safetensors"
    ).read_bytes()


def test_the_weights_are_those_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    for classes in (2, 5):
        rows = reviews(250, classes)
        test = write(tmp_path / f"test{classes}.jsonl", reviews(20, classes))
        folder = tmp_path / f"labeller{classes}"
        train(write(tmp_path / f"{classes}.jsonl", rows), folder, test=test, words=FIVE_WORDS[:classes])
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        features = vectorizer.fit_transform([str(row["text"]) for row in rows])
        model = LogisticRegression(C=4.0, class_weight="balanced", max_iter=500)
        model.fit(features, [row["label"] for row in rows])
        texts = ["the soup was awful", "a superb room", "weak and slow today"]
        expected = model.predict_proba(vectorizer.transform(texts))
        np.testing.assert_allclose(Labeller.load(folder).predict(texts), expected, atol=2e-3)


def test_two_classes_of_chinese_are_read_by_characters_and_named_in_the_manifest(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": f"{'房间很好' if i % 2 else '服务太差'}，{'早餐晚餐'[i % 4]}第{i}次", "label": i % 2}
        for i in range(100)
    ]
    report = train(write(tmp_path / "reviews.jsonl", rows), tmp_path / "labeller", words=["差", "好"])
    assert report.accuracy == 1.0
    labeller = Labeller.load(tmp_path / "labeller")
    manifest = json.loads((tmp_path / "labeller" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["words"] == ["差", "好"] and manifest["analyzer"] == "char"
    assert labeller.predict(["很好", "太差"]).argmax(1).tolist() == [1, 0]


def test_reviews_are_read_from_csv_and_labels_may_be_words(tmp_path: Path) -> None:
    lines = [
        "text,label",
        *[f'"{row["text"]}, really",{FIVE_WORDS[int(str(row["label"]))]}' for row in reviews(100)],
    ]
    path = tmp_path / "reviews.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert train(path, tmp_path / "labeller").n_train == 90


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "reviews.jsonl line 3: not valid JSON"),
        ("[1]", "reviews.jsonl line 3: expected an object, found list"),
        ('{"text": "x"}', 'reviews.jsonl line 3: no field "label"'),
        ('{"text": "", "label": 1}', "reviews.jsonl line 3: field \"text\" is ''; expected text"),
        ('{"text": "x", "label": 5}', 'line 3: field "label" is 5; expected one of 0, 1, 2, 3, 4, terrible'),
        (
            '{"text": "x", "label": "gret"}',
            "field \"label\" is 'gret'; expected one of 0, 1, 2, 3, 4, terrible",
        ),
        ('{"text": "x", "label": true}', 'field "label" is True'),
        ('{"text": "\\ud800", "label": 1}', "line 3: not UTF-8"),
    ],
)
def test_a_bad_line_of_reviews_is_an_error_with_its_place(tmp_path: Path, line: str, message: str) -> None:
    good = json.dumps(reviews(1)[0])
    (tmp_path / "reviews.jsonl").write_text(f"{good}\n{good}\n{line}\n{good}\n")
    with pytest.raises(UserError) as error:
        train(tmp_path / "reviews.jsonl", tmp_path / "labeller")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "labeller").exists()


def test_a_class_without_reviews_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "reviews.jsonl", reviews(50, classes=2))
    with pytest.raises(UserError, match="no reviews of class maybe, good, great"):
        train(path, tmp_path / "labeller")
    with pytest.raises(UserError, match="does not exist"):
        train(tmp_path / "none.jsonl", tmp_path / "labeller")


def test_a_folder_that_may_not_be_written_fails_with_one_line_and_leaves_nothing(
    tmp_path: Path, without_rights: Callable[[Callable[[], object]], tuple[int, str]]
) -> None:
    path = write(tmp_path / "reviews.jsonl", reviews(50))
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o755)
    code, message = without_rights(lambda: train(path, closed / "labeller"))
    assert code == 1 and "permission denied" in message and "\n" not in message
    assert not list(closed.iterdir())


def test_only_the_first_tokens_of_a_text_are_read() -> None:
    words = [f"word{i}" for i in range(400)]
    assert head(" ".join(words), "word") == " ".join(words[:MAX_TOKENS])
    assert head("short text", "word") == "short text"
    assert head("字" * 400, "char") == "字" * MAX_TOKENS


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("classifier") / "tiny"
    folder.mkdir()
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *" ".join(SAID.values()).split(),
        "the",
        "was",
        "room",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_sequence_classifier_is_loaded_by_folder_and_keeps_what_it_is_sure_of(classifier: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    labeller = Labeller.load(classifier)
    assert labeller.words == FIVE_WORDS and not labeller.linear
    assert labeller.thresholds == (0.95, 0.5, 0.5, 0.5, 0.7)
    texts = ["the room was awful", "superb " * 1000, "nice"] * 20
    found = labeller.predict(texts)
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    for text, row in zip(texts[:3], found[:3], strict=True):
        inputs = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        np.testing.assert_allclose(row, model(**inputs).logits.softmax(-1)[0].detach().numpy(), atol=1e-5)
    assert labeller.fingerprint == Labeller.load(classifier).fingerprint
    assert Labeller.load(classifier, words=["a", "b", "c", "d", "e"]).words == ("a", "b", "c", "d", "e")
    with pytest.raises(UserError, match="5 classes and 2 label words"):
        Labeller.load(classifier, words=["bad", "good"])


def test_a_name_that_is_no_labeller_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a labeller's folder nor a sequence classifier"):
        Labeller.load(tmp_path / "empty")
