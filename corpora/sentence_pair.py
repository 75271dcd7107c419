"""Three-way next-sentence prediction: is the second unit next to the first, elsewhere in its document, or of another?"""

from __future__ import annotations

import numpy as np

from corpora.choices import ROUNDS
from corpora.drawn import Block, Bool, Int64
from corpora.formats import OPTION_TOKENS
from corpora.overlap import Sketches
from corpora.view import Queries, StoreView

NO, MAYBE, YES = range(3)
LENGTH_RATIO = 100  # pairs with one side more than so many times longer are dropped (released code)

STRANGERS = 1  # units of its document, no neighbours, that a query must have

# At which units are compared. A side of a pair is never cut to so few tokens, so partners that are equal as they are
# rendered are equal here too.
CAPS = (OPTION_TOKENS,)


def pick(view: StoreView, sketches: Sketches, queries: Queries, rng: np.random.Generator) -> Block:
    """Draw sentence pairs, the class of each evenly.

    A `no` or `maybe` partner that is equal to a neighbour of the query, or alike one as no wrong option of a choice may
    be (`overlap.py`), would teach a wrong label: it is drawn again.
    """
    label = rng.integers(0, 3, len(queries))
    known = (label != NO) | (view.n_docs > 1)
    partner = np.where(label == YES, view.neighbour(queries, rng), 0)
    active = np.flatnonzero(known & (label != YES))
    for _ in range(ROUNDS):
        partner[active] = _apart(view, queries[active], label[active] == NO, rng)
        active = active[_like_a_neighbour(view, sketches, queries[active], partner[active])]
        if not len(active):
            break
    apart = np.ones(len(queries), np.bool_)
    apart[active] = False
    one, two = view.lengths_of(queries.index), view.lengths_of(partner)
    alike = (one <= LENGTH_RATIO * two) & (two <= LENGTH_RATIO * one)
    kept = known & apart & alike
    reasons = {
        "examples without another document": int((~known).sum()),
        "pairs whose partner stayed equal to a neighbour or alike": len(active),
        f"pairs with a length ratio over {LENGTH_RATIO}": int((known & apart & ~alike).sum()),
    }
    return Block(queries.index[kept], partner[kept], np.ones(int(kept.sum()), np.int64), label[kept], reasons)


def _apart(view: StoreView, queries: Queries, elsewhere: Bool, rng: np.random.Generator) -> Int64:
    """A unit of another document for some queries, and of their own, but no neighbour, for the others [B]."""
    found = np.empty(len(queries), np.int64)
    found[~elsewhere] = view.stranger(queries[~elsewhere], rng)[0]
    if elsewhere.any():
        found[elsewhere] = view.unit_of(view.other_docs(queries[elsewhere], 1, rng), rng)[0]
    return found


def _like_a_neighbour(view: StoreView, sketches: Sketches, queries: Queries, partner: Int64) -> Bool:
    """Whether a partner could pass for the unit before or behind its query [B]."""
    found = np.zeros(len(queries), np.bool_)
    for there, step in ((queries.previous, -1), (queries.next, 1)):
        beside = view.units[queries.index[there] + step]
        found[there] |= sketches.alike(CAPS[0], beside, view.units[partner[there]])
    return found
