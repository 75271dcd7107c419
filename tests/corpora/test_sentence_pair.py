"""Tests of corpora/sentence_pair.py."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from corpora import overlap
from corpora.common.rng import generator
from corpora.draws import draw
from corpora.sentence_pair import MAYBE, NO, YES

Maker = Callable[..., SimpleNamespace]


def test_classes_mean_other_document_same_document_and_adjacent(made_store: Maker) -> None:
    store = made_store([[9, 9, None, 9, 9, 9, 9, 9]] * 400)
    drawn = draw("sentence_pair", store, 0)
    same = store.doc_of_unit[drawn.query] == store.doc_of_unit[drawn.options]
    near = abs(store.position[drawn.query] - store.position[drawn.options]) == 1
    assert (drawn.label == np.select([~same, same & ~near], [NO, MAYBE], YES)).all()
    assert (drawn.query != drawn.options).all()


def test_classes_are_drawn_evenly(made_store: Maker) -> None:
    drawn = draw("sentence_pair", made_store([[9] * 10] * 900), 0)
    counts = np.bincount(drawn.label, minlength=3)
    assert ((counts - 3000) ** 2 / 3000).sum() < 13.8  # chi-squared, 2 degrees, p = 0.001


def test_previous_and_next_have_equal_chance_inside_a_document(made_store: Maker) -> None:
    store = made_store([[9] * 10] * 900)
    drawn = draw("sentence_pair", store, 0)
    yes = drawn.label == YES
    step, place = (drawn.options - drawn.query)[yes], store.position[drawn.query[yes]]
    assert (step[place == 0] == 1).all() and (step[place == 9] == -1).all()
    inside = step[(place > 0) & (place < 9)]
    after = (inside == 1).sum()
    assert abs(after - len(inside) / 2) < 3.3 * np.sqrt(len(inside)) / 2


def test_pairs_of_too_different_lengths_are_dropped_and_counted(made_store: Maker) -> None:
    store = made_store([[5, 501, 5, 501, 5, 501]] * 50)
    drawn = draw("sentence_pair", store, 0)
    one, two = store.lengths[drawn.query], store.lengths[drawn.options]
    assert (np.maximum(one, two) <= 100 * np.minimum(one, two)).all()
    assert drawn.dropped["pairs with a length ratio over 100"] == 300 - len(drawn) > 0
    fits = made_store([[5, 500, 5, 500, 5, 500]] * 50)
    assert len(draw("sentence_pair", fits, 0)) == 300


@pytest.mark.parametrize("n_units", [4, 5])
def test_documents_need_five_units(made_store: Maker, n_units: int) -> None:
    drawn = draw("sentence_pair", made_store([[9] * n_units] * 20), 0)
    assert len(drawn) == (100 if n_units == 5 else 0)


def test_no_partner_of_no_or_maybe_could_pass_for_a_neighbour(
    made_store: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of all units are one of two notices, one word changed: drawn freely, many a `no` would be a true `yes`."""
    rng = generator(0, "notices")
    notices = rng.integers(100, 9000, (2, 30))

    def unit() -> list[int]:
        ids = notices[rng.integers(2)].copy() if rng.random() < 1 / 3 else rng.integers(100, 9000, 30)
        ids[rng.integers(30)] = rng.integers(10_000, 60_000)
        return list(ids)

    store = made_store([[unit() for _ in range(10)] for _ in range(150)])

    def wrong() -> int:
        drawn, found = draw("sentence_pair", store, 0), 0
        assert len(drawn) == 1500
        for query, partner, label in zip(drawn.query, drawn.options, drawn.label, strict=True):
            beside = [query + step for step in (-1, 1) if 0 <= query % 10 + step < 10]
            sets = [set(store.unit_ids(one).tolist()) for one in (partner, *beside)]
            alike = any(len(sets[0] & near) >= 0.8 * len(sets[0] | near) for near in sets[1:])
            found += label != YES and alike
        return found

    assert wrong() == 0
    monkeypatch.setattr(overlap, "_alike", lambda one, two: np.zeros(len(one), np.bool_))
    assert wrong() > 50


def test_pairs_for_which_only_copies_of_a_neighbour_are_left_end_in_counted_drops(made_store: Maker) -> None:
    """Every unit is the same text: what is no neighbour cannot be told from one."""
    drawn = draw("sentence_pair", made_store([[[11, 12, 13, 14, 15]] * 7] * 40), 0)
    assert (drawn.label == YES).all()
    assert drawn.dropped == {"pairs whose partner stayed equal to a neighbour or alike": 280 - len(drawn)}
