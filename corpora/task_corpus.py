"""A task corpus on disk: which units each example is made of, rendered when it is read.

A folder holds `examples.parquet` (`query` int64, `options` list of int64, `label` int16, `split` "train" or
"validation") and `manifest.json`. Unit numbers are those of the build's store.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from corpora.common.errors import UserError
from corpora.common.files import manifest_hash, read_manifest
from corpora.example_index import ExampleIndex
from corpora.formats import Example, render_pretraining
from corpora.rendering import Rendered, Renderer, Segments, ends, spread
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
        if "unit_dtype" not in self.manifest:
            raise UserError(f"{folder} was built without an index; build the corpora again")
        self._index = ExampleIndex.open(folder, len(self), self.manifest["unit_dtype"])

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
        return sum(self.manifest["examples"].values())

    @cached_property
    def manifest_hash(self) -> str:
        """SHA-256 of the manifest; what prompts cite."""
        return manifest_hash(self.folder)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the build keeps beside its store."""
        return Tokenizer.load(self.folder.parent / "tokenizer")

    def split(self, name: str) -> range:
        """Row numbers of a split; the training examples stand first.

        Raises:
            UserError: `name` is neither "train" nor "validation".
        """
        if name not in SPLITS:
            raise UserError(f'no split "{name}"; expected one of {", ".join(SPLITS)}')
        train, held_out = (int(self.manifest["examples"][one]) for one in SPLITS)
        return range(train) if name == "train" else range(train, train + held_out)

    def rows(self, split: str) -> NDArray[np.int64]:
        """`split` as an array."""
        rows = self.split(split)
        return np.arange(rows.start, rows.stop)

    def label(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Labels of rows [B]."""
        return self._index.label[rows].astype(np.int64)

    def n_options(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """How many options rows [B] have; in `sentence_pair` the partner is one."""
        return self._index.offsets[1:][rows] - self._index.offsets[rows]

    def units(self, row: int) -> tuple[int, list[int]]:
        """Store numbers of a row's query and options."""
        index = self._index
        options = index.options[index.offsets[row] : index.offsets[row + 1]]
        return int(index.query[row]), options.tolist()

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
            int(self._index.label[row]),
            prompt_len,
            self.language,
        )

    def render_batch(self, rows: NDArray[np.integer], tokenizer: Tokenizer, prompt_len: int) -> Rendered:
        """What `render` gives for each of many rows [B], by array work; batches of hundreds are fastest.

        Raises:
            UserError: as `render`.
        """
        self._check(tokenizer)
        ids, offsets = self._renderer.render(self.store.tokens, self._segments(rows), prompt_len)
        return Rendered(ids, offsets, self.label(rows))

    def lengths(self, rows: NDArray[np.integer], prompt_len: int) -> NDArray[np.int32]:
        """Tokens of rows as `render` will make them: int32 [B]; reads offsets, no tokens."""
        return self._renderer.lengths(self._segments(rows), prompt_len).astype(np.int32)

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(self.format, self.language, self.tokenizer)

    def _segments(self, rows: NDArray[np.integer]) -> Segments:
        index, n_options = self._index, self.n_options(rows)
        queries = ends(n_options + 1)[:-1]
        is_option = np.ones(len(rows) + int(n_options.sum()), np.bool_)
        is_option[queries] = False
        units = np.empty(len(is_option), np.int64)
        units[queries] = index.query[rows]
        units[is_option] = index.options[spread(index.offsets[rows], n_options)]
        return self._renderer.segments(*self.store.spans(units), n_options)

    def _check(self, tokenizer: Tokenizer) -> None:
        theirs = self.store.manifest["tokenizer"]["fingerprint"]
        if tokenizer.fingerprint != theirs:
            raise UserError(
                f"{self.folder.parent} was tokenised with vocabulary {theirs[:12]}, {tokenizer.name} is "
                f"{tokenizer.fingerprint[:12]}; build the corpora with the backbone's tokenizer"
            )
