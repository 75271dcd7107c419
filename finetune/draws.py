"""Which examples a seed draws, and in which order they are trained on: the same for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corpora.common.errors import UserError
from corpora.common.rng import generator

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """Row numbers of a training pool."""

    train: IntArray
    dev: IntArray


def draw(
    labels: Sequence[int],
    seed: int,
    task: str,
    *,
    shots: int,
    dev_shots: int,
    per_label: bool = False,
    stratified: bool = False,
    allow_fewer: bool = False,
) -> Draw:
    """Draw a seed's training and dev examples, uniformly and without replacement.

    Dev is drawn first, so it stays the same when `shots` grows, and the training draws of one seed are nested.

    Args:
        labels: label of every row of the pool.
        seed: the seed.
        task: name of the task, which is part of the stream's key.
        shots: training examples; with `per_label`, of each label.
        dev_shots: dev examples, likewise.
        per_label: draw the same number of each label (tasks of more than five labels).
        stratified: take labels in turn, so that their counts differ by one at most.
        allow_fewer: take what there is where the pool is too small; dev is filled first.

    Raises:
        UserError: too few rows, saying how many there are.
    """
    pool = np.asarray(labels, dtype=np.int64)
    rng = generator(seed, "draw", task)
    order = rng.permutation(len(pool))
    if per_label:
        train, dev = [], []
        for label in np.unique(pool):
            rows = order[pool[order] == label]
            _check_enough(task, f" with label number {label}", len(rows), shots, dev_shots, allow_fewer)
            dev.append(rows[:dev_shots])
            train.append(rows[dev_shots : dev_shots + shots])
        result = Draw(np.concatenate(train), np.concatenate(dev))
    else:
        _check_enough(task, "", len(order), shots, dev_shots, allow_fewer)
        if stratified:
            order = _in_turn(order, pool, rng)
        result = Draw(order[dev_shots : dev_shots + shots], order[:dev_shots])
    if not len(result.train):
        raise UserError(f"task {task}: no row is left to train on after {len(result.dev)} for dev")
    return result


def _check_enough(task: str, which: str, found: int, shots: int, dev_shots: int, allow_fewer: bool) -> None:
    if found < shots + dev_shots and not allow_fewer:
        raise UserError(
            f"task {task}: {found} rows to draw from{which}, {shots + dev_shots} asked for "
            f"({shots} to train, {dev_shots} to choose by); ask for fewer or set allow_fewer: true"
        )


def _in_turn(order: IntArray, labels: IntArray, rng: np.random.Generator) -> IntArray:
    """Reorder so that each round takes one row of every label that still has one, labels shuffled each round."""
    queues = {label: list(order[labels[order] == label]) for label in np.unique(labels)}
    taken: list[int] = []
    while any(queues.values()):
        left = [label for label, rows in queues.items() if rows]
        taken.extend(queues[left[i]].pop(0) for i in rng.permutation(len(left)))
    return np.asarray(taken, dtype=np.int64)


def batches(n: int, batch_size: int, epochs: int, seed: int, task: str) -> list[IntArray]:
    """Batches of a whole run: every example once in each epoch, a new order in each (none is dropped).

    Args:
        n: training examples.
        batch_size: examples of a batch; an epoch's last may hold fewer.
        epochs: how often each example is seen.
        seed: draws the orders.
        task: name of the task.

    Returns:
        Positions 0 ... n-1, one array a step.
    """
    steps: list[IntArray] = []
    for epoch in range(epochs):
        order = generator(seed, "order", task, epoch).permutation(n)
        steps.extend(order[start : start + batch_size] for start in range(0, n, batch_size))
    return steps


def evaluation_steps(steps: int, every: int) -> list[int]:
    """Steps after which dev is scored: 0, every `every`-th and the last."""
    return sorted({*range(0, steps, every), steps})


def sampled_test_rows(n: int, limit: int | None, task: str) -> IntArray:
    """Rows of the test set that are scored: all, or a fixed sample that does not depend on the seed of a run."""
    if limit is None or n <= limit:
        return np.arange(n, dtype=np.int64)
    return np.sort(generator(0, "test sample", task).permutation(n)[:limit])
