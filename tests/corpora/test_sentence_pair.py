"""Tests of corpora/sentence_pair.py."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

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
