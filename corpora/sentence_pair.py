"""Three-way next-sentence prediction: is the second unit next to the first, elsewhere in its document, or of another?"""

from __future__ import annotations

import numpy as np

from corpora.drawn import Block, Int64, Plan
from corpora.view import StoreView

NO, MAYBE, YES = range(3)
LENGTH_RATIO = 100  # pairs with one side more than so many times longer are dropped (released code)


def askers(view: StoreView, strangers: int = 1) -> tuple[Int64, dict[str, int]]:
    """Units that have a neighbour, and enough units of their document that are none; the others never ask.

    Args:
        view: the units.
        strangers: how many units that are no neighbours an example can need.

    Returns:
        Their indices, and counts of the units left out by reason.
    """
    has_neighbour = view.has_next | view.has_previous
    enough = view.strangers >= strangers
    reasons = {
        "queries without a neighbour": int((~has_neighbour).sum()),
        "queries with too few other units in their document": int((has_neighbour & ~enough).sum()),
    }
    return np.flatnonzero(has_neighbour & enough), reasons


def plan(view: StoreView) -> Plan:
    """How to draw sentence pairs from a view: each unit that can ask does so once, its class drawn evenly."""
    queries, dropped = askers(view)

    def pick(query: Int64, rng: np.random.Generator) -> Block:
        label = rng.integers(0, 3, len(query))
        partner = np.where(label == YES, view.neighbour(query, rng), view.stranger(query, rng))
        known = np.ones(len(query), np.bool_)
        if view.n_docs > 1:
            partner = np.where(label == NO, view.unit_of(view.other_docs(query, 1, rng)[:, 0], rng), partner)
        else:
            known = label != NO
        one, two = view.lengths[query], view.lengths[partner]
        alike = (one <= LENGTH_RATIO * two) & (two <= LENGTH_RATIO * one)
        kept = known & alike
        reasons = {
            "examples without another document": int((~known).sum()),
            f"pairs with a length ratio over {LENGTH_RATIO}": int((known & ~alike).sum()),
        }
        return Block(query[kept], partner[kept], np.ones(int(kept.sum()), np.int64), label[kept], reasons)

    return Plan(queries, pick, dropped)
