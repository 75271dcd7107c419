"""Tests of corpora/single_text.py."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from corpora.common.errors import UserError
from corpora.common.rng import generator
from corpora.drawn import Drawn
from corpora.draws import draw
from corpora.view import LIMITS, make_views

Maker = Callable[..., SimpleNamespace]
RELEASED = (0.95, 0.5, 0.5, 0.5, 0.7)
SHARES = (0.1, 0.2, 0.3, 0.15, 0.25)


@pytest.fixture
def store(made_store: Maker) -> SimpleNamespace:
    return made_store([[9] * 10] * 500)


@pytest.fixture
def labels(store: SimpleNamespace) -> dict[str, Any]:
    rng = generator(0, "labels")
    return {
        "labels": rng.choice(5, size=store.n_units, p=SHARES).astype(np.int8),
        "probs": rng.uniform(0.3, 1.0, store.n_units).astype(np.float32),
        "n_classes": 5,
    }


def counts(drawn: Drawn, validation: bool = False) -> list[int]:
    return np.bincount(drawn.label[drawn.validation == validation], minlength=5).tolist()


def test_a_linear_labeller_keeps_the_surest_fifth_of_each_class(
    store: SimpleNamespace, labels: dict[str, Any]
) -> None:
    drawn = draw("single_text", store, 0, **labels, balance=False)
    train = make_views(store, LIMITS["single_text"], 0, 0.05)[0]["train"].units
    for c, kept in enumerate(counts(drawn)):
        mine = train[labels["labels"][train] == c]
        assert kept == np.ceil(0.2 * len(mine))
        chosen = drawn.query[~drawn.validation & (drawn.label == c)]
        left = np.setdiff1d(mine, chosen)
        assert labels["probs"][chosen].min() >= labels["probs"][left].max()
    assert (drawn.label == labels["labels"][drawn.query]).all()
    assert set(np.diff(drawn.offsets)) == {0}


def test_balancing_takes_the_surest_of_each_class_down_to_the_rarest(
    store: SimpleNamespace, labels: dict[str, Any]
) -> None:
    every = draw("single_text", store, 0, **labels, balance=False)
    drawn = draw("single_text", store, 0, **labels)
    n = min(counts(every))
    assert counts(drawn) == [n] * 5 and len(set(counts(drawn, validation=True))) == 1
    for c in range(5):
        mine = every.query[~every.validation & (every.label == c)]
        surest = mine[np.argsort(-labels["probs"][mine], kind="stable")[:n]]
        assert set(drawn.query[~drawn.validation & (drawn.label == c)]) == set(surest)


def test_a_classifier_keeps_what_is_over_the_released_thresholds(
    store: SimpleNamespace, labels: dict[str, Any]
) -> None:
    labels["probs"][:10] = np.asarray(RELEASED, np.float32)[labels["labels"][:10]]  # just at it: not over it
    drawn = draw("single_text", store, 0, **labels, thresholds=RELEASED, balance=False)
    over = labels["probs"] > np.asarray(RELEASED, np.float32)[labels["labels"]]
    assert set(drawn.query) == set(np.flatnonzero(over))


def test_balancing_a_classifier_is_a_seeded_draw(store: SimpleNamespace, labels: dict[str, Any]) -> None:
    one, two, other = (draw("single_text", store, seed, **labels, thresholds=RELEASED) for seed in (0, 0, 1))
    assert one.query.tolist() == two.query.tolist() != other.query.tolist()
    assert len(set(counts(one))) == 1 and counts(one)[0] > 0
    top = np.sort(labels["probs"][labels["labels"] == 2])[-counts(one)[0] :]
    chosen = np.sort(labels["probs"][one.query[~one.validation & (one.label == 2)]])
    assert chosen.min() < top.min()  # not simply the surest


def test_counts_and_lowest_probabilities_are_noted_and_printed(
    store: SimpleNamespace, labels: dict[str, Any]
) -> None:
    drawn = draw("single_text", store, 0, **labels)
    for side, held_out in (("train", False), ("validation", True)):
        assert drawn.notes[side]["kept"] == counts(drawn, held_out)
        for c in range(5):
            chosen = drawn.query[(drawn.validation == held_out) & (drawn.label == c)]
            assert drawn.notes[side]["lowest_probability"][c] == pytest.approx(labels["probs"][chosen].min())
    n, lowest = counts(drawn)[0], drawn.notes["train"]["lowest_probability"][0]
    assert f"{n:,} (from {lowest:.2f})" in drawn.lines()[1]
    assert sum(drawn.dropped.values()) == store.n_units - len(drawn)


def test_fewer_than_200_of_a_class_is_a_warning(store: SimpleNamespace, labels: dict[str, Any]) -> None:
    assert "fewer than 200; give more text" in draw("single_text", store, 0, **labels).lines()[-1]
    plenty = draw("single_text", store, 0, **labels, keep=1.0)
    assert min(counts(plenty)) >= 200 and plenty.warnings == ()


def test_a_class_that_never_occurs_is_warned_of_and_empties_nothing(
    store: SimpleNamespace, labels: dict[str, Any]
) -> None:
    labels["labels"][labels["labels"] == 0] = 1
    drawn = draw("single_text", store, 0, **labels)
    assert counts(drawn)[0] == 0 and min(counts(drawn)[1:]) > 0
    assert any("no unit was labelled with class 0" in line for line in drawn.lines())


def test_units_without_a_label_are_counted(store: SimpleNamespace, labels: dict[str, Any]) -> None:
    labels["labels"][:100] = -1
    drawn = draw("single_text", store, 0, **labels)
    assert drawn.dropped["units not labelled"] == 100 and not (drawn.query < 100).any()


def test_labels_of_another_store_and_wrong_thresholds_are_refused(
    store: SimpleNamespace, labels: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="2 thresholds for 5 classes"):
        draw("single_text", store, 0, **labels, thresholds=(0.5, 0.5))
    with pytest.raises(UserError, match="keep is 0"):
        draw("single_text", store, 0, **labels, keep=0)
    labels["labels"] = labels["labels"][1:]
    with pytest.raises(UserError, match="4999 pseudo-labels for a store of 5000 units"):
        draw("single_text", store, 0, **labels)
