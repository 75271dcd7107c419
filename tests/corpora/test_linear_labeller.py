"""Tests of corpora/linear_labeller.py."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corpora.calibration import softmax
from corpora.common.errors import UserError
from corpora.label_training import train
from corpora.labeller import load_labeller
from corpora.linear_labeller import MAX_TOKENS, TextLabeller, TokenLabeller, first_tokens, head, pair_keys
from corpora.store import SentenceStore
from corpora.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory,
    star_reviews: Callable[..., list[dict[str, object]]],
    jsonl: Callable[..., Path],
    tokenizer_dir: Path,
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("labellers")
    reviews = jsonl(folder / "reviews.jsonl", star_reviews(300))
    train(reviews, folder / "text")
    train(reviews, folder / "tokens", tokenizer=tokenizer_dir)
    return {name: folder / name for name in ("text", "tokens")}


@pytest.fixture(scope="module")
def labeller(folders: dict[str, Path]) -> TokenLabeller:
    return TokenLabeller(folders["tokens"])


def offsets_of(units: list[list[int]]) -> np.ndarray:
    return np.cumsum([0, *map(len, units)])


def flat(units: list[list[int]]) -> np.ndarray:
    return np.array([token for unit in units for token in unit], np.uint16)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(st.lists(st.integers(0, 199), max_size=12) | st.just([5, 9] * 200), max_size=8))
def test_logits_are_sums_over_ids_and_pairs_by_the_root_of_the_length(
    labeller: TokenLabeller, units: list[list[int]]
) -> None:
    tensors = labeller._tensors
    row_of = {int(key): row for row, key in enumerate(tensors["pairs"])}
    expected = []
    for unit in units:
        unit = unit[:MAX_TOKENS]
        rows = [row_of.get((one << 32) + two) for one, two in pairwise(unit)]
        total = sum((tensors["id_weights"][token].astype(np.float64) for token in unit), np.zeros(5))
        total = total + sum((tensors["pair_weights"][row] for row in rows if row is not None), np.zeros(5))
        expected.append(total / max(len(unit), 1) ** 0.5 + tensors["bias"])
    found = labeller.predict_ids(flat(units), offsets_of(units))
    wanted = softmax(np.array(expected).reshape(-1, 5), labeller.temperature)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_how_units_are_cut_into_ranges_changes_no_bit(labeller: TokenLabeller) -> None:
    rng = np.random.default_rng(0)
    units = [rng.integers(0, 200, size).tolist() for size in (1, 300, 7, 256, 257, 3, 90)]
    tokens, offsets = flat(units), offsets_of(units)
    whole = labeller.predict_ids(tokens, offsets)
    parts = [labeller.predict_ids(tokens, offsets[a : b + 1]) for a, b in ((0, 2), (2, 3), (3, 7))]
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(whole[0], whole[1])


def test_a_token_labeller_finds_the_class_and_needs_no_text(
    folders: dict[str, Path],
    tmp_path: Path,
    write_store: Callable[..., SentenceStore],
) -> None:
    texts = [f"the room was {word} today" for word in ("awful", "poor", "average", "nice", "superb")]
    store = write_store(tmp_path / "store", [texts], keep_text=False)
    labeller = load_labeller(folders["tokens"])
    assert labeller.predict_units(store, 0, 5).argmax(1).tolist() == [0, 1, 2, 3, 4]
    assert labeller.predict_units(store, 3, 4).argmax(1).tolist() == [3]


def test_a_saved_labeller_predicts_what_it_did_and_holds_no_pickle(
    folders: dict[str, Path], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    texts = ["the room was awful", "superb soup", ""]
    for name, names in (
        ("text", {"model.safetensors", "vocabulary.json", "manifest.json"}),
        ("tokens", {"model.safetensors", "manifest.json"}),
    ):
        copy = tmp_path / name
        copy.mkdir()
        one = load_labeller(folders[name])
        one.save(copy)
        two = load_labeller(copy)
        assert {file.name for file in copy.iterdir()} == names and one.fingerprint == two.fingerprint
        found = []
        for labeller in (one, two):
            if isinstance(labeller, TextLabeller):
                found.append(labeller.predict(texts))
            else:
                assert isinstance(labeller, TokenLabeller)
                found.append(labeller.predict_ids(*tokenizer.encode_flat(texts)))
        assert np.array_equal(*found) and found[0].shape == (3, 5)
        np.testing.assert_allclose(found[0].sum(1), 1, rtol=1e-6)


def test_weights_that_the_manifest_does_not_name_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    load_labeller(folders["tokens"]).save(copy)
    (copy / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="is not the file its manifest names; train it again"):
        load_labeller(copy)


def test_batches_of_texts_change_nothing(folders: dict[str, Path]) -> None:
    labeller = TextLabeller(folders["text"])
    texts = [f"the room was {word}" for word in ("awful", "poor", "average", "nice", "superb")]
    found = labeller.predict(texts)
    assert found.argmax(1).tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(np.concatenate([labeller.predict([text]) for text in texts]), found)
    assert labeller.predict([]).shape == (0, 5)


def test_only_the_first_tokens_of_a_unit_are_read() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    ids, starts = first_tokens(tokens, np.array([10, 400, 400, 405]))
    assert starts.tolist() == [0, MAX_TOKENS, MAX_TOKENS, MAX_TOKENS + 5]
    assert ids.tolist() == [*range(10, 10 + MAX_TOKENS), *range(400, 405)]
    words = [f"word{i}" for i in range(400)]
    assert head(" ".join(words), "word") == " ".join(words[:MAX_TOKENS])
    assert head("short text", "word") == "short text"
    assert head("字" * 400, "char") == "字" * MAX_TOKENS


def test_pairs_have_numbers_of_their_own() -> None:
    ids = np.array([0, 1, 0, 65_535, 250_000, 1], np.uint32)
    assert len(set(pair_keys(ids).tolist())) == 5
    assert pair_keys(ids[:1]).tolist() == pair_keys(ids[:0]).tolist() == []
