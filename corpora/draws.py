"""Draw the examples of a format from a store: which unit asks, which units answer, which answer is right.

Draws are array work on blocks of queries. Each block has a random stream of its own, named by seed, format, side
and block, so that any number of workers draws the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from corpora import multiple_choice, sentence_pair, single_text, unified
from corpora.common.errors import UserError, nearest
from corpora.common.mapped import let_go
from corpora.common.rng import generator
from corpora.drawn import Block, Drawn, add_counts
from corpora.formats import FORMATS
from corpora.overlap import Sketches, make_sketches, open_sketches, write_sketches
from corpora.store import SentenceStore
from corpora.view import LIMITS, Queries, StoreView, make_views, open_view, write_views

BLOCK = 1 << 15  # units that ask together; part of the result's identity, as the streams are named by block


class Recipe(NamedTuple):
    """How a format draws."""

    pick: Callable[[StoreView, Sketches, Queries, np.random.Generator], Block]
    strangers: int  # units of its document that are no neighbours, which a query must have
    caps: tuple[int, ...]  # tokens at which it compares units


RECIPES = {
    "sentence_pair": Recipe(sentence_pair.pick, sentence_pair.STRANGERS, sentence_pair.CAPS),
    "multiple_choice": Recipe(multiple_choice.pick, multiple_choice.STRANGERS, multiple_choice.CAPS),
    "unified": Recipe(unified.pick, unified.STRANGERS, unified.CAPS),
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
    sketches = make_sketches(store, RECIPES[format].caps)
    blocks = [
        (view, draw_block(format, view, sketches, seed, number))
        for view in views.values()
        for number in range(n_blocks(view.n_units))
    ]
    return _joined(blocks, [dropped])


def n_blocks(n_units: int) -> int:
    """How many blocks the units of a view make."""
    return -(-n_units // BLOCK)


def draw_block(format: str, view: StoreView, sketches: Sketches, seed: int, number: int) -> Block:
    """Draw one block; depends on nothing but its arguments.

    A unit asks if it has a neighbour, and enough units of its document that are none.
    """
    recipe = RECIPES[format]
    queries = view.queries(number * BLOCK, min((number + 1) * BLOCK, view.n_units))
    beside = queries.next | queries.previous
    enough = queries.strangers >= recipe.strangers
    block = recipe.pick(
        view,
        sketches,
        queries[np.flatnonzero(beside & enough)],
        generator(seed, "draw", format, view.side, number),
    )
    silent = {
        "queries without a neighbour": int((~beside).sum()),
        "queries with too few other units in their document": int((beside & ~enough).sum()),
    }
    return dataclasses.replace(block, dropped=add_counts([silent, block.dropped]))


@dataclass(frozen=True)
class Piece:
    """Examples of one block, as numbers of the store, small enough to be handed from process to process."""

    query: NDArray[np.integer]  # [M]
    options: NDArray[np.integer]  # flat
    counts: NDArray[np.uint8]  # [M] options of each
    label: NDArray[np.uint8]  # [M]
    dropped: dict[str, int]


def prepare_view(store: Path, scratch: Path, format: str, seed: int, validation: float) -> dict[str, int]:
    """Write the two views of a format into files of the folder `scratch`; returns what was dropped."""
    folder = scratch / format
    folder.mkdir()
    opened = _store(store, scratch)
    dropped = write_views(opened, LIMITS[format], seed, validation, folder)
    let_go(opened.n_chars, opened.unit_offsets, opened.doc_offsets)
    return dropped


def prepare_sketches(store: Path, scratch: Path, caps: tuple[int, ...], first: int, last: int) -> None:
    """Sketch some units into the files of the folder `scratch`."""
    opened = _store(store, scratch)
    write_sketches(opened, scratch, caps, first, last)
    let_go(opened.tokens, opened.unit_offsets)


def draw_piece(store: Path, scratch: Path, format: str, side: str, seed: int, number: int) -> Piece:
    """Draw one block from what `prepare_view` and `prepare_sketches` made."""
    view = _view(store, scratch, format, side)
    sketches = _sketches(store, scratch, RECIPES[format].caps)
    block = draw_block(format, view, sketches, seed, number)
    let_go(view.store.tokens, view.store.unit_offsets, view.store.position)
    return Piece(
        view.units[block.query],
        view.units[block.options],
        block.counts.astype(np.uint8),
        block.label.astype(np.uint8),
        block.dropped,
    )


# A process keeps the files mapped from piece to piece. The scratch folder is a new one for each call of
# `draw_formats`, so that nothing is taken for the files of an earlier one.
@lru_cache(maxsize=1)
def _store(store: Path, scratch: Path) -> SentenceStore:
    return SentenceStore.open(store)


@lru_cache(maxsize=2)
def _view(store: Path, scratch: Path, format: str, side: str) -> StoreView:
    return open_view(_store(store, scratch), scratch / format, side)


@lru_cache(maxsize=2)
def _sketches(store: Path, scratch: Path, caps: tuple[int, ...]) -> Sketches:
    return open_sketches(_store(store, scratch), scratch, caps)


def forget() -> None:
    """Let go of the files that this process keeps mapped."""
    for kept in (_store, _view, _sketches):
        kept.cache_clear()


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
