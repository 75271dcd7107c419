"""Writing a task corpus: the files that `task_corpus.py` reads."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from corpora.common.files import hash_file, machine_errors, write_manifest
from corpora.drawn import Drawn
from corpora.example_index import ExampleIndexWriter
from corpora.formats import label_words, pattern
from corpora.task_corpus import SPLITS

ROW_GROUP = 1 << 20  # rows; keeps an options column's offsets far below what a list column can count
SCHEMA = pa.schema(
    [("query", pa.int64()), ("options", pa.list_(pa.int64())), ("label", pa.int16()), ("split", pa.string())]
)


def write_task_corpus(folder: str | Path, format: str, drawn: Drawn, fields: dict[str, Any]) -> None:
    """Write the files of a task corpus into an existing folder.

    Args:
        folder: as `atomic_folder` yields it.
        format: one of `FORMATS`.
        drawn: its examples; equal examples give equal bytes.
        fields: what else the manifest says: `store` (its manifest's hash), `tokenizer_fingerprint`, `seed`,
            `language` ("en" where not given) whose patterns and label words hold, `label_words` where a labeller's.

    Raises:
        MachineError: the disk is full or the place cannot be written.
    """
    folder = Path(folder)
    language = fields.get("language", "en")
    words = list(fields.get("label_words") or label_words(format, language))
    path = folder / "examples.parquet"
    with machine_errors(path), pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for first in range(0, len(drawn), ROW_GROUP):
            writer.write_table(_table(drawn, first, min(first + ROW_GROUP, len(drawn))))
    n_units = int(max(drawn.query.max(initial=-1), drawn.options.max(initial=-1))) + 1
    with ExampleIndexWriter(folder, n_units) as index:
        edges = np.flatnonzero(np.diff(drawn.validation)) + 1
        for first, last in itertools.pairwise([0, *edges.tolist(), len(drawn)]):
            offsets = drawn.offsets[first : last + 1]
            index.append(
                drawn.query[first:last],
                drawn.options[offsets[0] : offsets[-1]],
                np.diff(offsets),
                drawn.label[first:last],
                bool(drawn.validation[first : first + 1].any()),
            )
    examples, labels = {}, {}
    for split, inside in (("train", ~drawn.validation), ("validation", drawn.validation)):
        counts = np.bincount(drawn.label[inside], minlength=len(words)).tolist()
        examples[split] = int(inside.sum())
        labels[split] = dict(zip(words, counts, strict=True))
    made = {
        "format": format,
        "language": language,
        "label_words": words,
        "pattern": pattern(format, language).text,
        "examples": examples,
        "labels": labels,
        "dropped": drawn.dropped,
        "unit_dtype": index.dtype.name,
        "examples_sha256": hash_file(path),
        **({"selection": drawn.notes} if drawn.notes else {}),
    }
    write_manifest(folder, "task_corpus", {**fields, **made})


def _table(drawn: Drawn, first: int, last: int) -> pa.Table:
    offsets = drawn.offsets[first : last + 1]
    options = pa.ListArray.from_arrays(
        pa.array((offsets - offsets[0]).astype(np.int32)), pa.array(drawn.options[offsets[0] : offsets[-1]])
    )
    split = pa.array(np.where(drawn.validation[first:last], *reversed(SPLITS)))
    columns = [pa.array(drawn.query[first:last]), options, pa.array(drawn.label[first:last]), split]
    return pa.Table.from_arrays(columns, schema=SCHEMA)
