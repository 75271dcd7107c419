"""The tokenisation pass: sources in numbered parts, made by any number of workers, each part exactly once.

Where a part ends depends on the sources alone (`pieces.py`), so the parts, and the store joined of them, are the same
bytes for any number of workers, shards and machines. A part appears under its name only when it is whole, and a
finished part is never made again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from corpora.common.processes import Pool
from corpora.common.progress import Progress
from corpora.documents import not_strict
from corpora.part_maker import Made, PartMaker
from corpora.pieces import Block, Range, blocks, ranges
from corpora.sources import Source

MANY_FILES = (
    2  # unseekable files a shard, or a worker, from which on each is read by one, and not by all or here
)


def part_path(folder: Path, source: int, part: int) -> Path:
    """Where a part lies; names sort in the order of the documents."""
    return folder / f"{source:06d}-{part:06d}.safetensors"


def make_parts(sources: Sequence[Source], folder: Path, maker: PartMaker, pool: Pool) -> dict[int, int]:
    """Make every part of a shard that is not there yet.

    Args:
        sources: all sources, in order.
        folder: holds the parts.
        maker: what to do with a part.
        pool: does the work.

    Returns:
        How many parts each source has, as far as this shard knows.

    Raises:
        UserError: under the maker's `strict`, the first bad record.
        MachineError: a part could not be written, a source not read, or a worker died.
    """
    streams = sum(not source.seekable for source in sources)
    maker = dataclasses.replace(maker, by_file=streams >= MANY_FILES * maker.shard[1])
    known: dict[int, int] = {}
    work: list[int] = []  # the source of each piece of work
    failed: list[tuple[int, str, str]] = []

    def feed() -> Iterator[tuple[Any, ...]]:
        # A few streams are read here while workers tokenise; many are read side by side.
        here = not pool.remote and streams < MANY_FILES * pool.workers
        for number, piece in _pieces(sources, folder, maker, here, known):
            if failed:
                return
            work.append(number)
            yield maker, number, sources[number].elsewhere(), piece, folder

    with Progress("tokenise", unit="documents") as progress:
        for order, made in pool.each(make_piece, feed()):
            number = work[order]
            if made.parts is not None:
                known[number] = made.parts
            if made.bad is not None:
                source = sources[number]
                failed.append((order, f"{source.name} {source.unit} {made.bad[1]}", made.bad[0]))
            progress.advance(made.documents)
            if (
                failed and pool.remote
            ):  # else what was handed out before is waited for: an earlier record may be bad
                break
    if failed:
        raise not_strict(*min(failed)[1:])
    return known


def _pieces(
    sources: Sequence[Source], folder: Path, maker: PartMaker, here: bool, known: dict[int, int]
) -> Iterator[tuple[int, Range | Block | None]]:
    """What is left to do, as source numbers and pieces; None: a worker reads the source."""
    for number, source in enumerate(sources):
        if source.seekable:
            found = ranges(source, maker.part_bytes)
            known[number] = len(found)
            for piece in found:
                if _missing(maker, number, source, piece, folder):
                    yield number, piece
        elif maker.by_file and not maker.owns(number, source, 0):
            continue
        elif here:
            for block in blocks(source, maker.part_bytes, maker.text_field):
                known[number] = block.part + 1
                if _missing(maker, number, source, block, folder):
                    yield number, block
        else:
            yield number, None


def _missing(maker: PartMaker, number: int, source: Source, piece: Range | Block, folder: Path) -> bool:
    return maker.owns(number, source, piece.part) and not part_path(folder, number, piece.part).exists()


def make_piece(
    maker: PartMaker, number: int, source: Source, piece: Range | Block | None, folder: Path
) -> Made:
    """Make a part; or all of a source that this shard owns and that are not there."""
    if piece is not None:
        return maker.make(number, source, piece, part_path(folder, number, piece.part))
    documents = parts = 0
    for block in blocks(source, maker.part_bytes, maker.text_field):
        parts += 1
        if _missing(maker, number, source, block, folder):
            made = maker.make(number, source, block, part_path(folder, number, block.part))
            if made.bad is not None:
                return made
            documents += made.documents
    return Made(documents, parts)
