"""The examples of a task corpus as flat arrays, so that a process maps them instead of reading a table.

Beside `examples.parquet`, which other programs read, a task corpus keeps the same examples in little-endian arrays:

    query.bin           uint32 or int64 [N]      the unit that each example asks about
    options.bin         uint32 or int64 [M]      the units of all options, end to end
    option_offsets.bin  int64 [N + 1]            where each example's options start in options.bin
    label.bin           int16 [N]

Units are uint32 where the store has fewer than 2^32 of them. Training examples stand before the held-out ones, so that a
split is a range of rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from corpora.common.files import machine_errors
from corpora.store import map_array

INDEX_FILES = ("query.bin", "options.bin", "option_offsets.bin", "label.bin")


def unit_dtype(n_units: int) -> np.dtype[Any]:
    """The type that holds the unit numbers of a store of `n_units`."""
    return np.dtype(np.uint32 if n_units <= 1 << 32 else np.int64)


@dataclass(frozen=True)
class ExampleIndex:
    """The arrays of N examples, memory-mapped: processes of a machine share them."""

    query: NDArray[Any]  # [N]
    options: NDArray[Any]  # [M]
    offsets: NDArray[np.int64]  # [N + 1]
    label: NDArray[np.int16]  # [N]

    @classmethod
    def open(cls, folder: Path, n_examples: int, units: str) -> ExampleIndex:
        """Map the arrays of a task corpus; nothing of them is read but the last offset.

        Args:
            folder: the task corpus.
            n_examples: N.
            units: name of the type of unit numbers.

        Raises:
            UserError: a file is missing or of a wrong size.
        """
        offsets = map_array(folder / "option_offsets.bin", np.int64, n_examples + 1)
        return cls(
            map_array(folder / "query.bin", units, n_examples),
            map_array(folder / "options.bin", units, int(offsets[-1])),
            offsets,
            map_array(folder / "label.bin", np.int16, n_examples),
        )


class ExampleIndexWriter:
    """Writes the arrays block by block; a context manager that closes the files.

    Args:
        folder: an existing folder.
        n_units: units of the store, U.

    Raises:
        MachineError: the disk is full or the place cannot be written.

    Attributes:
        dtype: of unit numbers; the manifest names it as `unit_dtype`.
    """

    def __init__(self, folder: str | Path, n_units: int) -> None:
        self._folder, self.dtype = Path(folder), unit_dtype(n_units)
        self._options = 0
        self._held_out = False
        self._open = contextlib.ExitStack()
        with machine_errors(self._folder):
            self._files: list[IO[bytes]] = [
                self._open.enter_context((self._folder / name).open("wb")) for name in INDEX_FILES
            ]
        self._write(2, np.zeros(1, np.int64))

    def __enter__(self) -> ExampleIndexWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with machine_errors(self._folder):
            self._open.close()

    def append(
        self,
        query: NDArray[np.integer],
        options: NDArray[np.integer],
        counts: NDArray[np.integer],
        label: NDArray[np.integer],
        held_out: bool,
    ) -> None:
        """Add a block of examples, all of one split.

        Args:
            query: [B] units that ask.
            options: flat units of the options, in the order of the examples.
            counts: [B] options of each.
            label: [B].
            held_out: whether they are held out.

        Raises:
            ValueError: examples to train on after held-out ones.
            MachineError: the disk is full or the place cannot be written.
        """
        if self._held_out and not held_out and len(query):
            raise ValueError("examples to train on must stand before those held out")
        self._held_out = self._held_out or (held_out and len(query) > 0)
        ends = self._options + np.cumsum(counts, dtype=np.int64)
        self._options += len(options)
        columns: Sequence[tuple[NDArray[np.integer], Any]] = (
            (query, self.dtype), (options, self.dtype), (ends, np.int64), (label, np.int16)
        )  # fmt: skip
        for number, (column, dtype) in enumerate(columns):
            self._write(number, column.astype(dtype, copy=False))

    def _write(self, number: int, column: NDArray[Any]) -> None:
        with machine_errors(self._folder / INDEX_FILES[number]):
            self._files[number].write(np.ascontiguousarray(column).data)
