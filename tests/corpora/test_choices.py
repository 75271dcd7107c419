"""Tests of corpora/choices.py, multiple_choice.py and unified.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from corpora import overlap
from corpora.common.rng import generator
from corpora.drawn import Drawn
from corpora.draws import draw
from corpora.formats import caps

Maker = Callable[..., SimpleNamespace]
CHOICES = ("multiple_choice", "unified")

# method.md, "unified": number of options -> of the same document, of other documents (1 is adjacent)
MIX = {2: (1, 0), 3: (1, 1), 4: (1, 2), 5: (1, 3), 6: (1, 4), 7: (2, 4), 8: (2, 5), 9: (2, 6), 10: (2, 7)}
MIX |= {11: (3, 7), 12: (3, 8), 13: (3, 9), 14: (3, 10), 15: (3, 11), 16: (3, 12)}


def rows(drawn: Drawn) -> list[tuple[int, list[int], int]]:
    parts = np.split(drawn.options, drawn.offsets[1:-1])
    return [(int(q), o.tolist(), int(y)) for q, o, y in zip(drawn.query, parts, drawn.label, strict=True)]


def equal_options(store: SimpleNamespace, drawn: Drawn, format: str) -> int:
    """Examples in which two options are the same ids as they are rendered."""
    found = 0
    for _, options, _ in rows(drawn):
        cap = caps(format, len(options))[1]
        found += len({tuple(store.unit_ids(unit)[:cap].tolist()) for unit in options}) < len(options)
    return found


@pytest.mark.parametrize("format", CHOICES)
def test_options_are_one_adjacent_some_of_the_document_and_the_rest_of_four_others(
    made_store: Maker, format: str
) -> None:
    store = made_store([[9, 9, None, 9, 9, 9, 9, 9, 9]] * 200)
    for query, options, label in rows(draw(format, store, 0)):
        docs = store.doc_of_unit[options]
        mine = docs == store.doc_of_unit[query]
        near = mine & (abs(store.position[options] - store.position[query]) == 1)
        assert query not in options and near.tolist().index(True) == label and near.sum() == 1
        same, other = MIX[len(options)]
        assert mine.sum() == 1 + same
        shares = sorted(Counter(docs[~mine].tolist()).values())
        assert len(shares) == min(4, other) and sum(shares) == other
        assert not shares or shares[-1] - shares[0] <= 1
        assert len(set(options)) == len(options)


def test_multiple_choice_has_six_options_and_its_answer_is_anywhere(made_store: Maker) -> None:
    drawn = draw("multiple_choice", made_store([[9] * 10] * 900), 0)
    assert set(np.diff(drawn.offsets)) == {6}
    counts = np.bincount(drawn.label, minlength=6)
    assert ((counts - 1500) ** 2 / 1500).sum() < 20.5  # chi-squared, 5 degrees, p = 0.001


def test_unified_draws_its_number_of_options_and_its_answer_evenly(made_store: Maker) -> None:
    drawn = draw("unified", made_store([[9] * 10] * 900), 0)
    numbers = np.diff(drawn.offsets)
    counts = np.bincount(numbers, minlength=17)[2:]
    assert ((counts - 600) ** 2 / 600).sum() < 36.1  # 14 degrees, p = 0.001
    statistic = 0.0
    for n in range(2, 17):
        places = np.bincount(drawn.label[numbers == n], minlength=n)
        assert len(places) == n
        statistic += ((places - places.mean()) ** 2 / places.mean()).sum()
    assert statistic < 171  # sum of n - 1: 120 degrees, p = 0.0015


def test_the_number_stays_even_where_documents_have_the_fewest_units(made_store: Maker) -> None:
    drawn = draw("unified", made_store([[9] * 6] * 1500), 0)
    counts = np.bincount(np.diff(drawn.offsets), minlength=17)[2:]
    assert drawn.dropped == {} and ((counts - 600) ** 2 / 600).sum() < 36.1


@pytest.mark.defect(12)
@pytest.mark.parametrize("format", CHOICES)
def test_no_two_options_are_equal_after_cutting(made_store: Maker, format: str) -> None:
    """Every third unit begins with the same 90 tokens: equal under every cap, different as a whole."""
    head = list(range(100, 190))
    docs = [
        [[*head, 300 + doc, 400 + unit] if (doc + unit) % 3 == 0 else 95 for unit in range(8)]
        for doc in range(60)
    ]
    store = made_store(docs)
    drawn = draw(format, store, 0)
    assert equal_options(store, drawn, format) == 0
    assert len(drawn) == 480 and np.isin(np.arange(0, 480, 3), drawn.options).any()


@pytest.mark.defect(12)
def test_options_that_differ_behind_the_cut_of_a_small_example_may_meet_in_a_large_cap(
    made_store: Maker,
) -> None:
    """Equality is judged at each example's own cap: 50 tokens of two options tell apart what 20 of sixteen do not."""
    rng = generator(0, "test")
    heads = [list(rng.integers(10, 999, 30)) for _ in range(2)]
    docs = [[[*heads[unit % 2], 2000 + 10 * doc + unit] for unit in range(8)] for doc in range(30)]
    drawn = draw("unified", made_store(docs), 0)
    numbers = np.diff(drawn.offsets)
    assert set(numbers.tolist()) == {2, 3, 4, 5, 6}  # caps 50 and 40; with 30 and 20 only two heads are left
    assert drawn.dropped["examples whose options stayed equal or alike"] == 240 - len(drawn) > 0


@pytest.mark.defect(7)
@pytest.mark.defect(12)
@pytest.mark.parametrize("format", CHOICES)
def test_text_that_only_repeats_itself_ends_in_counted_drops(made_store: Maker, format: str) -> None:
    drawn = draw(format, made_store([[[11, 12, 13, 14, 15]] * 7] * 40), 0)
    assert len(drawn) == 0 and drawn.dropped == {"examples whose options stayed equal or alike": 280}


@pytest.mark.defect(7)
def test_units_of_a_document_get_other_documents_each(made_store: Maker) -> None:
    store = made_store([[9] * 8] * 200)
    chosen = [
        frozenset(store.doc_of_unit[options]) - {store.doc_of_unit[query]}
        for query, options, _ in rows(draw("multiple_choice", store, 0))
    ]
    assert len(set(chosen)) > 0.99 * len(chosen)


def shared(one: list[int], two: list[int]) -> float:
    """Jaccard index by Python's sets."""
    return len(set(one) & set(two)) / len(set(one) | set(two))


def alike_options(store: SimpleNamespace, drawn: Drawn, format: str) -> int:
    """Examples in which a wrong option shares four fifths or more of its distinct tokens with the right one."""
    found = 0
    for _, options, label in rows(drawn):
        cut = [store.unit_ids(unit)[: caps(format, len(options))[1]].tolist() for unit in options]
        right = cut.pop(label)
        found += any(shared(right, wrong) >= 0.8 for wrong in cut)
    return found


NOTICES = set(generator(0, "near_copies").integers(100, 9000, (3, 100)).ravel().tolist())


def near_copies(documents: int) -> list[list[list[int]]]:
    """Half of the units are one of three notices with a few words changed in any place; no two are equal."""
    rng = generator(0, "near_copies")
    notices = rng.integers(100, 9000, (3, 100))
    docs = []
    for doc in range(documents):
        units = []
        for unit in range(12):
            ids = notices[rng.integers(3)].copy() if rng.random() < 0.5 else rng.integers(100, 9000, 100)
            changed = rng.random(100) < rng.choice([0.0, 0.02, 0.05, 0.1])
            ids[changed] = rng.integers(10_000, 60_000, changed.sum())
            ids[0] = 60_000 + doc * 12 + unit
            units.append(ids[: rng.integers(85, 101)].tolist())
        docs.append(units)
    return docs


@pytest.mark.parametrize("format", CHOICES)
def test_no_wrong_option_shares_four_fifths_of_the_right_ones_tokens(
    made_store: Maker, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    store = made_store(near_copies(100))
    drawn = draw(format, store, 0)
    assert alike_options(store, drawn, format) == 0
    assert len(drawn) + drawn.dropped.get("examples whose options stayed equal or alike", 0) == 1200
    assert len(drawn) > 1100
    # Near copies still are right answers, and wrong ones.
    right = drawn.options[drawn.offsets[:-1] + drawn.label]
    copies = np.array([len(set(store.unit_ids(unit)[:50].tolist()) & NOTICES) > 15 for unit in range(1200)])
    assert copies[right].mean() > 0.3 and copies[drawn.options].mean() > 0.3
    monkeypatch.setattr(overlap, "_alike", lambda one, two: np.zeros(len(one), np.bool_))
    assert alike_options(store, draw(format, store, 0), format) > 100  # nothing but the rule keeps them out
