"""Labels of every unit of a store, made in numbered ranges that are never made twice."""

from __future__ import annotations

import concurrent.futures as futures
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from corpora.common.files import write_bytes_atomic
from corpora.common.processes import process_pool
from corpora.common.progress import Progress
from corpora.labeller import Labeller
from corpora.store import SentenceStore

RANGE = 20_000  # units labelled at a time
STEP = 2_000  # texts given to the labeller at once


def label_units(
    store: SentenceStore, labeller: Labeller, labeller_folder: Path, work: Path, workers: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Classify every unit.

    Args:
        store: holds the units and their text.
        labeller: what classifies them.
        labeller_folder: where workers find it (linear labellers; others run in this process).
        work: folder for finished ranges; a later call with the same folder goes on from them.
        workers: processes.

    Returns:
        The most probable class of each unit, int8 [U], and its probability, float32 [U].
    """
    ranges = [(start, min(start + RANGE, store.n_units)) for start in range(0, store.n_units, RANGE)]
    todo = [bounds for bounds in ranges if not _path(work, bounds[0]).exists()]
    work.mkdir(exist_ok=True)
    with Progress("label", total=store.n_units, unit="units") as progress:
        progress.start_at(store.n_units - sum(stop - start for start, stop in todo))
        if workers == 1 or len(todo) < 2 or not labeller.linear:
            for start, stop in todo:
                for done in _label(store, labeller, start, stop, _path(work, start)):
                    progress.advance(done)
        else:
            with process_pool(workers, _start, (store.folder, labeller_folder)) as executor:
                running = {executor.submit(_work, *bounds, _path(work, bounds[0])): bounds for bounds in todo}
                for future in futures.as_completed(running):
                    future.result()
                    progress.advance(running[future][1] - running[future][0])
    found = [np.load(_path(work, start)) for start, _ in ranges]
    joined = np.concatenate(found, axis=1) if found else np.empty((2, 0), np.float32)
    return joined[0].astype(np.int8), joined[1]


def _path(work: Path, start: int) -> Path:
    return work / f"{start // RANGE:06d}.npy"


def _label(store: SentenceStore, labeller: Labeller, start: int, stop: int, path: Path) -> Iterator[int]:
    """Label units `start` to `stop` into a file; yields how many were done as it goes."""
    rows = []
    for first in range(start, stop, STEP):
        texts = list(store.texts(first, min(first + STEP, stop)))
        probabilities_NC = labeller.predict(texts)
        rows.append(np.stack([probabilities_NC.argmax(1).astype(np.float32), probabilities_NC.max(1)]))
        yield len(texts)
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate(rows, axis=1))
    write_bytes_atomic(path, buffer.getvalue())


_store: SentenceStore
_labeller: Labeller


def _start(store: Path, labeller: Path) -> None:
    global _store, _labeller
    _store, _labeller = SentenceStore.open(store), Labeller.load(labeller)


def _work(start: int, stop: int, path: Path) -> None:
    for _ in _label(_store, _labeller, start, stop, path):
        pass
