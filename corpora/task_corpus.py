"""A task corpus on disk: which units each example is made of, rendered when it is read.

A folder holds `examples.parquet` (`query` int64, `options` list of int64, `label` int16, `split` "train" or
"validation") and `manifest.json`. Unit numbers are those of the build's store.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from corpora.common.errors import UserError
from corpora.common.files import manifest_hash, read_manifest
from corpora.formats import ENCODER_TOKENS, Example, caps, pattern, render_pretraining
from corpora.store import SentenceStore
from corpora.tokenizer import Tokenizer

SPLITS = ("train", "validation")


class TaskCorpus:
    """The examples of one format, beside the store that holds their units; see `open`.

    Attributes:
        folder: where it is.
        format: one of `FORMATS`.
        manifest: what it was made from, counts.
        store: its units.
        label_words: one a label, in label order.
        language: whose pattern it renders with.
    """

    def __init__(self, folder: Path, format: str, store: SentenceStore) -> None:
        self.folder, self.format, self.store = folder, format, store
        self.manifest = read_manifest(folder, "task_corpus")
        if self.manifest["format"] != format:
            raise UserError(f"{folder} holds {self.manifest['format']} examples, expected {format}")
        self.label_words: tuple[str, ...] = tuple(self.manifest["label_words"])
        self.language = str(self.manifest["language"])
        query, counts, options, labels, held_out = [], [], [], [], []
        try:
            with pq.ParquetFile(folder / "examples.parquet") as file:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group)
                    query.append(table["query"].to_numpy())
                    lists = table["options"].combine_chunks()
                    counts.append(np.diff(lists.offsets.to_numpy()))
                    options.append(lists.flatten().to_numpy(zero_copy_only=False))
                    labels.append(table["label"].to_numpy())
                    held_out.append(_equals(table["split"], "validation"))
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise UserError(
                f"{folder}/examples.parquet cannot be read ({error}); build the corpus again"
            ) from error
        self._query = np.concatenate([np.empty(0, np.int64), *query])
        self._options = np.concatenate([np.empty(0, np.int64), *options])
        self._offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.empty(0, np.int64), *counts]))])
        self._offsets = self._offsets.astype(np.int64)
        self._label = np.concatenate([np.empty(0, np.int16), *labels])
        self._held_out = np.concatenate([np.empty(0, np.bool_), *held_out])

    @classmethod
    def open(cls, build: str | Path, format: str) -> TaskCorpus:
        """Open a format of a build.

        Raises:
            UserError: the build lacks the format, or its corpus was drawn from another store; names both sides.
        """
        build = Path(build)
        if not (build / format).is_dir():
            raise UserError(f"{build} has no {format} corpus; build it with --formats {format}")
        corpus = cls(build / format, format, SentenceStore.open(build / "store"))
        expected, found = corpus.manifest.get("store"), manifest_hash(build / "store")
        if expected is not None and expected != found:
            raise UserError(
                f"{corpus.folder} was drawn from store {expected[:12]}, {build}/store is {found[:12]}; "
                "build the corpora again"
            )
        return corpus

    def __len__(self) -> int:
        return len(self._query)

    @cached_property
    def manifest_hash(self) -> str:
        """SHA-256 of the manifest; what prompts cite."""
        return manifest_hash(self.folder)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the build keeps beside its store."""
        return Tokenizer.load(self.folder.parent / "tokenizer")

    def rows(self, split: str) -> NDArray[np.int64]:
        """Row numbers of a split, ascending.

        Raises:
            UserError: `split` is neither "train" nor "validation".
        """
        if split not in SPLITS:
            raise UserError(f'no split "{split}"; expected one of {", ".join(SPLITS)}')
        return np.flatnonzero(self._held_out == (split == "validation"))

    def label(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Labels of rows [B]."""
        return self._label[rows].astype(np.int64)

    def units(self, row: int) -> tuple[int, list[int]]:
        """Store numbers of a row's query and options."""
        options = self._options[self._offsets[row] : self._offsets[row + 1]]
        return int(self._query[row]), options.tolist()

    def render(self, row: int, tokenizer: Tokenizer, prompt_len: int) -> Example:
        """Input ids and label of one row.

        Args:
            row: its number.
            tokenizer: the backbone's; must have the vocabulary of the store.
            prompt_len: tokens that the prompt takes of the format's encoder length.

        Raises:
            UserError: the tokenizer is another than the store's, or the prompt leaves no room.
        """
        self._check(tokenizer)
        query, options = self.units(row)
        ids = self.store.unit_ids
        return render_pretraining(
            tokenizer,
            self.format,
            ids(query),
            [ids(option) for option in options],
            int(self._label[row]),
            prompt_len,
            self.language,
        )

    def lengths(self, rows: NDArray[np.integer], prompt_len: int) -> NDArray[np.int32]:
        """Tokens of rows as `render` will make them, by array work alone: int32 [B]."""
        lengths, form = self.store.lengths, pattern(self.format, self.language)
        counts = self._offsets[rows + 1] - self._offsets[rows]
        total = np.zeros(len(rows), np.int64)
        for n in np.unique(counts).tolist():
            inside = counts == n
            query_cap, option_cap = caps(self.format, n)
            options = self._options[self._offsets[rows[inside]][:, None] + np.arange(n)]
            total[inside] = (
                form.fixed_tokens(self.tokenizer, n if form.has_options else 0)
                + _cut(lengths[self._query[rows[inside]]], query_cap)
                + _cut(lengths[options], option_cap).sum(1)
            )
        return np.minimum(total, ENCODER_TOKENS[self.format] - prompt_len).astype(np.int32)

    def _check(self, tokenizer: Tokenizer) -> None:
        theirs = self.store.manifest["tokenizer"]["fingerprint"]
        if tokenizer.fingerprint != theirs:
            raise UserError(
                f"{self.folder.parent} was tokenised with vocabulary {theirs[:12]}, {tokenizer.name} is "
                f"{tokenizer.fingerprint[:12]}; build the corpora with the backbone's tokenizer"
            )


def _cut(lengths: NDArray[np.int32], cap: int) -> NDArray[np.int32]:
    return np.minimum(lengths, cap) if cap else lengths


def _equals(column: pa.ChunkedArray, value: str) -> NDArray[np.bool_]:
    import pyarrow.compute as pc

    return np.asarray(pc.equal(column, value).combine_chunks().to_numpy(zero_copy_only=False), np.bool_)
