"""Options of next-sentence selection: one adjacent unit among units of the same document and of four others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from corpora.common.rng import generator
from corpora.drawn import Block, Int64
from corpora.view import StoreView

OTHER_DOCS = 4  # documents that the options from elsewhere come from
ROUNDS = 64  # of drawing again an option that equals another; then the example is dropped
_UNITS = 1 << 14  # hashed at once


def prefix_hashes(view: StoreView, caps: Sequence[int]) -> NDArray[np.uint64]:
    """Hash each unit's first tokens, so that options can be compared as they will be rendered.

    Args:
        view: the units.
        caps: after how many tokens a unit is cut.

    Returns:
        uint64 [len(caps), N]; two units have equal hashes where their cut ids are equal (and else with a chance of
        about 1e-14).
    """
    weights = generator(0, "prefix_hashes").integers(0, 1 << 64, max(caps), dtype=np.uint64)
    store, longest = view.store, max(caps)
    hashes = np.zeros((len(caps), view.n_units), np.uint64)
    for first in range(0, view.n_units, _UNITS):
        units = view.units[first : first + _UNITS]
        lengths = np.minimum(store.lengths[units], longest).astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        place = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
        tokens = store.tokens[np.repeat(store.unit_offsets[units], lengths) + place]
        values = (tokens.astype(np.uint64) + np.uint64(1)) * weights[place]
        for row, cap in enumerate(caps):
            seen = values if cap == longest else np.where(place < cap, values, np.uint64(0))
            hashes[row, first : first + len(units)] = np.add.reduceat(seen, starts)
    return hashes


def pick_choices(
    view: StoreView,
    query: Int64,
    n_options: Int64,
    n_same: Int64,
    hashes: NDArray[np.uint64],
    cap: Int64,
    rng: np.random.Generator,
) -> Block:
    """Draw the options of B queries.

    Args:
        view: the units.
        query: [B] units that ask.
        n_options: [B] options of each: one adjacent, `n_same` of the same document, the rest from elsewhere.
        n_same: [B] units of the query's document that are no neighbours.
        hashes: of the units, cut as `prefix_hashes` says.
        cap: [B] which row of `hashes` holds for each query.
        rng: the block's stream.

    Returns:
        The examples, options shuffled, the label being the adjacent unit's place.
    """
    n_docs = min(OTHER_DOCS, view.n_docs - 1)
    known = np.minimum(OTHER_DOCS, n_options - 1 - n_same) <= n_docs
    lacking = int((~known).sum())
    query, n_options, n_same, cap = query[known], n_options[known], n_same[known], cap[known]
    width = int(n_options.max(initial=1))
    docs = view.other_docs(query, n_docs, rng)
    slot = np.arange(width)
    there = slot < n_options[:, None]
    options = np.zeros((len(query), width), np.int64)

    def redraw(rows: Int64, slots: Int64) -> None:
        """Draw the options in these slots; slot 0 is the adjacent one, the next `n_same` of the same document."""
        same = slots <= n_same[rows]
        options[rows[same], slots[same]] = view.stranger(query[rows[same]], rng)
        rows, slots = rows[~same], slots[~same]
        # Dealt out in turn: as even over the documents as their number divides.
        turn = (slots - 1 - n_same[rows]) % OTHER_DOCS
        options[rows, slots] = view.unit_of(docs[rows, turn], rng)

    options[:, 0] = view.neighbour(query, rng)
    redraw(*np.nonzero(there & (slot > 0)))
    active = np.arange(len(query))
    for _ in range(ROUNDS):
        seen = hashes[cap[active, None], options[active]]
        equal = np.zeros(seen.shape, np.bool_)  # to an earlier option: the adjacent one is never drawn again
        for k in range(1, width):
            equal[:, k] = (seen[:, :k] == seen[:, k : k + 1]).any(1)
        equal &= there[active]
        rows, slots = np.nonzero(equal)
        if not len(rows):
            active = active[:0]
            break
        redraw(active[rows], slots)
        active = active[np.unique(rows)]
    kept = np.ones(len(query), np.bool_)
    kept[active] = False
    order = np.argsort(np.where(there, rng.random(options.shape), 2.0), axis=1)
    options = np.take_along_axis(options, order, axis=1)
    label = np.argmax(order == 0, axis=1)
    reasons = {
        "examples without enough other documents": lacking,
        "examples with equal options": int((~kept).sum()),
    }
    flat = options[kept][there[kept]]
    return Block(query[kept], flat, n_options[kept], label[kept], reasons)
