"""Tests of corpora/common/mapped.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from corpora.common.mapped import let_go, map_file


def mapped_kib() -> int:
    """File pages in this process's memory."""
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))


def test_a_file_is_mapped_and_an_empty_one_is_an_empty_array(tmp_path: Path) -> None:
    np.arange(10, dtype=np.uint32).tofile(tmp_path / "ten.bin")
    (tmp_path / "none.bin").touch()
    assert map_file(tmp_path / "ten.bin", np.dtype(np.uint32)).tolist() == list(range(10))
    assert map_file(tmp_path / "none.bin", np.dtype(np.uint32)).tolist() == []


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
def test_pages_that_were_read_are_let_go_and_come_back(tmp_path: Path) -> None:
    np.arange(4_000_000, dtype=np.int64).tofile(tmp_path / "many.bin")
    array = map_file(tmp_path / "many.bin", np.dtype(np.int64)).reshape(4, -1)
    expected = int(array.sum())
    before = mapped_kib()
    let_go(
        array[1:], np.arange(3)
    )  # a part of it stands for the whole mapping; what is no mapping is left alone
    assert mapped_kib() < before - 20_000
    assert int(array.sum()) == expected
