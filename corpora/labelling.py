"""Labels of every unit of a store, made in numbered ranges that are never made twice."""

from __future__ import annotations

import concurrent.futures as futures
import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corpora.common.errors import UserError
from corpora.common.files import manifest_hash, write_bytes_atomic
from corpora.common.mapped import let_go
from corpora.common.processes import Pool, process_pool
from corpora.common.progress import Progress
from corpora.labeller import Labeller, check_tokenizer, load_labeller
from corpora.sequence_labeller import GROUP, SequenceClassifier, devices
from corpora.single_text import KEEP
from corpora.store import SentenceStore

RANGE = 20_000  # units that a linear labeller reads at a time
LOOK = 1.0  # seconds between two looks at what the devices have finished

# A finished range: five bytes a unit.
LABEL = np.dtype([("label", np.int8), ("probability", np.float32)])

Bounds = tuple[int, int]


@dataclass(frozen=True)
class Rule:
    """Which labelled units are kept: over a threshold, or the surest share of each class."""

    thresholds: tuple[float, ...] | None  # one a class
    keep: float  # where there are no thresholds


def keep_rule(labeller: Labeller, keep: float | None, thresholds: Sequence[float] | None) -> Rule:
    """What was asked for, or what suits the labeller.

    Args:
        labeller: a linear one keeps the surest fifth of each class, a fine-tuned classifier what is over its thresholds.
        keep: share of each class, if asked for.
        thresholds: one a class, if asked for.

    Raises:
        UserError: both are given, or thresholds that are not one for each class.
    """
    if keep is not None and thresholds is not None:
        raise UserError(f"both keep ({keep}) and thresholds are given; expected one of them")
    if thresholds is not None and len(thresholds) != len(labeller.words):
        raise UserError(
            f"{len(thresholds)} thresholds for the {len(labeller.words)} classes {', '.join(labeller.words)}; "
            "expected one for each class, in this order"
        )
    if thresholds is not None:
        return Rule(tuple(thresholds), KEEP)
    return Rule(labeller.thresholds if keep is None else None, KEEP if keep is None else keep)


def label_units(
    store: SentenceStore, labeller: Labeller, labeller_folder: Path, work: Path, pool: Pool
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Classify every unit.

    Args:
        store: holds the units' ids, and their text where the labeller reads it.
        labeller: what classifies them.
        labeller_folder: where workers find it (linear labellers; a classifier runs on the machine's accelerators).
        work: folder for finished ranges; a later call with the same folder goes on from them.
        pool: who labels the ranges of a linear labeller.

    Returns:
        The most probable class of each unit, int8 [U], and its probability, float32 [U]: mapped from files in `work`.

    Raises:
        UserError: the labeller reads ids of another tokenizer, or text that the store does not keep.
    """
    tokenizer = store.manifest["tokenizer"]
    check_tokenizer(labeller, tokenizer["name"], tokenizer["fingerprint"])
    size = RANGE if labeller.linear else GROUP
    ranges = [(start, min(start + size, store.n_units)) for start in range(0, store.n_units, size)]
    todo = [bounds for bounds in ranges if not _path(work, bounds).exists()]
    work.mkdir(exist_ok=True)
    with Progress("label", total=store.n_units, unit="units") as progress:
        progress.skip(store.n_units - _units(todo))
        for done in _label_all(store, labeller, labeller_folder, work, todo, pool):
            progress.advance(done)
    return _joined(work, ranges, store.n_units)


def _label_all(
    store: SentenceStore, labeller: Labeller, folder: Path, work: Path, todo: list[Bounds], pool: Pool
) -> Iterator[int]:
    """Label ranges; yields how many units were done as it goes."""
    if not isinstance(labeller, SequenceClassifier):
        # Absolute: a worker may stand elsewhere.
        there = (
            store.folder.absolute(),
            folder.absolute(),
            manifest_hash(store.folder) + labeller.fingerprint,
        )
        work_of = ((*there, *bounds, _path(work.absolute(), bounds)) for bounds in todo)
        for number, _ in pool.each(_label, work_of):
            yield _units(todo[number : number + 1])
    elif len(found := devices()) > 1 and len(todo) > 1:
        yield from label_on_devices(store.folder, labeller, todo, work, found)
    else:
        yield from _classify(store, labeller, todo, work)


def _label(store: Path, labeller: Path, identity: str, start: int, stop: int, path: Path) -> None:
    """Label units `start` to `stop` with a linear labeller, into a file."""
    opened, loaded = _opened(store, labeller, identity)
    _write(path, loaded.predict_units(opened, start, stop))
    let_go(opened.tokens, opened.unit_offsets)


@functools.lru_cache(maxsize=1)
def _opened(store: Path, labeller: Path, identity: str) -> tuple[SentenceStore, Labeller]:
    """What a worker keeps; `identity` tells folders apart that came in the place of others."""
    return SentenceStore.open(store), load_labeller(labeller)


def _classify(
    store: SentenceStore, labeller: SequenceClassifier, todo: Sequence[Bounds], work: Path
) -> Iterator[int]:
    """Label ranges on the classifier's device; yields the size of each."""
    texts = (list(store.texts(*bounds)) for bounds in todo)
    for bounds, probabilities_NC in zip(todo, labeller.predict_groups(texts), strict=True):
        _write(_path(work, bounds), probabilities_NC)
        yield len(probabilities_NC)


def label_on_devices(
    store: Path, labeller: SequenceClassifier, todo: list[Bounds], work: Path, found: Sequence[str]
) -> Iterator[int]:
    """Label ranges with a classifier, one process a device, each its share of them.

    Args:
        store: folder of the store.
        labeller: the classifier; every process loads it again.
        todo: the ranges.
        work: folder for what they give.
        found: devices, such as "cuda:0".

    Yields:
        How many units were done since the last time.
    """
    given = (store, labeller.name, labeller.words, labeller.temperature, work)
    shares = [(device, todo[number :: len(found)]) for number, device in enumerate(found)]
    with process_pool(len(found)) as executor:
        running = {executor.submit(_classify_there, *given, *share) for share in shares if share[1]}
        done, waiting = 0, todo
        while running:
            ended, running = futures.wait(running, LOOK, futures.FIRST_COMPLETED)
            waiting = [bounds for bounds in waiting if not _path(work, bounds).exists()]
            yield _units(todo) - _units(waiting) - done
            done = _units(todo) - _units(waiting)
            for future in ended:
                future.result()


def _classify_there(
    store: Path,
    name: str,
    words: Sequence[str],
    temperature: float,
    work: Path,
    device: str,
    todo: Sequence[Bounds],
) -> None:
    opened = SentenceStore.open(store)
    for _ in _classify(opened, SequenceClassifier(name, words, temperature, device), todo, work):
        pass


def _units(ranges: Sequence[Bounds]) -> int:
    return sum(stop - start for start, stop in ranges)


def _path(work: Path, bounds: Bounds) -> Path:
    return work / f"{bounds[0]:012d}-{bounds[1]:012d}.npy"


def _write(path: Path, probabilities_NC: NDArray[np.float32]) -> None:
    found = np.empty(len(probabilities_NC), LABEL)
    found["label"], found["probability"] = probabilities_NC.argmax(1), probabilities_NC.max(1)
    buffer = io.BytesIO()
    np.save(buffer, found)
    write_bytes_atomic(path, buffer.getvalue())


def _joined(work: Path, ranges: list[Bounds], n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """All ranges end to end, in files that memory only maps."""
    if not n:
        return np.empty(0, np.int8), np.empty(0, np.float32)
    label = np.memmap(work / "label.bin", np.int8, "w+", shape=(n,))
    probability = np.memmap(work / "probability.bin", np.float32, "w+", shape=(n,))
    for start, stop in ranges:
        found = np.load(_path(work, (start, stop)))
        label[start:stop], probability[start:stop] = found["label"], found["probability"]
    return label.view(np.ndarray), probability.view(np.ndarray)
