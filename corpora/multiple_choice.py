"""Next-sentence selection among six options: 1 adjacent, 1 of the same document, 1 from each of four others."""

from __future__ import annotations

import numpy as np

from corpora.choices import pick_choices, prefix_hashes
from corpora.drawn import Block, Int64, Plan
from corpora.formats import CHOICES, OPTION_TOKENS
from corpora.sentence_pair import askers
from corpora.view import StoreView


def plan(view: StoreView) -> Plan:
    """How to draw six-way choices from a view: each unit that can ask does so once."""
    queries, dropped = askers(view)
    hashes = prefix_hashes(view, [OPTION_TOKENS])

    def pick(query: Int64, rng: np.random.Generator) -> Block:
        same = np.ones(len(query), np.int64)
        return pick_choices(view, query, CHOICES * same, same, hashes, 0 * same, rng)

    return Plan(queries, pick, dropped)
