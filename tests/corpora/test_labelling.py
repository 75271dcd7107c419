from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from corpora import labelling
from corpora.labeller import Labeller, train
from corpora.labelling import label_units
from corpora.store import SentenceStore


@pytest.fixture(scope="module")
def labeller_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labeller")
    topics = (("boat", 0), ("rose", 1), ("bread", 0), ("train", 1), ("water", 0), ("bee", 1))
    rows = [{"text": f"the {word} number {i}", "label": label} for i in range(10) for word, label in topics]
    (folder / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(folder / "reviews.jsonl", folder / "labeller", words=["bad", "good"])
    return folder / "labeller"


@pytest.fixture
def store(
    tmp_path: Path, pocket_docs: list[list[str]], write_store: Callable[..., SentenceStore]
) -> SentenceStore:
    return write_store(tmp_path / "store", pocket_docs[:60])


def test_every_unit_gets_its_most_probable_class_and_that_probability(
    tmp_path: Path, store: SentenceStore, labeller_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "RANGE", 100)
    monkeypatch.setattr(labelling, "STEP", 33)
    labeller = Labeller.load(labeller_dir)
    labels, probabilities = label_units(store, labeller, labeller_dir, tmp_path / "work", workers=1)
    expected = labeller.predict(list(store.texts(0, store.n_units)))
    assert labels.tolist() == expected.argmax(1).tolist()
    assert probabilities.tolist() == expected.max(1).tolist()
    by_two = label_units(store, labeller, labeller_dir, tmp_path / "other", workers=2)
    assert (by_two[0] == labels).all() and (by_two[1] == probabilities).all()


def test_finished_ranges_are_not_labelled_again(
    tmp_path: Path, store: SentenceStore, labeller_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "RANGE", 200)
    labeller = Labeller.load(labeller_dir)
    labels, probabilities = label_units(store, labeller, labeller_dir, tmp_path / "work", workers=1)
    (tmp_path / "work" / "000001.npy").unlink()
    seen = []
    real = labeller.predict
    monkeypatch.setattr(labeller, "predict", lambda texts: seen.append(len(texts)) or real(texts))
    again = label_units(store, labeller, labeller_dir, tmp_path / "work", workers=1)
    assert seen == [200]
    assert np.array_equal(again[0], labels) and np.array_equal(again[1], probabilities)
