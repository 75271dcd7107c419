"""Writing a task corpus: the files that `task_corpus.py` reads."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from corpora.common.files import hash_file, machine_errors, write_manifest
from corpora.drawn import Drawn
from corpora.example_index import ExampleIndexWriter
from corpora.formats import label_words, pattern
from corpora.task_corpus import SPLITS

ROW_GROUP = 1 << 16  # rows that are held to be written together
SCHEMA = pa.schema(
    [("query", pa.int64()), ("options", pa.list_(pa.int64())), ("label", pa.int16()), ("split", pa.string())]
)

# Unit numbers of a block need as many bits as its largest difference has: packed so, they take less room than under
# zstd, in half the time (unified, 183,000 examples: 4.4 MB in 0.04 s instead of 5.2 MB in 0.10 s).
_PACKED = {"query": "DELTA_BINARY_PACKED", "options.list.element": "DELTA_BINARY_PACKED"}


class TaskCorpusWriter:
    """Writes a task corpus block by block, holding no more than one; a context manager that closes its files.

    Args:
        folder: as `atomic_folder` yields it.
        format: one of `FORMATS`.
        fields: what else the manifest says: `store` (its manifest's hash), `tokenizer_fingerprint`, `seed`,
            `language` ("en" where not given) whose patterns and label words hold, `label_words` where a labeller's.
        n_units: units of the store, U.

    Raises:
        MachineError: the disk is full or the place cannot be written.
    """

    def __init__(self, folder: str | Path, format: str, fields: dict[str, Any], n_units: int) -> None:
        self._folder, self._format, self._fields = Path(folder), format, fields
        self._language = fields.get("language", "en")
        self._words = list(fields.get("label_words") or label_words(format, self._language))
        self._counts = {split: np.zeros(len(self._words), np.int64) for split in SPLITS}
        self._path = self._folder / "examples.parquet"
        with machine_errors(self._path):
            self._file = pq.ParquetWriter(
                self._path,
                SCHEMA,
                compression="none",
                use_dictionary=["label", "split"],
                column_encoding=_PACKED,
            )
        self._index = ExampleIndexWriter(self._folder, n_units)

    def __enter__(self) -> TaskCorpusWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with machine_errors(self._path):
            self._file.close()
        self._index.__exit__(kind, error, trace)

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
            query: [B] units that ask, as numbers of the store.
            options: flat units of the options, in the order of the examples.
            counts: [B] options of each.
            label: [B].
            held_out: whether they are held out.

        Raises:
            ValueError: examples to train on after held-out ones.
            MachineError: the disk is full or the place cannot be written.
        """
        if not len(query):
            return
        split = SPLITS[held_out]
        self._counts[split] += np.bincount(label, minlength=len(self._words))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        columns = [
            _array(query, np.int64),
            pa.ListArray.from_arrays(_array(offsets, np.int32), _array(options, np.int64)),
            _array(label, np.int16),
            _repeated(split, len(query)),
        ]
        with machine_errors(self._path):
            self._file.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))
        self._index.append(query, options, counts, label, held_out)

    def finish(self, dropped: dict[str, int], notes: dict[str, Any] | None = None) -> dict[str, int]:
        """Close the files and write the manifest.

        Args:
            dropped: units or examples by reason.
            notes: how the examples were selected, where a labeller's.

        Returns:
            Examples of each split.
        """
        self.__exit__(None, None, None)
        examples = {split: int(counts.sum()) for split, counts in self._counts.items()}
        made = {
            "format": self._format,
            "language": self._language,
            "label_words": self._words,
            "pattern": pattern(self._format, self._language).text,
            "examples": examples,
            "labels": {
                split: dict(zip(self._words, counts.tolist(), strict=True))
                for split, counts in self._counts.items()
            },
            "dropped": dropped,
            "unit_dtype": self._index.dtype.name,
            "examples_sha256": hash_file(self._path),
            **({"selection": notes} if notes else {}),
        }
        write_manifest(self._folder, "task_corpus", {**self._fields, **made})
        return examples


def write_task_corpus(folder: str | Path, format: str, drawn: Drawn, fields: dict[str, Any]) -> None:
    """Write the files of a task corpus that is in memory into an existing folder.

    Args:
        folder: as `atomic_folder` yields it.
        format: one of `FORMATS`.
        drawn: its examples, those held out behind those to train on; equal examples give equal bytes.
        fields: as for `TaskCorpusWriter`.

    Raises:
        MachineError: the disk is full or the place cannot be written.
    """
    train = len(drawn) - int(drawn.validation.sum())
    n_units = int(max(drawn.query.max(initial=-1), drawn.options.max(initial=-1))) + 1
    with TaskCorpusWriter(folder, format, fields, n_units) as writer:
        for held_out, start, stop in ((False, 0, train), (True, train, len(drawn))):
            for first in range(start, stop, ROW_GROUP):
                last = min(first + ROW_GROUP, stop)
                offsets = drawn.offsets[first : last + 1]
                writer.append(
                    drawn.query[first:last],
                    drawn.options[offsets[0] : offsets[-1]],
                    np.diff(offsets),
                    drawn.label[first:last],
                    held_out,
                )
        writer.finish(drawn.dropped, drawn.notes)


def _array(values: NDArray[np.integer], kind: type[np.integer]) -> pa.Array:
    """An Arrow array over numpy's memory; `pa.array` would import pandas first, which takes a quarter of a second."""
    values = np.ascontiguousarray(values, kind)
    return pa.Array.from_buffers(pa.from_numpy_dtype(kind), len(values), [None, pa.py_buffer(values)])


def _repeated(text: str, count: int) -> pa.Array:
    """An Arrow array of the same text `count` times, without `pa.repeat` for the same reason."""
    offsets = np.arange(count + 1, dtype=np.int32) * len(text)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text.encode() * count))
