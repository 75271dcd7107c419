"""A build for people: some examples of each format as text, and how many there are of each label."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from corpora.common.errors import UserError
from corpora.common.files import read_manifest
from corpora.common.rng import generator
from corpora.formats import ENCODER_TOKENS, FORMATS, MASK
from corpora.store import SentenceStore
from corpora.task_corpus import TaskCorpus
from corpora.tokenizer import Tokenizer

PROMPT_LEN = 100  # for which examples are cut


def show(folder: str | Path, n: int = 5, seed: int = 0) -> str:
    """Describe a build.

    Args:
        folder: the build's folder.
        n: examples of each format.
        seed: which examples.

    Returns:
        Lines of text: the store, then for each format its label counts and `n` training examples as the backbone
        reads them, `<X>` marking the mask.

    Raises:
        UserError: the folder holds no build.
    """
    folder = Path(folder)
    read_manifest(folder, "build")
    if not (folder / "store").exists():
        raise UserError(f"{folder} is not finished; run the same ppt corpora build command again")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    blocks = [_describe_store(SentenceStore.open(folder / "store"))]
    for name in FORMATS:
        if (folder / name).exists():
            blocks.append(_describe_format(TaskCorpus.open(folder, name), name, tokenizer, n, seed))
    return "\n\n".join(blocks) + "\n"


def _describe_store(store: SentenceStore) -> str:
    manifest = store.manifest
    lines = [
        f"store: {store.n_docs:,} documents, {store.n_units:,} {manifest['unit']}, {manifest['tokens']:,} tokens"
    ]
    lines += [f"  from {source['name']}" for source in manifest["sources"]]
    lines += [f"  dropped: {count} {reason}" for reason, count in sorted(manifest["dropped"].items())]
    return "\n".join(lines)


def _describe_format(corpus: TaskCorpus, name: str, tokenizer: Tokenizer, n: int, seed: int) -> str:
    lines = [name]
    for split in ("train", "validation"):
        rows = corpus.rows(split)
        counts = np.bincount(corpus.label(rows), minlength=len(corpus.label_words))
        words = ", ".join(f"{word} {count}" for word, count in zip(corpus.label_words, counts, strict=True))
        lines.append(f"  {split}: {len(rows):,} examples ({words})")
    rows = corpus.rows("train")
    chosen = generator(seed, "show", name).choice(rows, size=min(n, len(rows)), replace=False)
    for number, row in enumerate(np.sort(chosen).tolist(), 1):
        example = corpus.render(row, tokenizer, PROMPT_LEN)
        tokens = f"{len(example.input_ids)} of {ENCODER_TOKENS[name] - PROMPT_LEN} tokens"
        lines.append(f"  {number}. {corpus.label_words[example.label]}  (row {row}, {tokens})")
        lines.append(f"     {_readable(example.input_ids, tokenizer)}")
    return "\n".join(lines)


def _readable(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    """Ids as text with the mask marked."""
    mask = tokenizer.sentinel(0)
    (at,) = np.flatnonzero(ids == mask)
    parts = [tokenizer.decode(ids[:at].tolist()), MASK, tokenizer.decode(ids[at + 1 :].tolist())]
    return " ".join(part for part in parts if part)
