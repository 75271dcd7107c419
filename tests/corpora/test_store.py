from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from corpora import store_writer
from corpora.common.errors import UserError
from corpora.common.files import read_json, write_json
from corpora.store import SentenceStore
from corpora.tokenizer import Tokenizer


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "TEXT_BLOCK", 100)


def test_a_store_gives_back_ids_texts_and_documents(
    tmp_path: Path,
    pocket_docs: list[list[str]],
    tokenizer: Tokenizer,
    write_store: Callable[..., SentenceStore],
    small_blocks: None,
) -> None:
    store = write_store(tmp_path / "store", pocket_docs)
    flat = [unit for document in pocket_docs for unit in document]
    assert (store.n_docs, store.n_units) == (len(pocket_docs), len(flat))
    rng = np.random.default_rng(0)
    for unit in rng.permutation(len(flat))[:200].tolist():
        assert store.text(unit) == flat[unit]
        assert store.unit_ids(unit).tolist() == tokenizer.encode([flat[unit]])[0].tolist()
    assert list(store.texts(0, len(flat))) == flat
    assert store.lengths.tolist() == [len(ids) for ids in tokenizer.encode(flat)]
    assert store.n_chars.tolist() == [len(text) for text in flat]
    assert store.doc_of_unit.tolist() == [d for d, document in enumerate(pocket_docs) for _ in document]
    assert store.position.tolist() == [p for document in pocket_docs for p in range(len(document))]
    assert store.doc_offsets[1] == len(pocket_docs[0])


def test_ids_are_read_in_place_and_take_two_bytes_below_65537_ids(
    tmp_path: Path, pocket_docs: list[list[str]], write_store: Callable[..., SentenceStore]
) -> None:
    store = write_store(tmp_path / "store", pocket_docs)
    ids = store.unit_ids(3)
    assert ids.dtype == np.uint16 and np.shares_memory(ids, store.tokens)
    assert not ids.flags.writeable and not ids.flags.owndata


def test_a_store_without_text_is_smaller_and_says_how_to_get_text(
    tmp_path: Path,
    pocket_docs: list[list[str]],
    tokenizer: Tokenizer,
    write_store: Callable[..., SentenceStore],
) -> None:
    store = write_store(tmp_path / "store", pocket_docs, keep_text=False)
    assert not list((tmp_path / "store").glob("text*"))
    assert store.unit_ids(0).tolist() == tokenizer.encode([pocket_docs[0][0]])[0].tolist()
    with pytest.raises(UserError, match="keep_text: false"):
        store.text(0)


def test_a_large_store_opens_in_milliseconds(tmp_path: Path) -> None:
    folder, units = tmp_path / "store", 20_000_000
    folder.mkdir()
    sizes = {
        "tokens": 2 * 50 * units,
        "unit_offsets": 8 * (units + 1),
        "position": 4 * units,
        "n_chars": 4 * units,
    }
    for name, size in {**sizes, "doc_offsets": 16}.items():  # 2.3 GB, none of it on the disk
        with open(folder / f"{name}.bin", "wb") as file:
            file.truncate(size)
    counts = {"documents": 1, "units": units, "tokens": 50 * units, "keep_text": False, "dtype": "uint16"}
    write_json(folder / "manifest.json", {"kind": "store", "format_version": 1, **counts})
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        SentenceStore.open(folder)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05


def test_a_file_cut_short_is_an_error_that_names_it(
    tmp_path: Path, pocket_docs: list[list[str]], write_store: Callable[..., SentenceStore]
) -> None:
    write_store(tmp_path / "store", pocket_docs)
    path = tmp_path / "store" / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"tokens\.bin has \d+ bytes, expected \d+"):
        SentenceStore.open(tmp_path / "store")
    path.unlink()
    with pytest.raises(UserError, match=r"tokens\.bin is missing"):
        SentenceStore.open(tmp_path / "store")
    with pytest.raises(UserError, match="holds no store"):
        SentenceStore.open(tmp_path)


def test_the_manifest_names_the_tokenizer_by_fingerprint(
    tmp_path: Path,
    pocket_docs: list[list[str]],
    tokenizer: Tokenizer,
    write_store: Callable[..., SentenceStore],
) -> None:
    write_store(tmp_path / "store", pocket_docs)
    manifest = read_json(tmp_path / "store" / "manifest.json")
    assert manifest["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert manifest["tokenizer"]["size"] == tokenizer.size
    assert manifest["documents"] == len(pocket_docs)
    assert str(tmp_path) not in str(manifest)
