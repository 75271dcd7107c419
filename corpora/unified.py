"""Next-sentence selection among 2 to 16 options, their number drawn evenly for each example."""

from __future__ import annotations

import numpy as np

from corpora.choices import pick_choices, prefix_hashes
from corpora.drawn import Block, Int64, Plan
from corpora.formats import MAX_OPTIONS, MIN_OPTIONS, option_caps
from corpora.sentence_pair import askers
from corpora.view import StoreView

# Options of the same document by number of options (released code): 1 up to 6, 2 up to 10, 3 up to 16.
SAME_DOCUMENT = np.array([0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3])


def plan(view: StoreView) -> Plan:
    """How to draw choices from a view.

    Every query can serve every number of options, so that the number stays even: a unit whose document has too few
    other units for 16 options never asks.
    """
    queries, dropped = askers(view, strangers=int(SAME_DOCUMENT.max()))
    numbers = range(MIN_OPTIONS, MAX_OPTIONS + 1)
    caps = sorted({option_caps(n)[1] for n in numbers})
    hashes = prefix_hashes(view, caps)
    row_of = np.zeros(MAX_OPTIONS + 1, np.int64)
    for n in numbers:
        row_of[n] = caps.index(option_caps(n)[1])

    def pick(query: Int64, rng: np.random.Generator) -> Block:
        n = rng.integers(MIN_OPTIONS, MAX_OPTIONS + 1, len(query))
        return pick_choices(view, query, n, SAME_DOCUMENT[n], hashes, row_of[n], rng)

    return Plan(queries, pick, dropped)
