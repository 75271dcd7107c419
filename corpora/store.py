"""The sentence store: every unit tokenised once, memory-mapped, with its text beside it.

On disk a store is a folder of flat little-endian arrays and a manifest:

    tokens.bin        uint16 or uint32 [tokens]   ids of all units, end to end
    unit_offsets.bin  int64 [U + 1]               where each unit starts in tokens.bin
    doc_offsets.bin   int64 [D + 1]               which units each document has
    position.bin      int32 [U]                   a unit's index in its document before any was dropped
    n_chars.bin       int32 [U]                   length of a unit's text in characters
    text.bin          zstd blocks of UTF-8, each the texts of some units end to end
    text_offsets.bin  int64 [blocks + 1]          where each block starts in text.bin
    text_units.bin    int64 [blocks + 1]          which units each block has

U counts units and D documents. The last three files are absent where the text is not kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from corpora.common.errors import UserError
from corpora.common.files import read_manifest
from corpora.tokenizer import Tokenizer

TEXT_BLOCK = 32_768  # characters after which a text block is closed
TEXT_LEVEL = 3  # zstd's default: near its best ratio on text at hundreds of MB/s

# Each starts at 0, and joining parts shifts it by where the part before ended.
OFFSETS = ("unit_offsets.bin", "doc_offsets.bin", "text_offsets.bin", "text_units.bin")
COLUMNS = ("position.bin", "n_chars.bin")
TEXT_FILES = ("text.bin", "text_offsets.bin", "text_units.bin")


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


class StoreWriter:
    """Collects documents and writes them as the arrays of a store (a whole one, or a part to be joined).

    Args:
        dtype: of the token ids.
        keep_text: whether to keep the units' text.
    """

    def __init__(self, dtype: npt.DTypeLike, keep_text: bool = True) -> None:
        self.dtype, self.keep_text = np.dtype(dtype), keep_text
        self._ids: list[npt.NDArray[Any]] = []
        self._unit_lengths: list[int] = []
        self._doc_lengths: list[int] = []
        self._position: list[int] = []
        self._n_chars: list[int] = []
        self._blocks: list[bytes] = []
        self._block_units = [0]
        self._open: list[str] = []
        self._open_chars = 0

    def add(
        self, texts: Sequence[str], ids: Sequence[npt.NDArray[Any]], positions: Sequence[int] | None = None
    ) -> None:
        """Add one document.

        Args:
            texts: its units.
            ids: token ids of each unit.
            positions: each unit's index in the document; 0, 1, 2, ... where not given.
        """
        self._doc_lengths.append(len(texts))
        self._position += range(len(texts)) if positions is None else positions
        for text, unit_ids in zip(texts, ids, strict=True):
            self._ids.append(unit_ids)
            self._unit_lengths.append(len(unit_ids))
            self._n_chars.append(len(text))
            if self.keep_text:
                self._open.append(text)
                self._open_chars += len(text)
                if self._open_chars >= TEXT_BLOCK:
                    self._close_block()

    def _close_block(self) -> None:
        if self._open:
            data = "".join(self._open).encode("utf-8")
            self._blocks.append(zstandard.ZstdCompressor(level=TEXT_LEVEL).compress(data))
            self._block_units.append(self._block_units[-1] + len(self._open))
            self._open, self._open_chars = [], 0

    def write(self, folder: Path) -> dict[str, int]:
        """Write the arrays into an existing folder, without a manifest.

        Returns:
            Counts of documents, units, tokens, characters and, with text, text blocks.

        Raises:
            ValueError: an id does not fit `dtype`.
        """
        self._close_block()
        tokens = np.concatenate(self._ids) if self._ids else np.empty(0, self.dtype)
        if len(tokens) and int(tokens.max()) > np.iinfo(self.dtype).max:
            raise ValueError(f"id {tokens.max()} does not fit {self.dtype.name}")
        tokens.astype(self.dtype, copy=False).tofile(folder / "tokens.bin")
        _offsets(self._unit_lengths).tofile(folder / "unit_offsets.bin")
        _offsets(self._doc_lengths).tofile(folder / "doc_offsets.bin")
        np.asarray(self._position, np.int32).tofile(folder / "position.bin")
        np.asarray(self._n_chars, np.int32).tofile(folder / "n_chars.bin")
        if self.keep_text:
            (folder / "text.bin").write_bytes(b"".join(self._blocks))
            _offsets([len(block) for block in self._blocks]).tofile(folder / "text_offsets.bin")
            np.asarray(self._block_units, np.int64).tofile(folder / "text_units.bin")
        return {
            "documents": len(self._doc_lengths),
            "units": len(self._unit_lengths),
            "tokens": len(tokens),
            "characters": sum(self._n_chars),
            "text_blocks": len(self._blocks),
        }


def _offsets(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def join_parts(parts: Sequence[Path], folder: Path, keep_text: bool) -> None:
    """Put the arrays of several parts end to end, in order, without reading a part twice.

    Args:
        parts: folders written by `StoreWriter.write`.
        folder: existing folder that receives the joined arrays.
        keep_text: whether the parts hold text.
    """
    plain = ["tokens.bin", *COLUMNS, *(["text.bin"] if keep_text else [])]
    for name in plain:
        with open(folder / name, "wb") as out:
            for part in parts:
                with open(part / name, "rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)
    for name in OFFSETS:
        if name in TEXT_FILES and not keep_text:
            continue
        base = 0
        with open(folder / name, "wb") as out:
            np.zeros(1, np.int64).tofile(out)
            for part in parts:
                offsets = np.fromfile(part / name, np.int64)
                (offsets[1:] + base).tofile(out)
                base += int(offsets[-1])


def store_manifest(
    tokenizer: Tokenizer, counts: dict[str, int], keep_text: bool, **origin: Any
) -> dict[str, Any]:
    """The fields of a store's manifest.

    Args:
        tokenizer: whose ids it holds.
        counts: as `StoreWriter.write` gives them.
        keep_text: whether the text is kept.
        origin: unit, language, sources, dropped records, versions.
    """
    return {
        "tokenizer": {
            "name": Path(tokenizer.name).name,
            "fingerprint": tokenizer.fingerprint,
            "size": tokenizer.size,
        },
        "dtype": np.dtype(tokenizer.dtype).name,
        "keep_text": keep_text,
        **counts,
        **origin,
    }
