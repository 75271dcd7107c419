"""Next-sentence selection among six options: 1 adjacent, 1 of the same document, 1 from each of four others."""

from __future__ import annotations

import numpy as np

from corpora.choices import pick_choices
from corpora.drawn import Block
from corpora.formats import CHOICES, OPTION_TOKENS
from corpora.overlap import Sketches
from corpora.view import Queries, StoreView

STRANGERS = 1  # units of its document, no neighbours, that a query must have
CAPS = (OPTION_TOKENS,)  # at which units are compared


def pick(view: StoreView, sketches: Sketches, queries: Queries, rng: np.random.Generator) -> Block:
    """Draw six-way choices."""
    return pick_choices(view, sketches, queries, CHOICES, STRANGERS, OPTION_TOKENS, rng)
