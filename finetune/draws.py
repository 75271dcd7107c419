"""Which examples a seed draws, and in which order they are trained on: the same for every method."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from corpora.common.errors import UserError
from corpora.common.rng import generator
from finetune.task import Task

IntArray = NDArray[np.int64]

EVERY = 10**12  # of `shots`: more than any set has


@dataclass(frozen=True)
class Draw:
    """Row numbers of a training pool."""

    train: IntArray
    dev: IntArray


@dataclass(frozen=True)
class Asked:
    """What a run asks of every task's rows; see the settings of the same names, whose defaults these are."""

    shots: tuple[int, ...] = (32,)
    dev_shots: int = 32
    shots_per_label: int = 8
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    stratified: bool = False
    allow_fewer: bool = False
    prompt_len: int = 100
    dev_shots_of: Mapping[str, int] = field(default_factory=dict)  # task name -> its own number

    def counts(self, task: Task, shots: int) -> tuple[int, int]:
        """Examples to train and to choose by; of each label where the task has many."""
        each = task.shots_per_label or self.shots_per_label
        if not task.many_labels:
            return shots, self.dev_shots_of.get(task.name, self.dev_shots)
        return (EVERY if shots == EVERY else each), each


def draw_for(task: Task, labels: Sequence[int], asked: Asked, shots: int, seed: int) -> Draw:
    """A seed's draw for a task; see `draw`."""
    train, dev = asked.counts(task, shots)
    return draw(
        labels,
        seed,
        task.name,
        shots=train,
        dev_shots=dev,
        per_label=task.many_labels,
        stratified=asked.stratified,
        allow_fewer=asked.allow_fewer,
    )


def too_few(
    labels: Sequence[int], shots: int, dev_shots: int, per_label: bool = False, names: Sequence[str] = ()
) -> str:
    """What a pool has too few rows for.

    Args:
        labels: label of every row of the pool.
        shots: training examples; with `per_label`, of each label.
        dev_shots: dev examples, likewise.
        per_label: whether each label has to have so many.
        names: of the labels, those included that no row has; empty: the labels that rows have, by number.

    Returns:
        How many there are (of the rarest label, and how many labels are too rare), how many are asked for, what to
        change; empty: there are enough.
    """
    pool = np.asarray(labels, dtype=np.int64)
    need = shots + dev_shots
    if not per_label:
        found = {"": len(pool)}
    elif names:
        found = {f' with label "{name}"': int((pool == label).sum()) for label, name in enumerate(names)}
    else:
        found = {f" with label number {label}": int((pool == label).sum()) for label in np.unique(pool)}
    keys = "shots, dev_shots"
    if per_label and found:
        most = min(found.values()) // 2  # as many to train as to choose by
        keys = f"shots_per_label: {most}" if most else "shots_per_label; and add rows"
    short = {which: n for which, n in found.items() if n < need}
    if not short:
        return ""
    which, n = min(short.items(), key=lambda item: item[1])
    others = f" (and too few of {len(short) - 1} other labels)" if short.keys() - {which} else ""
    return (
        f"{n} rows to draw from{which}{others}, {need} asked for ({shots} to train, {dev_shots} to choose by); "
        f"ask for fewer ({keys}) or set allow_fewer: true"
    )


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
        shots: training examples; with `per_label`, of each label. `EVERY`: all rows that dev leaves.
        dev_shots: dev examples, likewise; half of the rows at most where `shots` is `EVERY`.
        per_label: draw the same number of each label (tasks of more than five labels).
        stratified: take labels in turn, so that their counts differ by one at most.
        allow_fewer: take what there is where the pool is too small: dev is filled first, though with no more than
            half of the rows unless training leaves more; with `per_label`, a short label's rows are halved.

    Raises:
        UserError: too few rows, saying how many there are.
    """
    pool = np.asarray(labels, dtype=np.int64)
    rng = generator(seed, "draw", task)
    order = rng.permutation(len(pool))
    if not allow_fewer and (lacking := too_few(labels, shots, dev_shots, per_label)):
        raise UserError(f"task {task}: {lacking}")
    if per_label:
        train, dev = [], []
        for label in np.unique(pool):
            rows = order[pool[order] == label]
            own_dev = dev_shots if len(rows) >= dev_shots + shots else min(dev_shots, len(rows) // 2)
            dev.append(rows[:own_dev])
            train.append(rows[own_dev : own_dev + shots])
        result = Draw(np.concatenate(train), np.concatenate(dev))
    else:
        if stratified:
            order = _in_turn(order, pool, rng)
        dev_shots = min(dev_shots, max(len(order) // 2, len(order) - shots))
        result = Draw(order[dev_shots : dev_shots + shots], order[:dev_shots])
    if not len(result.train) or not len(result.dev):
        which = " of a label" if per_label else ""
        raise UserError(
            f"task {task}: {len(pool)} rows to draw from; expected two{which} or more, one to train on and one to choose by"
        )
    return result


def _in_turn(order: IntArray, labels: IntArray, rng: np.random.Generator) -> IntArray:
    """Reorder so that each round takes one row of every label that still has one, labels shuffled each round."""
    queues = {label: deque(order[labels[order] == label]) for label in np.unique(labels)}
    taken: list[int] = []
    while any(queues.values()):
        left = [label for label, rows in queues.items() if rows]
        taken.extend(queues[left[i]].popleft() for i in rng.permutation(len(left)))
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
