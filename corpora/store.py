"""The sentence store: every unit tokenised once, memory-mapped, with its text beside it.

On disk a store is a folder of flat little-endian arrays and a manifest:

    tokens.bin        uint16 or uint32 [tokens]   ids of all units, end to end
    unit_offsets.bin  int64 [U + 1]               where each unit starts in tokens.bin
    doc_offsets.bin   int64 [D + 1]               which units each document has
    position.bin      int32 [U]                   a unit's index in its document before any was dropped
    n_chars.bin       int32 [U]                   length of a unit's text in characters
    doc_source.bin    int32 [D]                   which of the manifest's sources a document comes from
    doc_line.bin      int64 [D]                   line or row where it starts there, from 1
    text.bin          zstd blocks of UTF-8, each the texts of some units end to end
    text_offsets.bin  int64 [blocks + 1]          where each block starts in text.bin
    text_units.bin    int64 [blocks + 1]          which units each block has

U counts units and D documents. The last three files are absent where the text is not kept. `corpora.store_writer`
writes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corpora.common.errors import UserError
from corpora.common.files import read_manifest
from corpora.sources import record_unit


class SentenceStore:
    """A store opened for reading; see `open`.

    Attributes:
        folder: where it is.
        manifest: tokenizer, counts, sources, versions.
        n_units: units, U.
        n_docs: documents, D.
        doc_offsets: int64 [D + 1], the units of document d are `doc_offsets[d]:doc_offsets[d + 1]`.
        position: int32 [U], index of the unit in its document before units were dropped: two units of a
            document stood side by side where these differ by one.
        n_chars: int32 [U], characters of each unit's text.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.n_units, self.n_docs = int(manifest["units"]), int(manifest["documents"])
        self.tokens = map_array(folder / "tokens.bin", np.dtype(manifest["dtype"]), manifest["tokens"])
        self.unit_offsets = map_array(folder / "unit_offsets.bin", np.int64, self.n_units + 1)
        self.doc_offsets = map_array(folder / "doc_offsets.bin", np.int64, self.n_docs + 1)
        self.position = map_array(folder / "position.bin", np.int32, self.n_units)
        self.n_chars = map_array(folder / "n_chars.bin", np.int32, self.n_units)
        self._block = -1
        self._block_starts: npt.NDArray[np.int64] = np.zeros(1, np.int64)
        self._block_text = ""

    @classmethod
    def open(cls, folder: str | Path) -> SentenceStore:
        """Map a store's arrays; nothing is read but the manifest.

        Raises:
            UserError: the folder holds no store, or a file of it is missing or of a wrong size.
        """
        return cls(Path(folder), read_manifest(folder, "store"))

    def place(self, document: int) -> str:
        """Where a document was read: `news.jsonl line 17`."""
        source = np.memmap(self.folder / "doc_source.bin", np.int32, "r")[document]
        line = np.memmap(self.folder / "doc_line.bin", np.int64, "r")[document]
        name = self.manifest["sources"][source]["name"]
        return f"{name} {record_unit(name)} {line}"

    def unit_ids(self, unit: int) -> npt.NDArray[np.unsignedinteger]:
        """Token ids of one unit [L]: a view of the file, not a copy."""
        return self.tokens[self.unit_offsets[unit] : self.unit_offsets[unit + 1]]

    def spans(self, units: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where units [N] start in `tokens` and how many tokens they have: two int64 [N].

        Reads the offsets of these units only, where `lengths` makes an array of all.
        """
        starts = self.unit_offsets[units]
        return starts, self.unit_offsets[1:][units] - starts

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each unit, int32 [U]."""
        return np.diff(self.unit_offsets).astype(np.int32)

    @cached_property
    def doc_of_unit(self) -> npt.NDArray[np.int64]:
        """The document of each unit, int64 [U]."""
        return np.repeat(np.arange(self.n_docs), np.diff(self.doc_offsets))

    @property
    def keeps_text(self) -> bool:
        """Whether the units' text is kept beside their ids."""
        return bool(self.manifest["keep_text"])

    def text(self, unit: int) -> str:
        """The text of one unit, exactly as it was read.

        Raises:
            UserError: the store was built without text.
        """
        block = int(np.searchsorted(self._text_units, unit, side="right")) - 1
        self._load_block(block)
        inside = unit - int(self._text_units[block])
        return self._block_text[self._block_starts[inside] : self._block_starts[inside + 1]]

    def texts(self, start: int, stop: int) -> Iterator[str]:
        """The texts of units `start` to `stop` (not included), each block unpacked once."""
        for unit in range(start, stop):
            yield self.text(unit)

    @cached_property
    def _text_units(self) -> npt.NDArray[np.int64]:
        if not self.keeps_text:
            raise UserError(
                f"{self.folder} was built without text (keep_text: false); build it again with text"
            )
        return map_array(self.folder / "text_units.bin", np.int64, int(self.manifest["text_blocks"]) + 1)

    @cached_property
    def _text_offsets(self) -> npt.NDArray[np.int64]:
        return map_array(self.folder / "text_offsets.bin", np.int64, int(self.manifest["text_blocks"]) + 1)

    @cached_property
    def _text_data(self) -> npt.NDArray[np.uint8]:
        return map_array(self.folder / "text.bin", np.uint8, int(self._text_offsets[-1]))

    def _load_block(self, block: int) -> None:
        if block == self._block:
            return
        import zstandard  # here, so that who only trains needs no such package

        data = self._text_data[self._text_offsets[block] : self._text_offsets[block + 1]]
        self._block_text = zstandard.ZstdDecompressor().decompress(data.tobytes()).decode("utf-8")
        first, last = self._text_units[block], self._text_units[block + 1]
        self._block_starts = np.concatenate([[0], np.cumsum(self.n_chars[first:last], dtype=np.int64)])
        self._block = block


def map_array(path: Path, dtype: npt.DTypeLike, count: int) -> npt.NDArray[Any]:
    """Map `count` values of a file, which must hold just these.

    Raises:
        UserError: the file is missing or of another size.
    """
    dtype = np.dtype(dtype)
    size = path.stat().st_size if path.exists() else -1
    if size != count * dtype.itemsize:
        found = "is missing" if size < 0 else f"has {size} bytes"
        raise UserError(f"{path} {found}, expected {count * dtype.itemsize}; build it again")
    if count == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=(count,)).view(np.ndarray)
