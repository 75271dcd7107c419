"""Where a backbone's training examples come from: windows of text, and cloze records rendered as the tasks are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corpora.common.errors import UserError, at
from corpora.common.files import hash_file
from corpora.common.progress import say
from corpora.common.records import json_lines
from corpora.formats import Pattern
from corpora.tokenizer import LETTERS, Tokenizer
from pretrain.span_corruption import IntArray, corrupt_spans, longest_text, split_prefix

SHORTEST_TEXT = 8  # tokens; shorter ends of documents teach nothing
HELD_OUT_EVERY = 100  # one document in so many is kept for evaluation
CLOZE_KEYS = {"pattern", "fields", "options", "target"}

Ids = tuple[IntArray, IntArray]  # encoder ids, target ids


@dataclass
class Text:
    """Tokenised documents: ids end to end and where each document starts."""

    ids: NDArray[Any]
    doc_offsets: NDArray[np.int64]
    fingerprint: Any = None  # JSON of what it was made from


def windows(doc_offsets: NDArray[np.int64], docs: NDArray[np.int64], longest: int) -> NDArray[np.int64]:
    """Cut documents into windows of nearly equal length.

    Args:
        doc_offsets: [documents + 1] token offsets.
        docs: which documents.
        longest: tokens that a window has at most.

    Returns:
        [windows, 2] first token and length, those under `SHORTEST_TEXT` tokens left out.
    """
    starts, lengths = doc_offsets[docs], doc_offsets[docs + 1] - doc_offsets[docs]
    parts = -(-lengths // longest)
    owner = np.repeat(np.arange(len(docs)), parts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(parts) - parts, parts)
    low = number * lengths[owner] // np.maximum(parts[owner], 1)
    high = (number + 1) * lengths[owner] // np.maximum(parts[owner], 1)
    table = np.stack([starts[owner] + low, high - low], axis=1)
    kept: NDArray[np.int64] = table[table[:, 1] >= SHORTEST_TEXT]
    return kept


class TextSource:
    """Examples of one text objective; each epoch sees every window once, in an order of its own."""

    def __init__(self, text: Text, docs: NDArray[np.int64], longest: int, make: Callable[..., Ids]) -> None:
        self.text, self.make = text, make
        self.windows = windows(text.doc_offsets, docs, longest)
        self.shuffled = True

    def __len__(self) -> int:
        return len(self.windows)

    def example(self, number: int, rng: np.random.Generator) -> Ids:
        """Example `number`; `rng` draws its spans or its cut."""
        start, length = self.windows[number]
        return self.make(np.asarray(self.text.ids[start : start + length]).astype(np.int32), rng)

    def cost(self, number: int) -> int:
        """Tokens of text that the example holds."""
        return int(self.windows[number, 1])


class ClozeSource:
    """Rendered cloze records; in file order unless shuffled, so that a file can be a curriculum."""

    def __init__(self, inputs: list[IntArray], targets: list[IntArray], shuffled: bool) -> None:
        self.inputs, self.input_offsets = _end_to_end(inputs)
        self.targets, self.target_offsets = _end_to_end(targets)
        self.shuffled = shuffled

    def __len__(self) -> int:
        return len(self.input_offsets) - 1

    def example(self, number: int, rng: np.random.Generator) -> Ids:
        """Example `number`; nothing about it is random."""
        del rng
        span = slice(self.input_offsets[number], self.input_offsets[number + 1])
        target = slice(self.target_offsets[number], self.target_offsets[number + 1])
        return self.inputs[span].astype(np.int64), self.targets[target].astype(np.int64)

    def cost(self, number: int) -> int:
        """Encoder tokens of the example."""
        return int(self.input_offsets[number + 1] - self.input_offsets[number])


def _end_to_end(arrays: list[IntArray]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    lengths = np.fromiter((len(a) for a in arrays), dtype=np.int64, count=len(arrays))
    flat = np.concatenate(arrays).astype(np.int32) if arrays else np.zeros(0, np.int32)
    return flat, np.concatenate([[0], np.cumsum(lengths)])


def read_text(sources: Sequence[str], tokenizer: Tokenizer) -> Text:
    """Tokenise documents of raw sources into memory."""
    from corpora.documents import Counts, read_documents

    pieces: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    dtype = np.dtype(tokenizer.dtype)
    counts = Counts()
    pending: list[str] = []

    def flush() -> None:
        found = tokenizer.encode(pending)
        lengths.extend(len(ids) for ids in found)
        pieces.append(np.concatenate(found).astype(dtype) if found else np.zeros(0, dtype))
        pending.clear()

    for document in read_documents(list(sources), counts=counts):
        pending.append(" ".join(document.text.split("\n")))
        if len(pending) == 1024:
            flush()
    flush()
    for line in counts.lines():
        say(line)
    ids = np.concatenate(pieces)
    offsets = np.concatenate([[0], np.cumsum(np.array(lengths, dtype=np.int64))])
    if not len(ids):
        raise UserError(f"{', '.join(sources)}: no text found")
    return Text(
        ids, offsets, {"documents": len(lengths), "tokens": len(ids), "sources": source_hashes(sources)}
    )


def source_hashes(sources: Sequence[str]) -> list[Any]:
    """What identifies each source: its name and, for files, the hash of its bytes."""
    from corpora.documents import find_sources

    return [source.identity() for source in find_sources(list(sources))]


def open_store(folder: str, tokenizer: Tokenizer) -> Text:
    """The tokens of a sentence store, mapped; its units follow each other in their documents.

    Raises:
        UserError: the store was tokenised with another vocabulary.
    """
    from corpora.common.files import manifest_hash
    from corpora.store import SentenceStore

    store = SentenceStore.open(folder)
    theirs = store.manifest["tokenizer"]["fingerprint"]
    if theirs != tokenizer.fingerprint:
        raise UserError(
            f"{folder} was tokenised with vocabulary {theirs[:12]}, the run uses {tokenizer.fingerprint[:12]}; "
            "build the store with the same tokenizer"
        )
    offsets = np.asarray(store.unit_offsets)[np.asarray(store.doc_offsets)]
    return Text(store.tokens, offsets, {"store": manifest_hash(folder)})


def _word(target: str, lettered: bool, tokenizer: Tokenizer) -> list[int]:
    if lettered and target in LETTERS:
        return [tokenizer.letters[LETTERS.index(target)]]
    return list(tokenizer.word_ids(target))


def _checked(record: dict[str, Any], place: str) -> dict[str, Any]:
    if not {"pattern", "target"} <= set(record) <= CLOZE_KEYS:
        raise UserError(
            f"{place}: expected a record with pattern, target and, where used, fields and options"
        )
    if not isinstance(record["pattern"], str) or not isinstance(record["target"], str):
        raise UserError(f"{place}: pattern and target must be text")
    texts = [*record.setdefault("fields", {}).values(), *record.setdefault("options", [])]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{place}: fields and options must be text")
    return record


def read_cloze(paths: Sequence[str], tokenizer: Tokenizer, max_tokens: int, shuffled: bool) -> ClozeSource:
    """Render cloze records with the ids that the downstream tasks use.

    Args:
        paths: JSONL files, read in order; records {"pattern", "fields", "options", "target"}.
        tokenizer: the vocabulary.
        max_tokens: encoder tokens; longer records are cut as `Pattern.render` cuts.
        shuffled: whether each epoch has an order of its own.

    Raises:
        UserError: a missing file or a bad record, with file and line.
    """
    inputs: list[IntArray] = []
    targets: list[IntArray] = []
    patterns: dict[str, Pattern] = {}
    words: dict[tuple[str, bool], list[int]] = {}
    first, closing = tokenizer.sentinel(0), tokenizer.sentinel(1)
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist; expected a JSONL file of cloze records")
        with open(path, "rb") as file:
            records = [(n, _checked(record, at(path, n))) for n, record in json_lines(path, file)]
        texts = sorted({t for _, r in records for t in (*r["fields"].values(), *r["options"])})
        ids_of = dict(zip(texts, tokenizer.encode(texts), strict=True))
        for n, record in records:
            try:
                pattern = patterns.get(record["pattern"])
                if pattern is None:
                    pattern = patterns[record["pattern"]] = Pattern.parse(record["pattern"])
                key = (record["target"], bool(record["options"]))
                if key not in words:
                    words[key] = _word(*key, tokenizer)
                fields = {name: ids_of[text] for name, text in record["fields"].items()}
                options = [ids_of[text] for text in record["options"]]
                rendered = pattern.render(tokenizer, fields, options, max_tokens=max_tokens)
            except UserError as error:
                raise UserError(f"{at(path, n)}: {error}") from error
            inputs.append(rendered.astype(np.int64))
            targets.append(np.array([first, *words[key], closing]))
    if not inputs:
        raise UserError(f"{', '.join(paths)}: no cloze records found")
    return ClozeSource(inputs, targets, shuffled)


def text_sources(
    text: Text,
    docs: NDArray[np.int64],
    tokenizer: Tokenizer,
    max_tokens: int,
    density: float,
    mean_span: float,
) -> dict[str, TextSource]:
    """Span corruption and prefix LM over the given documents."""

    def span(ids: NDArray[np.int32], rng: np.random.Generator) -> Ids:
        return corrupt_spans(ids, rng, tokenizer.sentinel, density, mean_span)

    longest = longest_text(max_tokens, density, mean_span)
    return {
        "span": TextSource(text, docs, longest, span),
        "prefix": TextSource(text, docs, max_tokens, split_prefix),
    }


def split_documents(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(training documents, held-out documents): every hundredth is held out."""
    docs = np.arange(count)
    held = docs % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return docs[~held], docs[held]


def file_hashes(paths: Sequence[str]) -> list[str]:
    """Hashes of files' bytes, in order."""
    return [hash_file(path) for path in paths]
