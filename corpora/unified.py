"""Next-sentence selection among 2 to 16 options, their number drawn evenly for each example."""

from __future__ import annotations

import numpy as np

from corpora.choices import joined, pick_choices
from corpora.drawn import Block
from corpora.formats import MAX_OPTIONS, MIN_OPTIONS, option_caps
from corpora.overlap import Sketches
from corpora.view import Queries, StoreView

# Options of the same document by number of options (released code): 1 up to 6, 2 up to 10, 3 up to 16.
SAME_DOCUMENT = (0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3)

# Every query can serve every number of options, so that the number stays even: a unit whose document has too few
# other units for 16 options never asks.
STRANGERS = max(SAME_DOCUMENT)
CAPS = tuple(
    sorted({option_caps(n)[1] for n in range(MIN_OPTIONS, MAX_OPTIONS + 1)})
)  # units are compared there


def pick(view: StoreView, sketches: Sketches, queries: Queries, rng: np.random.Generator) -> Block:
    """Draw choices, each among a number of options of its own."""
    number = rng.integers(MIN_OPTIONS, MAX_OPTIONS + 1, len(queries))
    blocks = []
    for n in range(MIN_OPTIONS, MAX_OPTIONS + 1):
        some = queries[np.flatnonzero(number == n)]
        blocks.append(pick_choices(view, sketches, some, n, SAME_DOCUMENT[n], option_caps(n)[1], rng))
    return joined(blocks)
