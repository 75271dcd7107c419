"""The few-shot protocol's draws and orders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.common.errors import UserError
from finetune.draws import batches, draw, evaluation_steps, sampled_test_rows

LABELS = [i % 3 for i in range(100)]


@given(seed=st.integers(0, 10**6), shots=st.integers(1, 60), dev=st.integers(1, 40), stratified=st.booleans())
@settings(max_examples=50, deadline=None)
def test_train_and_dev_are_disjoint_and_of_the_asked_size(
    seed: int, shots: int, dev: int, stratified: bool
) -> None:
    drawn = draw(LABELS, seed, "t", shots=shots, dev_shots=dev, stratified=stratified)
    both = np.concatenate([drawn.train, drawn.dev])
    assert len(drawn.train) == shots and len(drawn.dev) == dev
    assert len(np.unique(both)) == shots + dev
    assert both.min() >= 0 and both.max() < len(LABELS)


def test_a_draw_depends_on_the_seed_and_the_task_alone() -> None:
    one, again = (draw(LABELS, 3, "t", shots=32, dev_shots=32) for _ in range(2))
    assert np.array_equal(one.train, again.train) and np.array_equal(one.dev, again.dev)
    for other in (
        draw(LABELS, 4, "t", shots=32, dev_shots=32),
        draw(LABELS, 3, "u", shots=32, dev_shots=32),
    ):
        assert not np.array_equal(one.train, other.train)


@pytest.mark.defect(11)
def test_draws_of_growing_size_are_nested_and_keep_their_dev_set() -> None:
    small, large = (draw(LABELS, 0, "t", shots=n, dev_shots=32) for n in (16, 64))
    assert np.array_equal(small.dev, large.dev)
    assert np.array_equal(small.train, large.train[:16])


def test_stratified_counts_differ_by_one_at_most() -> None:
    labels = [0] * 80 + [1] * 15 + [2] * 15
    drawn = draw(labels, 1, "t", shots=10, dev_shots=11, stratified=True)
    for rows in (drawn.train, drawn.dev):
        counts = np.bincount(np.asarray(labels)[rows], minlength=3)
        assert counts.max() - counts.min() <= 1


def test_plain_draws_are_uniform_over_rows() -> None:
    hits = np.zeros(20)
    for seed in range(2000):
        hits[draw([0] * 20, seed, "t", shots=4, dev_shots=1).train] += 1
    assert np.all(np.abs(hits / 2000 - 0.2) < 0.04)  # 4.5 standard deviations


@pytest.mark.defect(11)
def test_many_labels_draw_the_same_number_of_each_in_train_and_dev() -> None:
    labels = [i % 10 for i in range(400)]
    drawn = draw(labels, 0, "t", shots=8, dev_shots=8, per_label=True)
    for rows in (drawn.train, drawn.dev):
        assert np.bincount(np.asarray(labels)[rows]).tolist() == [8] * 10
    assert not set(drawn.train) & set(drawn.dev)


def test_too_few_rows_are_an_error_that_counts_them_or_are_taken_as_they_are() -> None:
    with pytest.raises(UserError, match="40 rows to draw from, 64 asked for"):
        draw(LABELS[:40], 0, "t", shots=32, dev_shots=32)
    with pytest.raises(UserError, match="with label number 1"):
        draw([0] * 50 + [1] * 5, 0, "t", shots=8, dev_shots=8, per_label=True)
    with pytest.raises(UserError, match="1 rows to draw from; expected two or more"):
        draw(LABELS[:1], 0, "t", shots=32, dev_shots=32, allow_fewer=True)


@given(n=st.integers(2, 99), shots=st.integers(1, 60), dev=st.integers(1, 40))
def test_a_pool_that_is_too_small_is_shared_and_no_row_of_it_is_left_out(
    n: int, shots: int, dev: int
) -> None:
    drawn = draw(LABELS[:n], 0, "t", shots=shots, dev_shots=dev, allow_fewer=True)
    assert len(drawn.train) + len(drawn.dev) == min(n, shots + dev)
    assert len(drawn.train) >= min(shots, n // 2) and len(drawn.dev) >= min(dev, n // 2)


def test_a_too_small_pool_keeps_dev_whole_where_it_is_no_more_than_half() -> None:
    counts = {}
    for n, shots, dev in ((30, 32, 32), (33, 32, 32), (250, 256, 32), (40, 8, 36), (40, 36, 8)):
        drawn = draw([0] * n, 0, "t", shots=shots, dev_shots=dev, allow_fewer=True)
        counts[n, shots, dev] = (len(drawn.train), len(drawn.dev))
    assert list(counts.values()) == [(15, 15), (17, 16), (218, 32), (8, 32), (32, 8)]


@pytest.mark.defect(3)
def test_every_epoch_holds_every_example_once_and_the_last_batch_is_kept() -> None:
    steps = batches(21, 8, 3, seed=0, task="t")
    assert [len(step) for step in steps] == [8, 8, 5] * 3
    for epoch in range(3):
        assert sorted(np.concatenate(steps[3 * epoch : 3 * epoch + 3])) == list(range(21))


def test_the_order_is_new_in_every_epoch_and_under_every_seed() -> None:
    def orders(seed: int) -> list[tuple[int, ...]]:
        steps = batches(32, 16, 5, seed, "t")
        return [tuple(np.concatenate(steps[i : i + 2])) for i in range(0, 10, 2)]

    assert len({*orders(0), *orders(1)}) == 10
    assert orders(0) == orders(0)


def test_dev_is_scored_at_step_0_at_the_last_and_every_six() -> None:
    steps = evaluation_steps(100, 6)
    assert steps[0] == 0 and steps[-1] == 100 and steps[1:3] == [6, 12] and steps[-2] == 96
    assert evaluation_steps(12, 6) == [0, 6, 12]


def test_a_limited_test_set_is_one_fixed_sample_of_the_whole() -> None:
    assert sampled_test_rows(10, None, "t").tolist() == list(range(10))
    rows = sampled_test_rows(1000, 50, "t")
    assert len(set(rows)) == 50 and rows.max() > 500
    assert np.array_equal(rows, sampled_test_rows(1000, 50, "t"))
