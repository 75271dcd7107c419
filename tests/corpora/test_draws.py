"""Tests of corpora/draws.py: what holds for the examples of every format."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import draws, view
from corpora.common.errors import UserError
from corpora.common.rng import generator
from corpora.drawn import Drawn
from corpora.draws import RECIPES, draw, draw_block, n_blocks
from corpora.formats import caps
from corpora.overlap import make_sketches

Maker = Callable[..., SimpleNamespace]
PAIRED = ("sentence_pair", "multiple_choice", "unified")


@pytest.fixture
def store(made_store: Maker) -> SimpleNamespace:
    return made_store([[7 + (doc + unit) % 9 for unit in range(6 + doc % 7)] for doc in range(300)])


def options_of(drawn: Drawn) -> list[list[int]]:
    return [part.tolist() for part in np.split(drawn.options, drawn.offsets[1:-1])]


@pytest.mark.parametrize("format", PAIRED)
def test_each_unit_asks_exactly_once(store: SimpleNamespace, format: str) -> None:
    drawn = draw(format, store, 0)
    assert np.sort(drawn.query).tolist() == list(range(store.n_units))
    assert drawn.dropped == {}


@pytest.mark.parametrize("format", PAIRED)
def test_partners_come_from_the_side_of_their_query(store: SimpleNamespace, format: str) -> None:
    drawn = draw(format, store, 0)
    side_of = np.zeros(store.n_docs, np.int64)
    side_of[store.doc_of_unit[drawn.query]] = drawn.validation
    held = np.repeat(drawn.validation, np.diff(drawn.offsets))
    assert 0 < drawn.validation.sum() < len(drawn)
    assert (side_of[store.doc_of_unit[drawn.options]] == held).all()
    assert (side_of[store.doc_of_unit[drawn.query]] == drawn.validation).all()


@pytest.mark.defect(6)
@pytest.mark.parametrize("format", PAIRED)
def test_the_same_seed_draws_the_same_and_another_does_not(store: SimpleNamespace, format: str) -> None:
    one, two, other = (draw(format, store, seed) for seed in (0, 0, 1))
    for name in ("query", "options", "offsets", "label", "validation"):
        assert (getattr(one, name) == getattr(two, name)).all()
    assert one.label.tolist() != other.label.tolist()


@pytest.mark.defect(6)
@pytest.mark.parametrize("format", PAIRED)
def test_blocks_can_be_drawn_in_any_order_by_anyone(
    store: SimpleNamespace, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draws, "BLOCK", 500)
    whole = draw(format, store, 0)
    sides, _ = view.make_views(store, view.LIMITS[format], 0, 0.05)
    units = sides["train"]
    sketches = make_sketches(store, RECIPES[format].caps)
    found = {}
    for number in reversed(range(n_blocks(units.n_units))):
        found[number] = draw_block(format, units, sketches, 0, number)
    assert len(found) > 3
    query = np.concatenate([units.units[found[number].query] for number in sorted(found)])
    options = np.concatenate([units.units[found[number].options] for number in sorted(found)])
    assert (whole.query[: len(query)] == query).all() and (whole.options[: len(options)] == options).all()


@pytest.mark.defect(6)
def test_every_block_has_a_stream_of_its_own(store: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "BLOCK", 100)
    units = view.make_views(store, view.LIMITS["sentence_pair"], 0, 0.05)[0]["train"]
    sketches = make_sketches(store, RECIPES["sentence_pair"].caps)
    labels = [draw_block("sentence_pair", units, sketches, 0, number).label.tolist() for number in range(10)]
    assert len({tuple(one) for one in labels}) == 10


@pytest.mark.parametrize("format", PAIRED)
def test_a_unit_without_neighbour_never_asks_but_still_answers(made_store: Maker, format: str) -> None:
    """The middle unit of each document stood between two that were dropped."""
    store = made_store([[9, 9, 9, 2, 9, 2, 9, 9, 9] for _ in range(60)])
    lonely = np.flatnonzero(store.position == 4)
    drawn = draw(format, store, 0)
    assert not np.isin(lonely, drawn.query).any()
    assert np.isin(lonely, drawn.options).any()
    assert drawn.dropped["queries without a neighbour"] == 60
    assert len(drawn) == 60 * 6


@pytest.mark.defect(7)
@pytest.mark.parametrize(
    ("format", "n_docs", "reason"),
    [
        ("sentence_pair", 1, "examples without another document"),
        ("multiple_choice", 4, "examples without enough other documents"),
        ("unified", 3, "examples without enough other documents"),
    ],
)
def test_too_few_documents_end_in_counted_drops(
    made_store: Maker, format: str, n_docs: int, reason: str
) -> None:
    store = made_store([[9] * 8] * n_docs)
    drawn = draw(format, store, 0, validation=0.0)
    assert drawn.dropped[reason] == n_docs * 8 - len(drawn) > 0
    if format == "multiple_choice":
        assert len(drawn) == 0
    if format == "unified":  # two options want no other document, three want one
        assert set(np.diff(drawn.offsets).tolist()) == {2, 3, 4}


def small_store(made_store: Maker, seed: int) -> SimpleNamespace:
    """Documents of any size with gaps, short units, units that are much alike and units that come again."""
    rng = generator(seed, "small_store")
    kinds = (
        lambda: None,
        lambda: int(rng.integers(3, 12)),
        lambda: rng.integers(1, 9, 12).tolist(),
        lambda: [7] * int(rng.integers(5, 40)),
    )
    chances = rng.dirichlet([0.3, 2, 1, 1])
    sizes = rng.integers(0, 15, rng.integers(1, 30))
    return made_store([[kinds[rng.choice(4, p=chances)]() for _ in range(size)] for size in sizes])


@settings(max_examples=40, deadline=None)
@given(made=st.integers(0, 9999), seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.3]))
@pytest.mark.parametrize("format", PAIRED)
def test_examples_of_any_store_keep_every_rule(
    made_store: Maker, format: str, made: int, seed: int, share: float
) -> None:
    """Each example is looked at on its own, with sets and loops."""
    store = small_store(made_store, made)
    drawn = draw(format, store, seed, validation=share)
    doc_of, held_out = store.doc_of_unit, {}
    assert len(set(drawn.query.tolist())) == len(drawn)
    for number, options in enumerate(options_of(drawn)[: len(drawn)]):
        query, label = int(drawn.query[number]), int(drawn.label[number])
        doc = doc_of[query]
        beside = [
            u for u in options if doc_of[u] == doc and abs(store.position[u] - store.position[query]) == 1
        ]
        other = [doc_of[u] for u in options if doc_of[u] != doc]
        assert query not in options and min(store.lengths[[query, *options]]) >= 5
        for one in (doc, *other):
            assert held_out.setdefault(one, drawn.validation[number]) == drawn.validation[number]
        if format == "sentence_pair":
            assert len(options) == 1 and len(beside) == (label == 2) and len(other) == (label == 0)
            continue
        assert beside == [options[label]]
        n = len(options)
        same = 1 if format == "multiple_choice" else 1 + (n > 6) + (n > 10)
        assert n - len(other) == 1 + same and len(set(other)) == min(4, len(other))
        cut = [store.unit_ids(u)[: caps(format, n)[1]].tolist() for u in options]
        right = set(cut[label])
        assert len({tuple(one) for one in cut}) == n
        for place, one in enumerate(cut):
            assert place == label or len(right & set(one)) < 0.8 * len(right | set(one))


@pytest.mark.parametrize("format", PAIRED)
def test_an_empty_store_draws_nothing(made_store: Maker, format: str) -> None:
    drawn = draw(format, made_store([]), 0)
    assert len(drawn) == 0 and drawn.offsets.tolist() == [0]


def test_unknown_formats_and_single_text_without_labels_are_refused(made_store: Maker) -> None:
    with pytest.raises(UserError, match='did you mean "unified"'):
        draw("unifid", made_store([[9] * 6]), 0)
    with pytest.raises(UserError, match="needs pseudo-labels"):
        draw("single_text", made_store([[9] * 6]), 0)


def test_lines_state_sizes_and_drops(made_store: Maker) -> None:
    drawn = draw("sentence_pair", made_store([[9] * 6, [9] * 6, [9, 2, 2]]), 0, validation=0.0)
    assert drawn.lines() == [
        "12 examples to train on, 0 held out; dropped: 1 units of documents left with fewer than 5 units, "
        "2 units under 5 tokens"
    ]
