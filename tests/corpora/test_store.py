from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corpora import store as store_module
from corpora.common.errors import UserError
from corpora.common.files import read_json, write_json
from corpora.store import SentenceStore, StoreWriter, join_parts
from corpora.tokenizer import Tokenizer


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "TEXT_BLOCK", 100)


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


@pytest.mark.defect(8)
def test_a_vocabulary_of_250_000_ids_is_stored_without_loss(tmp_path: Path) -> None:
    high = [np.array([7, 65_535, 65_536, 250_099], np.int32), np.array([131_072], np.int32)]
    writer = StoreWriter(np.uint32)
    writer.add(["one", "two"], high)
    (tmp_path / "part").mkdir()
    counts = writer.write(tmp_path / "part")
    manifest = {"kind": "store", "format_version": 1, "dtype": "uint32", "keep_text": True, **counts}
    write_json(tmp_path / "part" / "manifest.json", manifest)
    store = SentenceStore.open(tmp_path / "part")
    assert [store.unit_ids(i).tolist() for i in range(2)] == [ids.tolist() for ids in high]


@pytest.mark.defect(8)
def test_a_type_too_small_for_an_id_is_refused_and_never_wraps(tmp_path: Path) -> None:
    writer = StoreWriter(np.uint16)
    writer.add(["one"], [np.array([65_536], np.int32)])
    with pytest.raises(ValueError, match="id 65536 does not fit uint16"):
        writer.write(tmp_path)


texts = st.lists(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=texts, cuts=st.sets(st.integers(1, 11)), block=st.integers(1, 40))
def test_parts_joined_hold_what_one_writer_writes(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    documents: list[list[str]],
    cuts: set[int],
    block: int,
) -> None:
    monkeypatch.setattr(store_module, "TEXT_BLOCK", block)
    folder = tmp_path_factory.mktemp("parts")
    bounds = [0, *sorted(c for c in cuts if c < len(documents)), len(documents)]
    parts = []
    for start, stop in itertools.pairwise(bounds):
        writer = StoreWriter(np.uint16)
        for document in documents[start:stop]:
            writer.add(document, [np.frombuffer(t.encode("utf-32-le"), np.uint16) for t in document])
        parts.append(folder / str(start))
        parts[-1].mkdir()
        writer.write(parts[-1])
    (folder / "joined").mkdir()
    join_parts(parts, folder / "joined", keep_text=True)
    flat = [unit for document in documents for unit in document]
    fields = {
        "kind": "store",
        "format_version": 1,
        "dtype": "uint16",
        "keep_text": True,
        "documents": len(documents),
        "units": len(flat),
        "tokens": (folder / "joined" / "tokens.bin").stat().st_size // 2,
        "text_blocks": (folder / "joined" / "text_units.bin").stat().st_size // 8 - 1,
    }
    write_json(folder / "joined" / "manifest.json", fields)
    store = SentenceStore.open(folder / "joined")
    assert [store.text(i) for i in reversed(range(len(flat)))] == flat[::-1]
    for i, text in enumerate(flat):
        assert store.unit_ids(i).tobytes().decode("utf-32-le") == text
    assert np.diff(store.doc_offsets).tolist() == [len(document) for document in documents]


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
