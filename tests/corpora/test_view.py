"""Tests of corpora/view.py."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from corpora.common.rng import generator
from corpora.view import LIMITS, MIN_HELD_OUT, Limits, StoreView, make_views

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
    assert view.has_next.tolist() == [False, True, False, False, False, True, False]
    assert view.has_previous.tolist() == [False, False, True, False, False, False, True]


def test_neighbours_and_strangers_are_what_their_names_say(made_store: Maker) -> None:
    view = train_view(made_store([[8] * 7, [8, 8, None, 8, 8, 8], [8] * 9]))
    position, doc = view.store.position[view.units], view.doc
    able = np.flatnonzero((view.has_next | view.has_previous) & (view.strangers > 0))
    index = np.repeat(able, 200)
    rng = generator(0, "test")
    beside, apart = view.neighbour(index, rng), view.stranger(index, rng)
    assert (doc[beside] == doc[index]).all() and (abs(position[beside] - position[index]) == 1).all()
    assert (doc[apart] == doc[index]).all() and (abs(position[apart] - position[index]) > 1).all()
    for unit in able:  # and every one of them comes up
        mine = doc == doc[unit]
        near = abs(position - position[unit])
        assert set(beside[index == unit]) == set(np.flatnonzero(mine & (near == 1)))
        assert set(apart[index == unit]) == set(np.flatnonzero(mine & (near > 1)))
        assert view.strangers[unit] == (mine & (near > 1)).sum()


@pytest.mark.defect(7)
def test_other_documents_differ_from_the_source_and_from_each_other(made_store: Maker) -> None:
    view = train_view(made_store([[8] * 3] * 5))
    index = np.repeat(np.arange(view.n_units), 300)
    docs = view.other_docs(index, 4, generator(0, "test"))
    every = np.sort(np.concatenate([docs, view.doc[index][:, None]], axis=1), axis=1)
    assert (every == np.arange(5)).all()


@pytest.mark.defect(7)
def test_other_documents_are_drawn_afresh_and_evenly(made_store: Maker) -> None:
    view = train_view(made_store([[8] * 3] * 20))
    docs = view.other_docs(np.zeros(38_000, np.int64), 2, generator(0, "test"))
    for column in docs.T:
        counts = np.bincount(column, minlength=20)
        assert counts[0] == 0
        assert ((counts[1:] - 2000) ** 2 / 2000).sum() < 42.3  # chi-squared, 18 degrees, p = 0.001
    assert len(np.unique(docs, axis=0)) == 19 * 18


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
