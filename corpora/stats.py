"""The numbers of a build: lengths, labels, options and what was dropped, counted over its arrays in bounded memory.

Units and documents are all counted, a piece of the memory-mapped arrays at a time. Examples above `ROWS` are sampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corpora.common.errors import UserError
from corpora.common.files import read_manifest
from corpora.common.rng import generator
from corpora.formats import CHOICE_FORMATS, ENCODER_TOKENS, FORMATS, caps
from corpora.origins import KINDS, kinds_of
from corpora.show import PROMPT_LEN
from corpora.store import SentenceStore
from corpora.task_corpus import TaskCorpus

Int64 = NDArray[np.int64]

ROWS = 100_000  # examples of a format that are looked at: shares are right to 0.3 points in 95 of 100 samples
PIECE = 1 << 22  # offsets read at a time
TOP = 1 << 16  # longer units and documents count as so long, in quantiles too; the mean is exact
BARS = 40  # of a histogram, before the one for all that is longer
TAIL = 0.99  # share of the values before that last bar
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
# Fields of a store's manifest that hold other numbers; duplicates are counted among what was dropped.
NOT_COUNTS = ("tokenizer", "versions", "sources", "duplicates")


def collect(folder: str | Path) -> dict[str, Any]:
    """Count a build.

    Args:
        folder: the build's folder.

    Returns:
        Values for JSON. `store`: its size, `unit_tokens` and `document_units` as histograms, the share of unknown
        tokens. `counts`: name -> reason -> number, of all that was dropped, repaired or filtered. `formats`: see
        `_format`.

    Raises:
        UserError: the folder holds no build, or one that is not finished.
    """
    folder = Path(folder)
    read_manifest(folder, "build")
    if not (folder / "store").exists():
        raise UserError(f"{folder} is not finished; run the same ppt corpora build command again")
    store = SentenceStore.open(folder / "store")
    names = [name for name in FORMATS if (folder / name).exists()]
    return {
        "store": _store(store),
        "counts": counts_of(store.manifest),
        "formats": {name: _format(TaskCorpus.open(folder, name)) for name in names},
    }


def counts_of(manifest: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Every dictionary of counts in a store's manifest: name -> reason -> number; one inside another is flattened."""
    found = {}
    for name, value in sorted(manifest.items()):
        if isinstance(value, dict) and name not in NOT_COUNTS:
            if name == "decontamination":
                sets = value.get("sets", {})
                value = {f"rows of {one} found": len(about["found"]) for one, about in sets.items()}
            counts = dict(_flat(value))
            if counts:
                found[name] = counts
    return found


def count_title(name: str) -> str:
    """What a dictionary of counts is called before people."""
    return "records not read" if name == "dropped" else name.replace("_", " ")


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, inner in sorted(value.items()):
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{key}: ")
        elif isinstance(inner, int) and not isinstance(inner, bool):
            yield prefix + key, inner


def _store(store: SentenceStore) -> dict[str, Any]:
    manifest = store.manifest
    return {
        "documents": store.n_docs,
        "units": store.n_units,
        "unit": manifest["unit"],
        "tokens": manifest["tokens"],
        "characters": manifest["characters"],
        "unknown_tokens": manifest["unknown_tokens"],
        "language": manifest["language"],
        "tokenizer": manifest["tokenizer"],
        "sources": manifest["sources"],
        "unit_tokens": histogram(_counted(store.unit_offsets), mean_of=(manifest["tokens"], store.n_units)),
        "document_units": histogram(_counted(store.doc_offsets), mean_of=(store.n_units, store.n_docs)),
    }


def _counted(offsets: NDArray[np.int64]) -> Int64:
    """How many pieces have each length, int64 [TOP + 1], from where they start [N + 1]."""
    counts = np.zeros(TOP + 1, np.int64)
    for first in range(0, len(offsets) - 1, PIECE):
        lengths = np.diff(offsets[first : first + PIECE + 1])
        counts += np.bincount(np.minimum(lengths, TOP), minlength=TOP + 1)
    return counts


def histogram(
    counts: Int64, *, top: int | None = None, mean_of: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Summarise how often each length was met.

    Args:
        counts: [M] how often 0, 1, 2, ... were met.
        top: the longest that can be, where there is one: the bars go up to it and nothing is beyond.
        mean_of: sum and number of the values, where `counts` cuts some off.

    Returns:
        `bars`: how many in each, `width` lengths wide, the first from 0 on; `longer`: how many are beyond the last bar;
        `n`, `mean`, `max` and `quantiles` ("0.5" the median). Without values: `n` 0 and no more.
    """
    n = int(counts.sum())
    if not n:
        return {"n": 0}
    upto = np.cumsum(counts)
    at = {q: int(np.searchsorted(upto, q * n)) for q in (*QUANTILES, TAIL)}
    last = at[TAIL] if top is None else top
    width = max(1, -(-(last + 1) // BARS))
    n_bars = -(-(last + 1) // width)
    inside = np.zeros(n_bars * width, np.int64)
    kept = counts[: len(inside)]
    inside[: len(kept)] = kept
    total, number = mean_of or (int(counts @ np.arange(len(counts))), n)
    return {
        "n": n,
        "mean": round(total / number, 2),
        "max": int(np.flatnonzero(counts)[-1]),
        "quantiles": {f"{q:g}": at[q] for q in QUANTILES},
        "width": width,
        "bars": inside.reshape(n_bars, width).sum(1).tolist(),
        "longer": n - int(inside.sum()),
    }


def _format(corpus: TaskCorpus) -> dict[str, Any]:
    """Count one format.

    Returns:
        `examples` and `labels` by split (all of them, from the manifest), `dropped`, `selection` where a labeller chose;
        of the `looked_at` examples: `lengths` as rendered beside a prompt of `PROMPT_LEN` and the `budget`, `full`: how
        many take all of it; `n_options`: number -> examples; `kinds`: label, or right and wrong option -> kind -> number;
        `cut`: how many queries and options are longer than the format keeps of them (`of` how many).
    """
    manifest, store = corpus.manifest, corpus.store
    found: dict[str, Any] = {
        "examples": manifest["examples"],
        "label_words": list(corpus.label_words),
        "labels": manifest["labels"],
        "pattern": manifest["pattern"],
        "dropped": manifest["dropped"],
        "budget": ENCODER_TOKENS[corpus.format] - PROMPT_LEN,
    }
    if "selection" in manifest:
        found["selection"] = manifest["selection"]
    rows = _sample(corpus)
    lengths = corpus.lengths(rows, PROMPT_LEN)
    query, counts, options = _drawn(corpus, rows)
    labels = corpus.label(rows)
    found |= {
        "looked_at": len(rows),
        "lengths": histogram(np.bincount(lengths, minlength=1), top=found["budget"]),
        "full": int((lengths == found["budget"]).sum()),
        "cut": _cut(corpus, query, counts, options),
    }
    if corpus.format == "single_text":
        return found
    kinds = kinds_of(store, np.repeat(query, counts), options)
    if corpus.format in CHOICE_FORMATS:
        numbers, times = np.unique(counts, return_counts=True)
        found["n_options"] = {str(n): int(k) for n, k in zip(numbers.tolist(), times.tolist(), strict=True)}
        right = np.arange(len(options)) - np.repeat(np.cumsum(counts) - counts, counts) == np.repeat(
            labels, counts
        )
        groups = {"right option": right, "wrong options": ~right}
    else:
        groups = {word: labels == number for number, word in enumerate(corpus.label_words)}
    found["kinds"] = {
        name: dict(zip(KINDS, np.bincount(kinds[inside], minlength=len(KINDS)).tolist(), strict=True))
        for name, inside in groups.items()
    }
    return found


def _sample(corpus: TaskCorpus) -> Int64:
    """Rows to look at, ascending: all, or `ROWS` of them."""
    if len(corpus) <= ROWS:
        return np.arange(len(corpus))
    rng = generator(0, "stats", corpus.format)
    return np.sort(rng.choice(len(corpus), ROWS, replace=False, shuffle=False))


def _drawn(corpus: TaskCorpus, rows: Int64) -> tuple[Int64, Int64, Int64]:
    """The units of rows: queries [B], how many options each has [B], all options end to end."""
    units = [corpus.units(row) for row in rows.tolist()]
    query = np.array([query for query, _ in units], np.int64)
    counts = np.array([len(options) for _, options in units], np.int64)
    return query, counts, np.array([unit for _, options in units for unit in options], np.int64)


def _cut(corpus: TaskCorpus, query: Int64, counts: Int64, options: Int64) -> dict[str, dict[str, int]]:
    """Of queries and options: how many there are, and how many lose their end to the format's own caps."""
    limits = {int(n): caps(corpus.format, int(n)) for n in np.unique(counts)}
    limit = np.array([limits[n] for n in counts.tolist()], np.int64).reshape(-1, 2)
    found = {}
    for name, units, most in (
        ("queries", query, limit[:, 0]),
        ("options", options, np.repeat(limit[:, 1], counts)),
    ):
        if most.any():
            lengths = corpus.store.unit_offsets[units + 1] - corpus.store.unit_offsets[units]
            found[name] = {"of": len(units), "longer": int((lengths > most).sum())}
    return found
