"""Writing a sentence store: the units of some documents as arrays, in parts that are joined end to end."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from corpora.tokenizer import Tokenizer

TEXT_BLOCK = 32_768  # characters after which a text block is closed
TEXT_LEVEL = 1  # of zstd: 0.428 of the text in three quarters of the time of level 3, which gives 0.412

# Each starts at 0, and joining parts shifts it by where the part before ended.
OFFSETS = ("unit_offsets.bin", "doc_offsets.bin", "text_offsets.bin", "text_units.bin")
COLUMNS = ("position.bin", "n_chars.bin", "doc_source.bin")
TEXT_FILES = ("text.bin", "text_offsets.bin", "text_units.bin")

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Units:
    """U units of D documents.

    Attributes:
        ids: [L] token ids of all units, end to end.
        starts: int64 [U + 1], where each unit's ids start.
        documents: int64 [D + 1], where each document's units start.
        position: int32 [U], a unit's index in its document before any was dropped.
        n_chars: int32 [U], characters of each unit's text.
        texts: [U] or None where the text is not kept.
        source: int32 [D], number of each document's source.
        line: int64 [D], where it starts there.
    """

    ids: npt.NDArray[Any]
    starts: Int64
    documents: Int64
    position: npt.NDArray[np.int32]
    n_chars: npt.NDArray[np.int32]
    texts: list[str] | None
    source: npt.NDArray[np.int32]
    line: Int64

    @staticmethod
    def of(
        texts: Sequence[Sequence[str]],
        tokenizer: Tokenizer,
        source: int = 0,
        lines: Sequence[int] | None = None,
    ) -> Units:
        """Tokenise the units of some documents.

        Args:
            texts: the units of each document.
            tokenizer: what gives them ids.
            source: number of the documents' source.
            lines: where each document starts; 1, 2, 3, ... where not given.
        """
        flat = list(itertools.chain.from_iterable(texts))
        ids, starts = tokenizer.encode_flat(flat)
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        documents = offsets(sizes)
        return Units(
            ids=ids,
            starts=starts,
            documents=documents,
            position=(np.arange(len(flat)) - np.repeat(documents[:-1], sizes)).astype(np.int32),
            n_chars=np.fromiter(map(len, flat), np.int32, len(flat)),
            texts=flat,
            source=np.full(len(texts), source, np.int32),
            line=np.arange(1, len(texts) + 1) if lines is None else np.asarray(lines, np.int64),
        )

    def select(self, units: npt.NDArray[np.bool_], documents: npt.NDArray[np.bool_]) -> Units:
        """Those of the units [U] and documents [D] that are marked; a unit's document has to be."""
        if units.all() and documents.all():
            return self
        lengths = np.diff(self.starts)
        kept_before = offsets(units)  # [U + 1]
        sizes = np.diff(kept_before[self.documents])[documents]
        return Units(
            ids=self.ids[np.repeat(units, lengths)],
            starts=offsets(lengths[units]),
            documents=offsets(sizes),
            position=self.position[units],
            n_chars=self.n_chars[units],
            texts=None if self.texts is None else list(itertools.compress(self.texts, units.tolist())),
            source=self.source[documents],
            line=self.line[documents],
        )

    def without_empty(self) -> Units:
        """Those units that have ids, and those documents that have such units."""
        filled = np.diff(self.starts) > 0
        return self.select(filled, np.diff(offsets(filled)[self.documents]) > 0)

    def of_documents(self, kept: npt.NDArray[np.bool_]) -> Units:
        """Those documents [D] that are marked, with all their units."""
        return self.select(np.repeat(kept, np.diff(self.documents)), kept)

    def without_text(self) -> Units:
        """The same without the units' texts."""
        return dataclasses.replace(self, texts=None)

    def write(self, folder: Path, dtype: npt.DTypeLike) -> dict[str, int]:
        """Write the arrays of a store into an existing folder, without a manifest.

        Returns:
            Counts of documents, units, tokens, characters and text blocks.

        Raises:
            ValueError: an id does not fit `dtype`.
        """
        dtype = np.dtype(dtype)
        if len(self.ids) and int(self.ids.max()) > np.iinfo(dtype).max:
            raise ValueError(f"id {self.ids.max()} does not fit {dtype.name}")
        self.ids.astype(dtype, copy=False).tofile(folder / "tokens.bin")
        self.starts.tofile(folder / "unit_offsets.bin")
        self.documents.tofile(folder / "doc_offsets.bin")
        self.position.tofile(folder / "position.bin")
        self.n_chars.tofile(folder / "n_chars.bin")
        self.source.tofile(folder / "doc_source.bin")
        self.line.tofile(folder / "doc_line.bin")
        return {
            "documents": len(self.documents) - 1,
            "units": len(self.starts) - 1,
            "tokens": len(self.ids),
            "characters": int(self.n_chars.sum(dtype=np.int64)),
            "text_blocks": 0 if self.texts is None else _write_text(folder, self.texts, self.n_chars),
        }

    @staticmethod
    def read(folder: Path, dtype: npt.DTypeLike, keep_text: bool) -> Units:
        """Read what `write` wrote."""
        return Units(
            ids=np.fromfile(folder / "tokens.bin", dtype),
            starts=np.fromfile(folder / "unit_offsets.bin", np.int64),
            documents=np.fromfile(folder / "doc_offsets.bin", np.int64),
            position=np.fromfile(folder / "position.bin", np.int32),
            n_chars=np.fromfile(folder / "n_chars.bin", np.int32),
            texts=_read_text(folder) if keep_text else None,
            source=np.fromfile(folder / "doc_source.bin", np.int32),
            line=np.fromfile(folder / "doc_line.bin", np.int64),
        )


def offsets(lengths: npt.ArrayLike) -> Int64:
    """Where each of some pieces starts, and where the last ends: int64 [N + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _write_text(folder: Path, texts: list[str], n_chars: npt.NDArray[np.int32]) -> int:
    """Write texts in compressed blocks; gives their number."""
    compressor = zstandard.ZstdCompressor(level=TEXT_LEVEL)
    ends = np.cumsum(n_chars, dtype=np.int64)
    units, sizes = [0], []
    with open(folder / "text.bin", "wb") as file:
        while (first := units[-1]) < len(texts):
            before = int(ends[first - 1]) if first else 0
            last = min(int(np.searchsorted(ends, before + TEXT_BLOCK)) + 1, len(texts))
            packed = compressor.compress("".join(texts[first:last]).encode("utf-8"))
            file.write(packed)
            units.append(last)
            sizes.append(len(packed))
    offsets(sizes).tofile(folder / "text_offsets.bin")
    np.asarray(units, np.int64).tofile(folder / "text_units.bin")
    return len(sizes)


def _read_text(folder: Path) -> list[str]:
    places = np.fromfile(folder / "text_offsets.bin", np.int64)
    units = np.fromfile(folder / "text_units.bin", np.int64)
    n_chars = np.fromfile(folder / "n_chars.bin", np.int32)
    data = np.fromfile(folder / "text.bin", np.uint8)
    unpack = zstandard.ZstdDecompressor()
    texts: list[str] = []
    for block in range(len(units) - 1):
        text = unpack.decompress(data[places[block] : places[block + 1]].tobytes()).decode("utf-8")
        starts = offsets(n_chars[units[block] : units[block + 1]])
        texts += [text[start:end] for start, end in itertools.pairwise(starts.tolist())]
    return texts


def join_parts(parts: Sequence[Path], folder: Path, keep_text: bool, lines_before: Sequence[int]) -> None:
    """Put the arrays of several parts end to end, in order, without reading a part twice.

    Args:
        parts: folders written by `Units.write`.
        folder: existing folder that receives the joined arrays.
        keep_text: whether the parts hold text.
        lines_before: lines of a part's source that stand before it.
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
                places = np.fromfile(part / name, np.int64)
                (places[1:] + base).tofile(out)
                base += int(places[-1])
    with open(folder / "doc_line.bin", "wb") as out:
        for part, before in zip(parts, lines_before, strict=True):
            (np.fromfile(part / "doc_line.bin", np.int64) + before).tofile(out)


def store_manifest(
    tokenizer: Tokenizer, counts: dict[str, int], keep_text: bool, **origin: Any
) -> dict[str, Any]:
    """The fields of a store's manifest.

    Args:
        tokenizer: whose ids it holds.
        counts: as `Units.write` gives them.
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
