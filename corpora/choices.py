"""Options of next-sentence selection: one adjacent unit among units of the same document and of four others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from corpora.drawn import Block, Int64, add_counts
from corpora.overlap import Sketches
from corpora.view import Queries, StoreView

OTHER_DOCS = 4  # documents that the options from elsewhere come from
ROUNDS = 64  # of drawing again what may not stand in an example; then the example is dropped


def pick_choices(
    view: StoreView,
    sketches: Sketches,
    queries: Queries,
    n_options: int,
    n_same: int,
    cap: int,
    rng: np.random.Generator,
) -> Block:
    """Draw the options of B queries.

    An option that is equal to another as it will be rendered, or a wrong one that is alike the right one
    (`overlap.py`), is drawn again.

    Args:
        view: the units.
        sketches: of the store's units, for `cap`.
        queries: units that ask.
        n_options: options of each: one adjacent, `n_same` of the same document, the rest from elsewhere.
        n_same: units of the query's document that are no neighbours.
        cap: tokens after which an option is cut.
        rng: the block's stream.

    Returns:
        The examples, options shuffled, the label being the adjacent unit's place.
    """
    n_other = n_options - 1 - n_same
    n_docs = min(OTHER_DOCS, n_other)
    if n_docs >= view.n_docs:
        return Block.none({"examples without enough other documents": len(queries)})
    docs = view.other_docs(queries, n_docs, rng)
    # Dealt out in turn: as even over the documents as their number divides.
    turns = np.arange(n_other) % OTHER_DOCS
    options = np.concatenate(
        [
            view.neighbour(queries, rng)[None],
            view.stranger(queries, rng, n_same),
            view.unit_of(docs[turns], rng),
        ]
    )
    active = np.arange(len(queries))
    for _ in range(ROUNDS):
        units = view.units.take(options if len(active) == len(queries) else options[:, active])
        wrong = np.flatnonzero(sketches.unusable(cap, units.astype(np.intp)))  # ten times as fast as nonzero
        if not len(wrong):
            active = active[:0]
            break
        slots, columns = np.divmod(wrong, len(active))
        columns = active[columns]
        same = slots <= n_same
        options[slots[same], columns[same]] = view.stranger(queries[columns[same]], rng)[0]
        slots, far = slots[~same], columns[~same]
        options[slots, far] = view.unit_of(docs[turns[slots - 1 - n_same], far], rng)
        active = np.unique(columns)
    kept = np.ones(len(queries), np.bool_)
    kept[active] = False
    options, order = options[:, kept], _orders(int(kept.sum()), n_options, rng)
    return Block(
        queries.index[kept],
        options[order, np.arange(len(order))[:, None]].reshape(-1),
        np.full(len(order), n_options),
        np.argmax(order == 0, axis=1),
        {"examples whose options stayed equal or alike": len(active)},
    )


def _orders(count: int, n: int, rng: np.random.Generator) -> Int64:
    """Random orders of `n` options, each with equal chance: [count, n], which option stands at each place."""
    keys = rng.integers(0, 1 << 64, (count, n), dtype=np.uint64)
    low = np.uint64(15)  # n is at most 16: the low bits carry which option it is, the others are a random key
    return (np.sort((keys & ~low) | np.arange(n, dtype=np.uint64), axis=1) & low).astype(np.int64)


def joined(blocks: Sequence[Block]) -> Block:
    """Put blocks that were drawn for different numbers of options together, in the order of their queries."""
    query, counts, label, flat = (
        np.concatenate([np.empty(0, np.int64), *parts])
        for parts in zip(*((one.query, one.counts, one.label, one.options) for one in blocks), strict=True)
    )
    starts = np.cumsum(counts) - counts
    order = np.argsort(query, kind="stable")
    sizes = counts[order]
    inside = np.arange(len(flat)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    options = flat[np.repeat(starts[order], sizes) + inside]
    return Block(query[order], options, sizes, label[order], add_counts([one.dropped for one in blocks]))
