"""Arrays that are files mapped into memory."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def map_file(path: Path, kind: np.dtype[Any]) -> NDArray[Any]:
    """Map a file of numbers as an array, for reading; an empty file gives an empty one."""
    if not path.stat().st_size:
        return np.empty(0, kind)
    return np.memmap(path, kind, mode="r").view(np.ndarray)


def let_go(*arrays: NDArray[Any]) -> None:
    """Take the pages that were read of mapped arrays out of this process's memory; other arrays are left alone.

    They stay in the system's page cache while there is room, and come back by themselves when they are read again.
    Without this, a process that reads a whole file piece by piece seems as large as the file in the end.
    """
    for array in arrays:
        below: Any = array
        while isinstance(below, np.ndarray):
            below = below.base
        if isinstance(below, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            below.madvise(mmap.MADV_DONTNEED)
