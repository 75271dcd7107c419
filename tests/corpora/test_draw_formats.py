"""Tests of corpora/draw_formats.py."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
import pytest

from corpora import draws, overlap, view
from corpora.common.files import atomic_folder
from corpora.common.processes import Here, Pool, worker_pool
from corpora.draw_formats import draw_formats
from corpora.draws import RECIPES, draw
from corpora.store import SentenceStore
from corpora.task_corpus_writer import write_task_corpus

T = TypeVar("T")
Tree = Callable[[Path], dict[str, str]]
NAMES = tuple(RECIPES)


class Backwards:
    """A pool that ends its pieces last first."""

    workers = 3

    def each(self, work: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, T]]:
        pieces = list(enumerate(arguments))
        for number, given in reversed(pieces):
            yield number, work(*given)


@pytest.fixture
def build(tmp_path: Path, pocket_docs: list[list[str]], write_store: Callable[..., SentenceStore]) -> Path:
    write_store(tmp_path / "build" / "store", pocket_docs[:80])
    return tmp_path / "build"


def drawn_by(build: Path, pool: Pool, tree: Tree, names: tuple[str, ...] = NAMES) -> dict[str, str]:
    for name, _ in draw_formats(build, names, 0, 0.2, {"seed": 0}, pool):
        assert (build / name / "manifest.json").exists()
    return {path: found for path, found in tree(build).items() if not path.startswith("store/")}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "BLOCK", 100)
    monkeypatch.setattr(overlap, "RANGE", 100)


def test_files_are_the_same_bytes_in_whichever_order_the_pieces_end(
    build: Path, tree: Tree, small_pieces: None
) -> None:
    one = drawn_by(build, Here(), tree)
    assert {path.split("/")[0] for path in one} == set(
        NAMES
    )  # and nothing else is left in the build's folder
    for name in NAMES:
        assert pq.ParquetFile(build / name / "examples.parquet").num_row_groups > 3
        shutil.rmtree(build / name)
    assert drawn_by(build, Backwards(), tree) == one
    assert drawn_by(build, Here(), tree) == one  # in place of what is there
    for name in NAMES:
        shutil.rmtree(build / name)
    assert {**drawn_by(build, Here(), tree, NAMES[1:]), **drawn_by(build, Here(), tree, NAMES[:1])} == one


def test_processes_draw_the_same_bytes(build: Path, tree: Tree) -> None:
    one = drawn_by(build, Here(), tree)
    with worker_pool(2) as pool:
        assert drawn_by(build, pool, tree) == one


@pytest.mark.parametrize("format", NAMES)
def test_examples_are_those_that_are_drawn_in_memory(build: Path, tmp_path: Path, format: str) -> None:
    ((name, summary),) = draw_formats(build, [format], 3, 0.2, {"seed": 3}, Here())
    drawn = draw(format, SentenceStore.open(build / "store"), 3, validation=0.2)
    table = pq.read_table(build / format / "examples.parquet")
    assert name == format and table["query"].to_pylist() == drawn.query.tolist()
    assert table["options"].combine_chunks().flatten().to_pylist() == drawn.options.tolist()
    assert table["label"].to_pylist() == drawn.label.tolist()
    assert [split == "validation" for split in table["split"].to_pylist()] == drawn.validation.tolist()
    assert summary.lines() == drawn.lines() and summary.held_out > 0
    with atomic_folder(tmp_path / "one") as folder:
        write_task_corpus(folder, format, drawn, {"seed": 3})
    assert (tmp_path / "one" / "manifest.json").read_text() == (build / format / "manifest.json").read_text()


def test_memory_does_not_grow_with_the_store(
    tmp_path: Path,
    pocket_docs: list[list[str]],
    write_store: Callable[..., SentenceStore],
    small_pieces: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is allocated at most; mapped files are not."""
    monkeypatch.setattr(view, "_CHUNK", 100)
    peaks = []
    for times in (1, 1, 5):  # the first warms caches up
        build = tmp_path / str(len(peaks))
        units = write_store(build / "store", pocket_docs[:40] * times).n_units
        tracemalloc.start()
        assert len(list(draw_formats(build, NAMES, 0, 0.2, {}, Here()))) == 3
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 20 * units, (peaks, units)


def test_a_fault_leaves_no_scratch_files_and_no_half_format(
    build: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = draws.draw_block

    def failing(format: str, *rest: Any) -> Any:
        if format == "unified" and rest[-1] == 2:
            raise ZeroDivisionError
        return real(format, *rest)

    monkeypatch.setattr(draws, "draw_block", failing)
    with pytest.raises(ZeroDivisionError):
        list(draw_formats(build, NAMES, 0, 0.2, {}, Here()))
    assert sorted(path.name for path in build.iterdir()) == ["multiple_choice", "sentence_pair", "store"]


def test_no_formats_and_an_empty_store_are_no_fault(
    tmp_path: Path, write_store: Callable[..., SentenceStore]
) -> None:
    write_store(tmp_path / "store", [])
    assert list(draw_formats(tmp_path, [], 0, 0.2, {}, Here())) == []
    found = dict(draw_formats(tmp_path, NAMES, 0, 0.2, {}, Here()))
    assert [found[name].train + found[name].held_out for name in NAMES] == [0, 0, 0]
    assert pq.read_table(tmp_path / "unified" / "examples.parquet").num_rows == 0
    assert np.fromfile(tmp_path / "unified" / "option_offsets.bin", np.int64).tolist() == [0]
