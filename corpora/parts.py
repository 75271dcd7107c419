"""The tokenisation pass: documents in numbered parts, made by any number of processes, each part exactly once.

Where a part ends depends on the text alone, so the parts, and the store joined of them, are the same bytes for any
number of workers. A part appears under its name only when it is whole, and a finished part is never made again.
"""

from __future__ import annotations

import concurrent.futures as futures
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corpora.common.files import atomic_folder, read_json, write_json
from corpora.common.processes import process_pool
from corpora.common.progress import Progress
from corpora.documents import Document
from corpora.segment import Language, Unit, detect_language, units
from corpora.store import StoreWriter
from corpora.tokenizer import Tokenizer

AHEAD = 2  # parts read ahead for each worker


@dataclass(frozen=True)
class PartMaker:
    """Turns the documents of a part into the arrays of a store.

    Attributes:
        tokenizer: folder of the tokenizer.
        unit: paragraphs or sentences.
        language: see `segment.units`.
        keep_text: whether the units' text is kept.
    """

    tokenizer: str
    unit: Unit
    language: Language
    keep_text: bool

    def make(self, tokenizer: Tokenizer, texts: list[str], path: Path) -> None:
        """Segment and tokenise `texts` into the folder `path`."""
        writer = StoreWriter(tokenizer.dtype, self.keep_text)
        documents = [units(text, self.unit, self.language) for text in texts]
        ids = tokenizer.encode([unit for document in documents for unit in document])
        start = no_tokens = no_units = unknown = 0
        for document in documents:
            ids_of = ids[start : start + len(document)]
            start += len(document)
            unknown += sum(int((unit_ids == tokenizer.unk_id).sum()) for unit_ids in ids_of)
            kept = [position for position, unit_ids in enumerate(ids_of) if len(unit_ids)]
            no_tokens += len(document) - len(kept)
            if kept:
                writer.add([document[k] for k in kept], [np.asarray(ids_of[k]) for k in kept], kept)
            else:
                no_units += 1
        chinese = sum(detect_language(text) == "zh" for text in texts)
        with atomic_folder(path) as partial:
            counts = writer.write(partial) | {"unknown_tokens": unknown, "chinese_documents": chinese}
            dropped = {"units without tokens": no_tokens, "documents without units": no_units}
            write_json(partial / "part.json", {"counts": counts, "dropped": dropped})


def make_parts(
    documents: Iterable[Document], folder: Path, maker: PartMaker, part_chars: int, workers: int
) -> list[Path]:
    """Make every part that is not there yet.

    Args:
        documents: all documents, in order; those of finished parts are read and left.
        folder: holds the parts.
        maker: what to do with a part.
        part_chars: characters of text after which a part is closed.
        workers: processes; with one, or a single part, this process does the work.

    Returns:
        The parts, in order.

    Raises:
        MachineError: a part could not be written, or a worker died.
    """
    paths: list[Path] = []
    with Progress("tokenise", unit="documents") as progress:
        batches = _batches(documents, part_chars)
        first, second = next(batches, None), next(batches, None)
        every = itertools.chain((batch for batch in (first, second) if batch is not None), batches)
        if second is None or workers == 1:
            tokenizer = Tokenizer.load(maker.tokenizer)
            for batch in every:
                paths.append(folder / f"{len(paths):06d}")
                if not paths[-1].exists():
                    maker.make(tokenizer, batch, paths[-1])
                progress.advance(len(batch))
            return paths
        with process_pool(workers, _start, (maker,)) as executor:
            running: dict[futures.Future[None], int] = {}
            for batch in every:
                paths.append(folder / f"{len(paths):06d}")
                if paths[-1].exists():
                    progress.advance(len(batch))
                    continue
                if len(running) >= workers + AHEAD:
                    _collect(running, progress, futures.FIRST_COMPLETED)
                running[executor.submit(_work, batch, paths[-1])] = len(batch)
            _collect(running, progress, futures.ALL_COMPLETED)
    return paths


def part_counts(paths: Iterable[Path]) -> tuple[dict[str, int], dict[str, int]]:
    """Sums over parts: what they hold, and what was dropped by reason."""
    counts: dict[str, int] = {}
    dropped: dict[str, int] = {}
    for path in paths:
        part = read_json(path / "part.json")
        for total, values in ((counts, part["counts"]), (dropped, part["dropped"])):
            for name, value in values.items():
                total[name] = total.get(name, 0) + value
    return counts, {reason: n for reason, n in dropped.items() if n}


_maker: PartMaker
_tokenizer: Tokenizer


def _start(maker: PartMaker) -> None:
    global _maker, _tokenizer
    _maker, _tokenizer = maker, Tokenizer.load(maker.tokenizer)


def _work(batch: list[str], path: Path) -> None:
    _maker.make(_tokenizer, batch, path)


def _collect(running: dict[futures.Future[None], int], progress: Progress, until: str) -> None:
    """Wait for parts; the first failure is raised."""
    done, _ = futures.wait(running, return_when=until)
    for future in done:
        documents = running.pop(future)
        future.result()
        progress.advance(documents)


def _batches(documents: Iterable[Document], part_chars: int) -> Iterator[list[str]]:
    batch: list[str] = []
    chars = 0
    for document in documents:
        batch.append(document.text)
        chars += len(document.text)
        if chars >= part_chars:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
