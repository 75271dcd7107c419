"""Tests of corpora/store_writer.py."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corpora import store_writer
from corpora.common.files import write_json
from corpora.store import SentenceStore
from corpora.store_writer import Units, counts_of, join_arrays, offsets
from corpora.tokenizer import Tokenizer

DTYPES = dict.fromkeys(("unit_offsets", "doc_offsets", "text_offsets", "text_units", "doc_line"), np.int64)
DTYPES |= dict.fromkeys(("position", "n_chars", "doc_source"), np.int32) | {
    "tokens": np.uint16,
    "text": np.uint8,
}


def spelt(documents: list[list[str]], **more: object) -> Units:
    """Units whose ids are the halves of their characters' numbers; the character `0` has none."""

    def encode_flat(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = [np.frombuffer(text.replace("0", "").encode("utf-32-le"), np.uint16) for text in texts]
        return np.concatenate([np.empty(0, np.uint16), *ids]).astype(np.int32), offsets([len(i) for i in ids])

    return Units.of(documents, SimpleNamespace(encode_flat=encode_flat), **more)  # type: ignore[arg-type]


def content(units: Units) -> list[tuple[int, int, list[tuple[int, str, list[int]]]]]:
    """Every document's source, line and units, as plain values."""
    found = []
    for doc, (first, last) in enumerate(itertools.pairwise(units.documents.tolist())):
        assert units.texts is not None
        inside = [
            (
                int(units.position[u]),
                units.texts[u],
                units.ids[units.starts[u] : units.starts[u + 1]].tolist(),
            )
            for u in range(first, last)
        ]
        assert [len(text) for _, text, _ in inside] == units.n_chars[first:last].tolist()
        found.append((int(units.source[doc]), int(units.line[doc]), inside))
    return found


@pytest.mark.defect(8)
def test_a_vocabulary_of_250_000_ids_is_stored_without_loss(tmp_path: Path) -> None:
    ids = np.array([7, 65_535, 65_536, 250_099, 131_072], np.int32)
    units = spelt([["one", "two"]])
    units = Units(**{**vars(units), "ids": ids, "starts": np.array([0, 4, 5])})
    arrays = units.arrays(np.uint32)
    join_arrays([arrays], tmp_path, [0])
    manifest = {
        "kind": "store",
        "format_version": 1,
        "dtype": "uint32",
        "keep_text": True,
        **counts_of(arrays),
    }
    write_json(tmp_path / "manifest.json", manifest)
    store = SentenceStore.open(tmp_path)
    assert [store.unit_ids(i).tolist() for i in range(2)] == [ids[:4].tolist(), ids[4:].tolist()]


@pytest.mark.defect(8)
def test_a_type_too_small_for_an_id_is_refused_and_never_wraps() -> None:
    units = Units(**{**vars(spelt([["x"]])), "ids": np.array([65_536], np.int32), "starts": np.array([0, 1])})
    with pytest.raises(ValueError, match="id 65536 does not fit uint16"):
        units.arrays(np.uint16)


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
    monkeypatch.setattr(store_writer, "TEXT_BLOCK", block)
    folder = tmp_path_factory.mktemp("parts")
    bounds = [0, *sorted(c for c in cuts if c < len(documents)), len(documents)]
    parts = [spelt(documents[i:j], source=3).arrays(np.uint16) for i, j in itertools.pairwise(bounds)]
    (folder / "joined").mkdir()
    join_arrays(parts, folder / "joined", lines_before=bounds[:-1])
    whole = spelt(documents, source=3)
    assert content(Units.from_arrays(whole.arrays(np.uint16))) == content(whole)
    files = {path.stem: np.fromfile(path, DTYPES[path.stem]) for path in (folder / "joined").iterdir()}
    assert content(Units.from_arrays(files)) == content(whole)


@given(documents=texts, data=st.data())
def test_selecting_keeps_the_marked_documents_whole_and_units_without_ids_go(
    documents: list[list[str]], data: st.DataObject
) -> None:
    units = spelt(documents)
    kept = data.draw(st.lists(st.booleans(), min_size=len(documents), max_size=len(documents)))
    some = units.of_documents(np.array(kept))
    assert content(some) == list(itertools.compress(content(units), kept))
    filled = [
        (source, line, inside)
        for source, line, all_units in content(units)
        if (inside := [unit for unit in all_units if unit[2]])
    ]
    assert content(units.without_empty()) == filled


def test_units_of_documents_carry_their_place_and_position(tokenizer: Tokenizer) -> None:
    units = Units.of([["Anna found it.", "Tom"], ["Bread"]], tokenizer, source=4, lines=[7, 12])
    assert units.position.tolist() == [0, 1, 0]
    assert units.source.tolist() == [4, 4] and units.line.tolist() == [7, 12]
    assert units.ids[: units.starts[1]].tolist() == tokenizer.encode(["Anna found it."])[0].tolist()
