"""Tests of corpora/example_index.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from corpora.common.errors import UserError
from corpora.example_index import INDEX_FILES, ExampleIndex, ExampleIndexWriter, unit_dtype

QUERY, COUNTS, LABEL = np.array([5, 7, 9]), np.array([2, 0, 3]), np.array([1, 0, 2])
OPTIONS = np.array([1, 2, 3, 4, 5])


def write(folder: Path, n_units: int, blocks: list[slice]) -> None:
    ends = np.concatenate([[0], np.cumsum(COUNTS)])
    with ExampleIndexWriter(folder, n_units) as writer:
        for block in blocks:
            options = OPTIONS[ends[block.start] : ends[block.stop]]
            writer.append(QUERY[block], options, COUNTS[block], LABEL[block], held_out=block.start >= 2)


def test_blocks_of_any_size_give_the_same_files_and_read_as_they_were_written(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, blocks in ((one, [slice(0, 2), slice(2, 3)]), (two, [slice(0, 1), slice(1, 2), slice(2, 3)])):
        folder.mkdir()
        write(folder, 10, blocks)
    for name in INDEX_FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes()
    index = ExampleIndex.open(one, 3, "uint32")
    assert index.query.tolist() == QUERY.tolist() and index.options.tolist() == OPTIONS.tolist()
    assert index.offsets.tolist() == [0, 2, 2, 5] and index.label.tolist() == LABEL.tolist()


def test_units_beyond_32_bits_are_kept_whole(tmp_path: Path) -> None:
    assert (unit_dtype(1 << 32), unit_dtype((1 << 32) + 1)) == (np.uint32, np.int64)
    with ExampleIndexWriter(tmp_path, 1 << 33) as writer:
        writer.append(np.array([1 << 32]), np.array([(1 << 32) + 7]), np.array([1]), np.array([0]), False)
    index = ExampleIndex.open(tmp_path, 1, writer.dtype.name)
    assert (int(index.query[0]), int(index.options[0])) == (1 << 32, (1 << 32) + 7)


def test_no_examples_make_an_index_too(tmp_path: Path) -> None:
    with ExampleIndexWriter(tmp_path, 3):
        pass
    index = ExampleIndex.open(tmp_path, 0, "uint32")
    assert len(index.query) == len(index.options) == len(index.label) == 0 and index.offsets.tolist() == [0]


def test_examples_to_train_on_may_not_follow_held_out_ones(tmp_path: Path) -> None:
    with ExampleIndexWriter(tmp_path, 10) as writer:
        writer.append(QUERY, OPTIONS, COUNTS, LABEL, held_out=True)
        writer.append(QUERY[:0], OPTIONS[:0], COUNTS[:0], LABEL[:0], held_out=False)
        with pytest.raises(ValueError, match="must stand before"):
            writer.append(QUERY, OPTIONS, COUNTS, LABEL, held_out=False)


@pytest.mark.parametrize("name", INDEX_FILES)
def test_a_missing_or_cut_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write(tmp_path, 10, [slice(0, 2), slice(2, 3)])
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-1])
    with pytest.raises(UserError, match=f"{name} has {len(data) - 1} bytes, expected {len(data)}"):
        ExampleIndex.open(tmp_path, 3, "uint32")
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        ExampleIndex.open(tmp_path, 3, "uint32")
