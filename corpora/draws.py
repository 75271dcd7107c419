"""Draw the examples of a format from a store: which unit asks, which units answer, which answer is right.

Draws are array work on blocks of queries. Each block has a random stream of its own, named by seed, format, side
and block, so that any number of workers draws the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from corpora import multiple_choice, sentence_pair, single_text, unified
from corpora.common.errors import UserError, nearest
from corpora.common.rng import generator
from corpora.drawn import Block, Drawn, Plan, add_counts
from corpora.formats import FORMATS
from corpora.store import SentenceStore
from corpora.view import LIMITS, StoreView, make_views

BLOCK = 1 << 15  # queries drawn at once; part of the result's identity, as the streams are named by block

PLANS: dict[str, Callable[[StoreView], Plan]] = {
    "sentence_pair": sentence_pair.plan,
    "multiple_choice": multiple_choice.plan,
    "unified": unified.plan,
}


def draw(
    format: str,
    store: SentenceStore,
    seed: int,
    *,
    validation: float = 0.05,
    labels: NDArray[np.integer] | None = None,
    probs: NDArray[np.floating] | None = None,
    n_classes: int = 0,
    thresholds: tuple[float, ...] | None = None,
    keep: float = single_text.KEEP,
    balance: bool = True,
) -> Drawn:
    """Draw all examples of a format, training and held out.

    Args:
        format: one of `FORMATS`.
        store: the units.
        seed: of the split and of every choice.
        validation: share of documents held out; partners and options come from the same side.
        labels: for `single_text`, as all that follow: [U] most probable class of every unit; below 0 where it was not
            labelled.
        probs: [U] probability of that class.
        n_classes: how many classes the labeller has.
        thresholds: of a fine-tuned classifier, one a class; None for a linear model.
        keep: share of each class that is kept where there are no thresholds.
        balance: whether to cut every class down to the rarest.

    Raises:
        UserError: no such format, or `single_text` without labels or with labels of another store.
    """
    if format not in FORMATS:
        raise UserError(f'no format "{format}"{nearest(format, FORMATS)}')
    views, dropped = make_views(store, LIMITS[format], seed, validation)
    if format == "single_text":
        if labels is None or probs is None:
            raise UserError("single_text needs pseudo-labels; give a labeller")
        given = single_text.Labels(labels, probs, n_classes, thresholds, keep, balance)
        return _selected(views, given, seed, dropped)
    blocks: list[tuple[StoreView, Block]] = []
    reasons = [dropped]
    for view in views.values():
        plan = PLANS[format](view)
        reasons.append(plan.dropped)
        blocks += [(view, draw_block(format, view, plan, seed, k)) for k in range(n_blocks(plan))]
    return _joined(blocks, reasons)


def n_blocks(plan: Plan) -> int:
    """How many blocks a plan's queries make."""
    return -(-len(plan.queries) // BLOCK)


def draw_block(format: str, view: StoreView, plan: Plan, seed: int, number: int) -> Block:
    """Draw one block; depends on nothing but its arguments."""
    rng = generator(seed, "draw", format, view.side, number)
    return plan.pick(plan.queries[number * BLOCK : (number + 1) * BLOCK], rng)


def _joined(blocks: list[tuple[StoreView, Block]], reasons: list[dict[str, int]]) -> Drawn:
    empty = np.empty(0, np.int64)
    query = np.concatenate([empty, *(view.units[block.query] for view, block in blocks)])
    options = np.concatenate([empty, *(view.units[block.options] for view, block in blocks)])
    counts = np.concatenate([empty, *(block.counts for _, block in blocks)])
    label = np.concatenate([empty, *(block.label for _, block in blocks)]).astype(np.int16)
    held_out = [np.full(len(block.query), view.side == "validation") for view, block in blocks]
    return Drawn(
        query,
        options,
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        label,
        np.concatenate([np.empty(0, np.bool_), *held_out]),
        add_counts([*reasons, *(block.dropped for _, block in blocks)]),
    )


def _selected(
    views: dict[str, StoreView], labels: single_text.Labels, seed: int, dropped: dict[str, int]
) -> Drawn:
    kept = {side: single_text.select(view, labels, seed) for side, view in views.items()}
    none = np.empty(0, np.int64)
    blocks = [
        (views[side], Block(one.index, none, np.zeros(len(one.index), np.int64), one.label))
        for side, one in kept.items()
    ]
    joined = _joined(blocks, [dropped, *(one.dropped for one in kept.values())])
    return dataclasses.replace(
        joined,
        notes={side: one.notes for side, one in kept.items()},
        details=tuple(one.line(side) for side, one in kept.items()),
        warnings=tuple(line for one in kept.values() for line in one.warnings),
    )
