"""Tests of corpora/view.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import view as view_module
from corpora.common.rng import generator
from corpora.view import (
    LIMITS,
    MIN_HELD_OUT,
    Limits,
    StoreView,
    below,
    make_views,
    open_view,
    split_draws,
    write_views,
)

Maker = Callable[..., SimpleNamespace]
ALL = Limits(min_chars=1, min_tokens=1, min_units=1)


def train_view(store: SimpleNamespace, limits: Limits = ALL) -> StoreView:
    return make_views(store, limits, 0, 0.0)[0]["train"]


def test_a_short_unit_is_dropped_and_its_document_stays(made_store: Maker) -> None:
    store = made_store([[8, 4, 8, 8, 8, 8], [8, 8, 8, 8, 8]])
    store.n_chars[8] = 4
    views, dropped = make_views(store, LIMITS["sentence_pair"], 0, 0.0)
    assert views["train"].units.tolist() == [0, 2, 3, 4, 5]
    assert dropped == {
        "units under 5 tokens": 1,
        "units under 5 characters": 1,
        "units of documents left with fewer than 5 units": 4,
    }


def test_choices_want_ten_characters_and_five_units_and_six_in_unified(made_store: Maker) -> None:
    store = made_store([[8] * 6, [8] * 6, [8] * 5])
    store.n_chars[6] = 9
    kept = {
        format: make_views(store, LIMITS[format], 0, 0.0)[0]["train"].units.tolist()
        for format in ("multiple_choice", "unified")
    }
    assert kept == {"multiple_choice": [*range(6), *range(7, 17)], "unified": list(range(6))}


def test_single_texts_are_longer_than_ten_characters_and_five_tokens(made_store: Maker) -> None:
    store = made_store([[5, 6, 6]])
    store.n_chars[:] = (40, 10, 11)
    assert make_views(store, LIMITS["single_text"], 0, 0.0)[0]["train"].units.tolist() == [2]


def test_only_units_that_stood_side_by_side_are_adjacent(made_store: Maker) -> None:
    """Unit 1 of the first document is too short, one of the second never reached the store."""
    view = train_view(made_store([[8, 2, 8, 8], [8, None, 8], [8, 8]]), Limits(1, 5, 1))
    queries = view.queries(0, view.n_units)
    assert queries.next.tolist() == [False, True, False, False, False, True, False]
    assert queries.previous.tolist() == [False, False, True, False, False, False, True]


def test_queries_are_the_same_however_they_are_cut_into_ranges(made_store: Maker) -> None:
    view = train_view(made_store([[8, 2, 8, 8], [8, None, 8], [8, 8], [8]]), Limits(1, 5, 1))
    whole = view.queries(0, view.n_units)
    for first in range(view.n_units):
        for last in range(first, view.n_units + 1):
            part, expected = view.queries(first, last), whole[np.arange(first, last)]
            for name in ("index", "doc", "first", "size", "previous", "next"):
                assert getattr(part, name).tolist() == getattr(expected, name).tolist()


def test_neighbours_and_strangers_are_what_their_names_say(made_store: Maker) -> None:
    view = train_view(made_store([[8] * 7, [8, 8, None, 8, 8, 8], [8] * 9]))
    every = view.queries(0, view.n_units)
    position, doc = view.store.position[view.units], every.doc
    able = np.flatnonzero((every.next | every.previous) & (every.strangers > 0))
    index = np.repeat(able, 200)
    rng = generator(0, "test")
    beside, apart = view.neighbour(every[index], rng), view.stranger(every[index], rng)[0]
    assert (doc[beside] == doc[index]).all() and (abs(position[beside] - position[index]) == 1).all()
    assert (doc[apart] == doc[index]).all() and (abs(position[apart] - position[index]) > 1).all()
    for unit in able:  # and every one of them comes up
        mine = doc == doc[unit]
        near = abs(position - position[unit])
        assert set(beside[index == unit]) == set(np.flatnonzero(mine & (near == 1)))
        assert set(apart[index == unit]) == set(np.flatnonzero(mine & (near > 1)))
        assert every.strangers[unit] == (mine & (near > 1)).sum()


@pytest.mark.defect(7)
@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=30),
    count=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_other_documents_are_never_the_source_nor_each_other(
    made_store: Maker, sizes: list[int], count: int, seed: int
) -> None:
    view = train_view(made_store([[6] * size for size in sizes]))
    queries = view.queries(0, view.n_units)
    count = min(count, len(sizes) - 1)
    docs = view.other_docs(queries, count, generator(seed, "test"))
    units = view.unit_of(docs, generator(seed, "unit"))
    assert docs.shape == units.shape == (count, sum(sizes))
    assert (view.doc_of(units.ravel()) == docs.ravel()).all()
    for own, others in zip(queries.doc, docs.T, strict=True):
        assert len({own, *others}) == count + 1 and set(others) <= set(range(len(sizes)))


@pytest.mark.defect(7)
def test_all_other_documents_of_five_are_the_other_four(made_store: Maker) -> None:
    view = train_view(made_store([[8] * 3] * 5))
    queries = view.queries(0, view.n_units)[np.repeat(np.arange(view.n_units), 300)]
    docs = view.other_docs(queries, 4, generator(0, "test"))
    assert (np.arange(5) == np.sort(np.concatenate([docs, queries.doc[None]]), axis=0).T).all()


def test_sides_share_no_document_and_hold_all_of_them(made_store: Maker) -> None:
    store = made_store([[8] * 6] * 400)
    views, _ = make_views(store, ALL, 3, 0.05)
    docs = {side: set(store.doc_of_unit[view.units]) for side, view in views.items()}
    assert len(docs["validation"]) == 20 and not docs["train"] & docs["validation"]
    assert docs["train"] | docs["validation"] == set(range(400))
    again, _ = make_views(store, ALL, 3, 0.05)
    assert (again["validation"].units == views["validation"].units).all()
    other, _ = make_views(store, ALL, 4, 0.05)
    assert other["validation"].units.tolist() != views["validation"].units.tolist()


def test_every_format_holds_out_the_same_documents(made_store: Maker) -> None:
    """Half of the documents have five units and serve only some formats."""
    store = made_store([[8] * (5 + doc % 2) for doc in range(800)])
    held = {
        format: set(
            store.doc_of_unit[make_views(store, LIMITS[format], 0, 0.05)[0]["validation"].units].tolist()
        )
        for format in ("sentence_pair", "unified")
    }
    assert len(held["sentence_pair"]) == 40
    assert held["unified"] == {doc for doc in held["sentence_pair"] if doc % 2} and len(held["unified"]) > 8


@pytest.mark.parametrize(("n_docs", "n_held_out"), [(40, MIN_HELD_OUT), (10, 5), (1, 0), (0, 0)])
def test_few_documents_still_leave_some_to_hold_out(made_store: Maker, n_docs: int, n_held_out: int) -> None:
    views, _ = make_views(made_store([[8] * 6] * n_docs), ALL, 0, 0.05)
    assert (views["validation"].n_docs, views["train"].n_docs) == (n_held_out, n_docs - n_held_out)


@pytest.mark.parametrize("validation", [0.0, 0.05, 0.3, 0.999])
def test_views_in_files_and_in_small_chunks_are_the_same(
    made_store: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: float
) -> None:
    store = made_store([[4 + (doc * unit) % 7 for unit in range(doc % 9)] for doc in range(300)])
    limits = LIMITS["sentence_pair"]
    whole, dropped = make_views(store, limits, 0, validation)
    monkeypatch.setattr(view_module, "_CHUNK", 50)
    assert write_views(store, limits, 0, validation, tmp_path) == dropped
    for side, view in whole.items():
        mapped = open_view(store, tmp_path, side)
        assert mapped.units.tolist() == view.units.tolist() and mapped.side == side
        assert mapped.starts.tolist() == view.starts.tolist()


@settings(max_examples=60, deadline=None)
@given(n_docs=st.integers(1, 3000), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_held_out_are_the_documents_with_the_lowest_draws(n_docs: int, share: float, seed: int) -> None:
    count = round(share * n_docs)
    draws = split_draws(seed, 0, n_docs)
    expected = np.sort(draws)[count - 1] if count else -1.0
    assert view_module._lowest(seed, n_docs, count) == expected
    cut = n_docs // 3
    assert (np.concatenate([split_draws(seed, 0, cut), split_draws(seed, cut, n_docs)]) == draws).all()


def test_numbers_below_an_end_never_reach_it() -> None:
    class Highest:
        def random(self, shape: tuple[int, int]) -> np.ndarray:
            return np.full(shape, np.nextafter(1.0, 0.0))

    ends = np.concatenate([np.arange(1, 5000), 2 ** np.arange(13, 40), 2 ** np.arange(13, 40) - 1])
    assert (below(cast(np.random.Generator, Highest()), ends)[0] == ends - 1).all()
