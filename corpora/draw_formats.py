"""Draw the formats of a build that need no labels, by a pool of workers, and write them as they are drawn.

Nothing here grows with the corpus but files: the units that each format may use and the sketches that tell alike ones
apart go into a scratch folder, which workers map; blocks come back one by one and are written in their order.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from corpora.common.files import PARTIAL, atomic_folder, machine_errors
from corpora.common.processes import Pool
from corpora.common.progress import Progress
from corpora.drawn import Summary, add_counts
from corpora.draws import RECIPES, draw_piece, forget, n_blocks, prepare_sketches, prepare_view
from corpora.overlap import make_sketch_files, sketch_ranges
from corpora.store import SentenceStore
from corpora.task_corpus_writer import TaskCorpusWriter
from corpora.view import SIDES, open_view

T = TypeVar("T")


def draw_formats(
    build: Path, formats: Sequence[str], seed: int, validation: float, fields: dict[str, Any], pool: Pool
) -> Iterator[tuple[str, Summary]]:
    """Draw formats from the store of a build and write their folders.

    Args:
        build: its folder, which holds `store/`; each format's folder appears there when it is whole.
        formats: which of `RECIPES`, in the order in which they are to appear; one that is there is replaced.
        seed: of the split and of every choice.
        validation: share of documents held out.
        fields: of every format's manifest, as `TaskCorpusWriter` takes them.
        pool: who draws; the result is the same for any.

    Yields:
        Each format when its folder is there, and what to tell of it.

    Raises:
        MachineError: the disk is full or the place cannot be written.
    """
    if not formats:
        return
    with machine_errors(build):
        scratch = Path(tempfile.mkdtemp(dir=build, prefix="draws-", suffix=PARTIAL))
    try:
        with machine_errors(scratch):
            dropped = _prepare(build / "store", scratch, formats, seed, validation, pool)
        yield from _draw(build, scratch, formats, seed, fields, dropped, pool)
    finally:
        forget()
        shutil.rmtree(scratch, ignore_errors=True)


def _prepare(
    store: Path, scratch: Path, formats: Sequence[str], seed: int, validation: float, pool: Pool
) -> dict[str, dict[str, int]]:
    """Write views and sketches; returns the units that each format dropped, by reason."""
    n_units = SentenceStore.open(store).n_units
    caps = tuple(sorted({cap for name in formats for cap in RECIPES[name].caps}))
    make_sketch_files(scratch, n_units, caps)
    pieces: list[tuple[Any, ...]] = [
        (prepare_view, store, scratch, name, seed, validation) for name in formats
    ]
    pieces += [(prepare_sketches, store, scratch, caps, *bounds) for bounds in sketch_ranges(n_units)]
    found = dict(pool.each(_call, pieces))
    return {name: found[number] for number, name in enumerate(formats)}


def _draw(
    build: Path,
    scratch: Path,
    formats: Sequence[str],
    seed: int,
    fields: dict[str, Any],
    dropped: dict[str, dict[str, int]],
    pool: Pool,
) -> Iterator[tuple[str, Summary]]:
    store = build / "store"
    opened = SentenceStore.open(store)
    blocks = [
        (name, side, number)
        for name in formats
        for side in SIDES
        for number in range(n_blocks(open_view(opened, scratch / name, side).n_units))
    ]
    pieces = ((store, scratch, name, side, seed, number) for name, side, number in blocks)
    with Progress("draw", total=len(blocks), unit="blocks") as progress:
        results = _in_order(pool.each(draw_piece, pieces))
        for name in formats:
            reasons = [dropped[name]]
            with (
                atomic_folder(build / name, replace=True) as folder,
                TaskCorpusWriter(folder, name, fields, opened.n_units) as writer,
            ):
                for _, side, _ in (block for block in blocks if block[0] == name):
                    piece = next(results)
                    held_out = side == "validation"
                    writer.append(piece.query, piece.options, piece.counts, piece.label, held_out)
                    reasons.append(piece.dropped)
                    progress.advance()
                total = add_counts(reasons)
                examples = writer.finish(total)
            yield name, Summary(examples["train"], examples["validation"], total)


def _call(work: Callable[..., T], *arguments: Any) -> T:
    return work(*arguments)


def _in_order(results: Iterable[tuple[int, T]]) -> Iterator[T]:
    """The results of pieces in the order of the pieces; one that comes early waits."""
    waiting: dict[int, T] = {}
    due = 0
    for number, result in results:
        waiting[number] = result
        while due in waiting:
            yield waiting.pop(due)
            due += 1
