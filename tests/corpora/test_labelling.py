"""Tests of corpora/labelling.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from corpora import labelling
from corpora.common.errors import UserError
from corpora.common.processes import Here, worker_pool
from corpora.label_training import train
from corpora.labeller import Labeller, load_labeller
from corpora.labelling import keep_rule, label_on_devices, label_units
from corpora.linear_labeller import TextLabeller
from corpora.sequence_labeller import SequenceClassifier
from corpora.store import SentenceStore

Stores = Callable[..., SentenceStore]


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, jsonl: Callable[..., Path], tokenizer_dir: Path
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("labeller")
    topics = (("boat", 0), ("rose", 1), ("bread", 0), ("train", 1), ("water", 0), ("bee", 1))
    rows = [{"text": f"the {word} number {i}", "label": label} for i in range(10) for word, label in topics]
    path = jsonl(folder / "reviews.jsonl", rows)
    train(path, folder / "text", words=["bad", "good"])
    train(path, folder / "tokens", words=["bad", "good"], tokenizer=tokenizer_dir)
    return {name: folder / name for name in ("text", "tokens")}


@pytest.fixture
def store(tmp_path: Path, pocket_docs: list[list[str]], write_store: Stores) -> SentenceStore:
    return write_store(tmp_path / "store", pocket_docs[:60])


@pytest.mark.parametrize("reads", ["text", "tokens"])
def test_every_unit_gets_its_most_probable_class_whatever_the_ranges_and_workers(
    tmp_path: Path,
    store: SentenceStore,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    reads: str,
) -> None:
    labeller = load_labeller(folders[reads])
    expected = labeller.predict_units(store, 0, store.n_units)
    monkeypatch.setattr(labelling, "RANGE", 100)
    labels, probabilities = label_units(store, labeller, folders[reads], tmp_path / "work", Here())
    assert labels.dtype == np.int8 and probabilities.dtype == np.float32
    assert labels.tolist() == expected.argmax(1).tolist() and len(set(labels.tolist())) == 2
    assert probabilities.tolist() == expected.max(1).tolist()
    if reads == "tokens":
        with worker_pool(2) as pool:
            by_two = label_units(store, labeller, folders[reads], tmp_path / "other", pool)
        assert np.array_equal(by_two[0], labels) and np.array_equal(by_two[1], probabilities)


def test_finished_ranges_are_not_labelled_again(
    tmp_path: Path, store: SentenceStore, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "RANGE", 200)
    labeller = load_labeller(folders["text"])
    labels, probabilities = label_units(store, labeller, folders["text"], tmp_path / "work", Here())
    labels, probabilities = labels.copy(), probabilities.copy()
    next((tmp_path / "work").glob("*200-*.npy")).unlink()
    seen = []
    real = TextLabeller.predict_units

    def counted(self: TextLabeller, store: SentenceStore, start: int, stop: int) -> np.ndarray:
        seen.append((start, stop))
        return real(self, store, start, stop)

    monkeypatch.setattr(TextLabeller, "predict_units", counted)
    again = label_units(store, labeller, folders["text"], tmp_path / "work", Here())
    assert seen == [(200, 400)]
    assert np.array_equal(again[0], labels) and np.array_equal(again[1], probabilities)


def test_a_labeller_in_the_place_of_another_is_not_taken_for_it(
    tmp_path: Path, store: SentenceStore, folders: dict[str, Path]
) -> None:
    found = []
    for reads in ("text", "tokens"):
        place = tmp_path / "labeller"
        place.mkdir(exist_ok=True)
        labeller = load_labeller(folders[reads])
        labeller.save(place)
        found.append(label_units(store, labeller, place, tmp_path / reads, Here())[1])
    assert not np.array_equal(*found)


def test_a_store_of_another_tokenizer_or_without_text_is_refused_where_it_matters(
    tmp_path: Path, store: SentenceStore, folders: dict[str, Path], write_store: Stores
) -> None:
    bare = write_store(tmp_path / "bare", [["the boat", "the rose"]], keep_text=False)
    tokens, text = (load_labeller(folders[name]) for name in ("tokens", "text"))
    assert label_units(bare, tokens, folders["tokens"], tmp_path / "a", Here())[0].tolist() == [0, 1]
    with pytest.raises(UserError, match="was built without text"):
        label_units(bare, text, folders["text"], tmp_path / "b", Here())
    store.manifest["tokenizer"]["fingerprint"] = "f" * 64
    with pytest.raises(UserError, match="fingerprint ffffffffffff"):
        label_units(store, tokens, folders["tokens"], tmp_path / "c", Here())


def test_a_classifier_goes_on_from_finished_groups_on_one_device_or_several(
    tmp_path: Path, store: SentenceStore, classifier_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "GROUP", 150)
    labeller = load_labeller(classifier_dir)
    assert isinstance(labeller, SequenceClassifier)
    labels, probabilities = label_units(store, labeller, classifier_dir, tmp_path / "work", Here())
    expected = np.concatenate(
        [labeller.predict_units(store, a, min(a + 150, store.n_units)) for a in range(0, store.n_units, 150)]
    )
    assert labels.tolist() == expected.argmax(1).tolist()
    assert probabilities.tolist() == expected.max(1).tolist()
    labels, probabilities = labels.copy(), probabilities.copy()
    removed = sorted((tmp_path / "work").glob("*.npy"))[1:]
    for path in removed:
        path.unlink()
    monkeypatch.setattr(labelling, "devices", lambda: ["cpu", "cpu"])
    monkeypatch.setattr(labeller, "predict_groups", None)  # the processes do it
    again = label_units(store, labeller, classifier_dir, tmp_path / "work", Here())
    # Two processes share the cores otherwise than one: sums may round otherwise.
    assert np.array_equal(again[0], labels)
    np.testing.assert_allclose(again[1], probabilities, atol=1e-6)


def test_an_error_in_a_devices_process_ends_the_labelling(tmp_path: Path, classifier_dir: Path) -> None:
    labeller = SequenceClassifier(str(classifier_dir))
    with pytest.raises(UserError, match="holds no store"):
        list(label_on_devices(tmp_path / "gone", labeller, [(0, 1)], tmp_path, ["cpu"]))


def test_what_is_kept_is_what_was_asked_for_or_suits_the_labeller(
    folders: dict[str, Path], classifier_dir: Path
) -> None:
    linear: Labeller = load_labeller(folders["tokens"])
    classifier: Labeller = load_labeller(classifier_dir)
    released = (0.95, 0.5, 0.5, 0.5, 0.7)
    for labeller, keep, thresholds, expected in (
        (linear, None, None, (None, 0.2)),
        (linear, 0.4, None, (None, 0.4)),
        (linear, None, [0.6, 0.7], ((0.6, 0.7), 0.2)),
        (classifier, None, None, (released, 0.2)),
        (classifier, 0.1, None, (None, 0.1)),
        (classifier, None, [0.5] * 5, ((0.5,) * 5, 0.2)),
    ):
        rule = keep_rule(labeller, keep, thresholds)
        assert (rule.thresholds, rule.keep) == expected
    with pytest.raises(UserError, match="both keep"):
        keep_rule(linear, 0.2, [0.5, 0.5])
    with pytest.raises(UserError, match="3 thresholds for the 2 classes bad, good"):
        keep_rule(linear, None, [0.5] * 3)
