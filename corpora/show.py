"""A build for people: examples of each format part by part, where each part comes from and why its label is what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corpora.common.errors import UserError, nearest
from corpora.common.files import read_manifest
from corpora.common.rng import generator
from corpora.formats import ENCODER_TOKENS, FORMATS, MASK, pattern, render_pretraining
from corpora.origins import KINDS, OTHER, documents_of, kinds_of
from corpora.pattern import IntArray
from corpora.store import SentenceStore
from corpora.task_corpus import SPLITS, TaskCorpus
from corpora.tokenizer import GLUE, LETTERS, Tokenizer

PROMPT_LEN = 100  # for which examples are cut


def describe(
    folder: str | Path, n: int = 5, seed: int = 0, *, format: str | None = None, label: str | None = None
) -> dict[str, Any]:
    """Describe a build as values.

    Args:
        folder: the build's folder.
        n: examples of each format.
        seed: which examples.
        format: show this format alone.
        label: show examples of this label word alone, of the formats that have it.

    Returns:
        `store`: documents, units, tokens, sources and what was dropped; `formats`: for each format its label counts of
        both splits, and `n` training examples as the backbone reads them. An example has its `text` (`<X>` marks the
        mask) and its `parts`: each a `role` (`query`, `option`, `letter`, `template` or `mask`) and `text`; of a query
        or an option also document, place, tokens, how many of them were cut, and of an option how it stands to the
        query (`kind`, and `distance` in units before any was dropped) and whether it is the right one.

    Raises:
        UserError: the folder holds no build or one that is not finished; no such format or label, naming the nearest.
    """
    folder = Path(folder)
    read_manifest(folder, "build")
    if not (folder / "store").exists():
        raise UserError(f"{folder} is not finished; run the same ppt corpora build command again")
    if format is not None and format not in FORMATS:
        raise UserError(f'no format "{format}"{nearest(format, FORMATS)}')
    names = [name for name in FORMATS if (folder / name).exists()] if format is None else [format]
    corpora = {name: TaskCorpus.open(folder, name) for name in names}
    if label is not None:
        words = [word for corpus in corpora.values() for word in corpus.label_words]
        corpora = {name: corpus for name, corpus in corpora.items() if label in corpus.label_words}
        if not corpora:
            raise UserError(f'no label "{label}" in {", ".join(names)}{nearest(label, set(words))}')
    tokenizer = Tokenizer.load(folder / "tokenizer")
    store = SentenceStore.open(folder / "store")
    manifest = store.manifest
    return {
        "store": {
            "documents": store.n_docs,
            "units": store.n_units,
            "unit": manifest["unit"],
            "tokens": manifest["tokens"],
            "sources": [source["name"] for source in manifest["sources"]],
            "dropped": manifest["dropped"],
        },
        "formats": {
            name: _describe_format(corpus, tokenizer, _chosen(corpus, n, seed, label))
            for name, corpus in corpora.items()
        },
    }


def _chosen(corpus: TaskCorpus, n: int, seed: int, label: str | None) -> list[int]:
    """Row numbers of `n` training examples, ascending."""
    rng = generator(seed, "show", corpus.format)
    if label is None:
        train = corpus.split("train")
        return sorted(train[int(at)] for at in rng.choice(len(train), min(n, len(train)), replace=False))
    rows = corpus.rows("train")
    rows = rows[corpus.label(rows) == corpus.label_words.index(label)]
    return [int(row) for row in np.sort(rng.choice(rows, size=min(n, len(rows)), replace=False))]


def _describe_format(corpus: TaskCorpus, tokenizer: Tokenizer, rows: list[int]) -> dict[str, Any]:
    labels = {split: corpus.manifest["labels"][split] for split in SPLITS}
    words = corpus.label_words
    return {
        "labels": {split: {word: counts[word] for word in words} for split, counts in labels.items()},
        "budget": ENCODER_TOKENS[corpus.format] - PROMPT_LEN,
        "examples": [describe_example(corpus, row, tokenizer) for row in rows],
    }


def describe_example(corpus: TaskCorpus, row: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """One example as `describe` gives it."""
    example = corpus.render(row, tokenizer, PROMPT_LEN)
    query, options = corpus.units(row)
    lengths = [len(corpus.store.unit_ids(unit)) for unit in (query, *options)]
    owners = _owners(corpus, tokenizer, lengths)
    cuts = np.flatnonzero(np.diff(owners, prepend=owners[0] - 1, append=owners[-1] + 1))
    about = _segments(corpus, query, options, example.label)
    parts: list[dict[str, Any]] = []
    for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        ids, owner = example.input_ids[start:stop], int(owners[start])
        if owner >= 0:
            parts += _template_parts(ids, tokenizer)
            continue
        segment = about[-1 - owner]
        whole = lengths[-1 - owner]
        text = tokenizer.decode(ids.tolist())
        parts.append({**segment, "text": text, "tokens": len(ids), "cut": whole - len(ids)})
    return {
        "row": row,
        "label": corpus.label_words[example.label],
        "tokens": len(example.input_ids),
        "text": " ".join(part["text"] for part in parts),
        "parts": parts,
    }


def _owners(corpus: TaskCorpus, tokenizer: Tokenizer, lengths: list[int]) -> IntArray:
    """Which segment each rendered token is of: -1 the query, -2 the first option, ...; the template's own are 0.

    Rendered like the example itself, with numbers in place of the segments' ids, so that cutting cannot differ.
    """
    marks = [np.full(length, -1 - number, np.int32) for number, length in enumerate(lengths)]
    rendered = render_pretraining(
        tokenizer, corpus.format, marks[0], marks[1:], 0, PROMPT_LEN, corpus.language
    ).input_ids
    return np.minimum(rendered, 0)


def _segments(corpus: TaskCorpus, query: int, options: list[int], label: int) -> list[dict[str, Any]]:
    """What is known of the query and of each option, but their texts."""
    store = corpus.store
    units = np.array([query, *options], np.int64)
    documents = documents_of(store, units).tolist()
    kinds = kinds_of(store, np.full(len(options), query), units[1:]).tolist()
    lettered = pattern(corpus.format, corpus.language).has_options
    found: list[dict[str, Any]] = []
    for number, document in enumerate(documents):
        segment = {
            "role": "option" if number else "query",
            "document": document,
            "place": store.place(document),
        }
        if number:
            segment["kind"] = KINDS[kinds[number - 1]]
            if kinds[number - 1] != OTHER:
                segment["distance"] = int(store.position[units[number]]) - int(store.position[query])
        if number and lettered:
            segment["letter"] = LETTERS[number - 1]
            segment["right"] = number - 1 == label
        found.append(segment)
    return found


def _template_parts(ids: NDArray[np.integer], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The pattern's own tokens between two segments: mask, an option's letter with its dot, glue, words."""
    mask, dot = tokenizer.sentinel(0), tokenizer.glue(".")
    glue = {tokenizer.glue(char): char for char in GLUE}
    letters = dict(zip(tokenizer.letters, LETTERS, strict=True))
    parts: list[dict[str, Any]] = []
    words: list[int] = []

    def close() -> None:
        if words:
            parts.append({"role": "template", "text": tokenizer.decode(words)})
            words.clear()

    listed = ids.tolist()
    at = 0
    while at < len(listed):
        token, following = listed[at], listed[at + 1 : at + 2]
        found: dict[str, Any] | None = None
        if token == mask:
            found = {"role": "mask", "text": MASK}
        elif token in letters and following == [dot]:
            found = {"role": "letter", "text": f"{letters[token]}."}
            at += 1
        elif token in glue:
            found = {"role": "template", "text": glue[token]}
        if found is None:
            words.append(token)
        else:
            close()
            parts.append(found)
        at += 1
    close()
    return parts
