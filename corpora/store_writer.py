"""Writing a sentence store: the units of some documents as arrays, in parts that are joined end to end."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import zstandard

from corpora.tokenizer import Tokenizer

TEXT_BLOCK = 32_768  # characters after which a text block is closed
TEXT_LEVEL = 1  # of zstd: 0.428 of the text in three quarters of the time of level 3, which gives 0.412

# Each starts at 0, and joining parts shifts it by where the part before ended.
OFFSETS = ("unit_offsets", "doc_offsets", "text_offsets", "text_units")
STORED = ("tokens", "position", "n_chars", "doc_source", "doc_line", "text", *OFFSETS)

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

    def arrays(self, dtype: npt.DTypeLike) -> dict[str, npt.NDArray[Any]]:
        """The arrays of a store, by the names of its files without `.bin`.

        Raises:
            ValueError: an id does not fit `dtype`.
        """
        dtype = np.dtype(dtype)
        if len(self.ids) and int(self.ids.max()) > np.iinfo(dtype).max:
            raise ValueError(f"id {self.ids.max()} does not fit {dtype.name}")
        return {
            "tokens": self.ids.astype(dtype, copy=False),
            "unit_offsets": self.starts,
            "doc_offsets": self.documents,
            "position": self.position,
            "n_chars": self.n_chars,
            "doc_source": self.source,
            "doc_line": self.line,
            **({} if self.texts is None else _packed(self.texts, self.n_chars)),
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Units:
        """Read what `arrays` gave."""
        return Units(
            ids=arrays["tokens"],
            starts=arrays["unit_offsets"],
            documents=arrays["doc_offsets"],
            position=arrays["position"],
            n_chars=arrays["n_chars"],
            texts=_unpacked(arrays) if "text" in arrays else None,
            source=arrays["doc_source"],
            line=arrays["doc_line"],
        )


def counts_of(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, int]:
    """What arrays of a store hold: documents, units, tokens, characters and, with text, text blocks."""
    return {
        "documents": len(arrays["doc_offsets"]) - 1,
        "units": len(arrays["unit_offsets"]) - 1,
        "tokens": len(arrays["tokens"]),
        "characters": int(arrays["n_chars"].sum(dtype=np.int64)),
        "text_blocks": len(arrays["text_offsets"]) - 1 if "text" in arrays else 0,
    }


def offsets(lengths: npt.ArrayLike) -> Int64:
    """Where each of some pieces starts, and where the last ends: int64 [N + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _packed(texts: list[str], n_chars: npt.NDArray[np.int32]) -> dict[str, npt.NDArray[Any]]:
    """Texts in compressed blocks."""
    compressor = zstandard.ZstdCompressor(level=TEXT_LEVEL)
    ends = np.cumsum(n_chars, dtype=np.int64)
    units, blocks = [0], list[bytes]()
    while (first := units[-1]) < len(texts):
        before = int(ends[first - 1]) if first else 0
        last = min(int(np.searchsorted(ends, before + TEXT_BLOCK)) + 1, len(texts))
        blocks.append(compressor.compress("".join(texts[first:last]).encode("utf-8")))
        units.append(last)
    return {
        "text": np.frombuffer(b"".join(blocks), np.uint8),
        "text_offsets": offsets([len(block) for block in blocks]),
        "text_units": np.asarray(units, np.int64),
    }


def _unpacked(arrays: Mapping[str, npt.NDArray[Any]]) -> list[str]:
    places, units = arrays["text_offsets"], arrays["text_units"]
    unpack = zstandard.ZstdDecompressor()
    texts: list[str] = []
    for block in range(len(units) - 1):
        data = arrays["text"][places[block] : places[block + 1]].tobytes()
        text = unpack.decompress(data).decode("utf-8")
        starts = offsets(arrays["n_chars"][units[block] : units[block + 1]])
        texts += [text[start:end] for start, end in itertools.pairwise(starts.tolist())]
    return texts


def join_arrays(
    parts: Iterable[Mapping[str, npt.NDArray[Any]]], folder: Path, lines_before: Sequence[int]
) -> None:
    """Write the arrays of several parts end to end as the files of a store.

    Args:
        parts: as `Units.arrays` gives them; each is looked at once, in order.
        folder: existing folder that receives the files.
        lines_before: lines of a part's source that stand before it.
    """
    with contextlib.ExitStack() as files:
        opened: dict[str, BinaryIO] = {}
        bases: dict[str, int] = {}
        for part, before in zip(parts, lines_before, strict=True):
            for name in STORED:
                if name not in part:
                    continue
                values = part[name]
                if name not in opened:
                    opened[name] = files.enter_context(open(folder / f"{name}.bin", "wb"))
                    if name in OFFSETS:
                        bases[name] = 0
                        opened[name].write(np.zeros(1, np.int64).data)
                if name in OFFSETS:
                    base, bases[name] = bases[name], bases[name] + int(values[-1])
                    values = values[1:] + base
                elif name == "doc_line":
                    values = values + before
                opened[name].write(np.ascontiguousarray(values).data)


def store_manifest(
    tokenizer: Tokenizer, counts: dict[str, int], keep_text: bool, **origin: Any
) -> dict[str, Any]:
    """The fields of a store's manifest.

    Args:
        tokenizer: whose ids it holds.
        counts: as `counts_of` gives them.
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
