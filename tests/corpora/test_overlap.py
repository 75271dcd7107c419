"""Tests of corpora/overlap.py: sketches never decide, they only spare a look at the tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import overlap
from corpora.common.rng import generator
from corpora.overlap import make_sketch_files, make_sketches, open_sketches, sketch_ranges, write_sketches

Maker = Callable[..., SimpleNamespace]
CAPS = (20, 30, 50, 86)


def jaccard(one: list[int], two: list[int]) -> float:
    """By Python's sets: what the array work is judged by."""
    return len(set(one) & set(two)) / len(set(one) | set(two))


@st.composite
def near_units(draw: st.DrawFn) -> list[list[int]]:
    """Units that share much: each is a base with some tokens replaced, repeated or appended."""
    vocabulary = draw(st.sampled_from([12, 60, 30_000]))
    rng = generator(draw(st.integers(0, 10_000)), "units")
    base = rng.integers(0, vocabulary, draw(st.integers(1, 130)))
    units = []
    for _ in range(8):
        unit = base.copy()
        changed = rng.random(len(unit)) < rng.choice([0.0, 0.05, 0.1, 0.15, 0.3])
        unit[changed] = rng.integers(0, vocabulary, changed.sum())
        unit = np.concatenate([unit, rng.integers(0, vocabulary, rng.integers(0, 4))])
        units.append(unit[: rng.integers(1, len(unit) + 1)].tolist() if rng.random() < 0.3 else unit.tolist())
    return units


@settings(max_examples=150, deadline=None)
@given(units=near_units(), cap=st.sampled_from(CAPS))
def test_pairs_are_alike_exactly_where_they_share_four_fifths_of_their_distinct_tokens(
    made_store: Maker, units: list[list[int]], cap: int
) -> None:
    sketches = make_sketches(made_store([units]), CAPS)
    every = np.arange(len(units))
    found = sketches.alike(cap, every[:, None], every[None])
    for i, one in enumerate(units):
        for k, two in enumerate(units):
            assert found[i, k] == (jaccard(one[:cap], two[:cap]) >= 0.8), (one[:cap], two[:cap])


@settings(max_examples=150, deadline=None)
@given(units=near_units(), cap=st.sampled_from(CAPS), seed=st.integers(0, 99))
def test_unusable_are_options_alike_the_right_one_and_repeats_of_others(
    made_store: Maker, units: list[list[int]], cap: int, seed: int
) -> None:
    sketches = make_sketches(made_store([units]), CAPS)
    options = generator(seed, "options").integers(0, len(units), (6, 40))
    found = sketches.unusable(cap, options)
    for column, drawn in enumerate(options.T):
        cut = [units[unit][:cap] for unit in drawn]
        for row in range(6):
            repeats = cut[row] in cut[1:row]
            expected = row > 0 and (repeats or jaccard(cut[row], cut[0]) >= 0.8)
            assert found[row, column] == expected


def test_a_share_of_four_fifths_itself_is_alike(made_store: Maker) -> None:
    nine = list(range(9))
    store = made_store([[nine, [*nine[:8], 9], [*nine[:8]], [*nine[:8], 9, 10]]])
    found = make_sketches(store, (20,)).alike(20, np.zeros(4, np.int64), np.arange(4))
    assert found.tolist() == [True, True, True, False]  # 1, 8/10, 8/9, 8/11


def test_order_and_repetition_do_not_count(made_store: Maker) -> None:
    store = made_store([[[1, 2, 3, 4, 5], [5, 5, 4, 4, 3, 2, 1, 1], [1, 1, 1, 1, 1]]])
    found = make_sketches(store, (20,)).alike(20, np.array([0, 0]), np.array([1, 2]))
    assert found.tolist() == [True, False]


def test_few_pairs_of_unlike_units_are_looked_at(made_store: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long units of a small vocabulary: with one word of bits for 86 tokens this would be a fifth of the pairs."""
    looked = 0
    real = overlap._alike

    def counting(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        nonlocal looked
        looked += len(one)
        return real(one, two)

    monkeypatch.setattr(overlap, "_alike", counting)
    rng = generator(0, "zipf")
    store = made_store([[(rng.pareto(1.0, 86) * 30).astype(int).clip(0, 30_000) for _ in range(400)]])
    sketches = make_sketches(store, CAPS)
    every = np.arange(400)
    for cap in CAPS:
        sketches.alike(cap, every[:200, None], every[None, 200:])
    assert looked < 0.002 * 40_000 * len(CAPS)


def test_sketches_in_files_are_the_same_in_any_order_of_ranges(
    made_store: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "RANGE", 70)
    store = made_store([[1 + (doc * unit) % 90 for unit in range(7)] for doc in range(60)])
    expected = make_sketches(store, CAPS)
    make_sketch_files(tmp_path, store.n_units, CAPS)
    for first, last in reversed(sketch_ranges(store.n_units)):
        write_sketches(store, tmp_path, CAPS, first, last)
    found = open_sketches(store, tmp_path, CAPS)
    for cap in CAPS:
        assert (found.bits[cap] == expected.bits[cap]).all()


def test_a_store_without_units_has_no_sketches(made_store: Maker, tmp_path: Path) -> None:
    store = made_store([])
    assert make_sketches(store, CAPS).bits[86].shape == (2, 0)
    make_sketch_files(tmp_path, 0, CAPS)
    assert open_sketches(store, tmp_path, CAPS).bits[20].shape == (1, 0)
