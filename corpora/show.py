"""A build for people: some examples of each format as text, and how many there are of each label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from corpora.common.errors import UserError
from corpora.common.files import read_manifest
from corpora.common.rng import generator
from corpora.formats import ENCODER_TOKENS, FORMATS, MASK
from corpora.store import SentenceStore
from corpora.task_corpus import TaskCorpus
from corpora.tokenizer import Tokenizer

PROMPT_LEN = 100  # for which examples are cut


def describe(folder: str | Path, n: int = 5, seed: int = 0) -> dict[str, Any]:
    """Describe a build as values.

    Args:
        folder: the build's folder.
        n: examples of each format.
        seed: which examples.

    Returns:
        `store`: documents, units, tokens, sources and what was dropped; `formats`: for each format its label counts of
        both splits, and `n` training examples as the backbone reads them, `<X>` marking the mask.

    Raises:
        UserError: the folder holds no build, or one that is not finished.
    """
    folder = Path(folder)
    read_manifest(folder, "build")
    if not (folder / "store").exists():
        raise UserError(f"{folder} is not finished; run the same ppt corpora build command again")
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
            name: _describe_format(TaskCorpus.open(folder, name), name, tokenizer, n, seed)
            for name in FORMATS
            if (folder / name).exists()
        },
    }


def _describe_format(
    corpus: TaskCorpus, name: str, tokenizer: Tokenizer, n: int, seed: int
) -> dict[str, Any]:
    labels = {}
    for split in ("train", "validation"):
        counts = np.bincount(corpus.label(corpus.rows(split)), minlength=len(corpus.label_words))
        labels[split] = dict(zip(corpus.label_words, counts.tolist(), strict=True))
    rows = corpus.rows("train")
    chosen = generator(seed, "show", name).choice(rows, size=min(n, len(rows)), replace=False)
    examples = []
    for row in np.sort(chosen).tolist():
        example = corpus.render(row, tokenizer, PROMPT_LEN)
        examples.append(
            {
                "row": row,
                "label": corpus.label_words[example.label],
                "tokens": len(example.input_ids),
                "text": _readable(example.input_ids, tokenizer),
            }
        )
    return {"labels": labels, "examples": examples}


def as_text(build: dict[str, Any]) -> str:
    """What `describe` gives, as lines for people."""
    store = build["store"]
    lines = [
        f"store: {store['documents']:,} documents, {store['units']:,} {store['unit']}, {store['tokens']:,} tokens"
    ]
    lines += [f"  from {name}" for name in store["sources"]]
    lines += [f"  dropped: {count} {reason}" for reason, count in sorted(store["dropped"].items())]
    for name, about in build["formats"].items():
        lines += ["", name]
        for split, counts in about["labels"].items():
            words = ", ".join(f"{word} {count}" for word, count in counts.items())
            lines.append(f"  {split}: {sum(counts.values()):,} examples ({words})")
        budget = ENCODER_TOKENS[name] - PROMPT_LEN
        for number, example in enumerate(about["examples"], 1):
            of = f"{example['tokens']} of {budget} tokens"
            lines.append(f"  {number}. {example['label']}  (row {example['row']}, {of})")
            lines.append(f"     {example['text']}")
    return "\n".join(lines) + "\n"


def _readable(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    """Ids as text with the mask marked."""
    mask = tokenizer.sentinel(0)
    (at,) = np.flatnonzero(ids == mask)
    parts = [tokenizer.decode(ids[:at].tolist()), MASK, tokenizer.decode(ids[at + 1 :].tolist())]
    return " ".join(part for part in parts if part)
