"""Where the units of an example come from: their documents, and how an option stands to its query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from corpora.store import SentenceStore

Int64 = NDArray[np.int64]

# How an option stands to the query, by index (method.md: neighbours stood side by side before units were dropped).
KINDS = ("adjacent", "same document", "other document")
ADJACENT, SAME, OTHER = range(3)
NAMED_SOURCES = 3  # before "... and 97 more"


def documents_of(store: SentenceStore, units: NDArray[np.integer]) -> Int64:
    """The document of each unit, without the whole store's `doc_of_unit`: int64, shape as `units`."""
    return np.searchsorted(store.doc_offsets, units, side="right").astype(np.int64) - 1


def kinds_of(store: SentenceStore, query: NDArray[np.integer], option: NDArray[np.integer]) -> Int64:
    """How options stand to their queries.

    Args:
        store: the units.
        query: [N] the query of each option.
        option: [N] units.

    Returns:
        [N] indices into `KINDS`.
    """
    together = documents_of(store, query) == documents_of(store, option)
    distance = np.abs(store.position[query].astype(np.int64) - store.position[option])
    return np.where(together, np.where(distance == 1, ADJACENT, SAME), OTHER)


def some_names(names: Sequence[str], most: int = NAMED_SOURCES) -> str:
    """`a.txt, b.txt, c.txt ... and 97 more`; one more than `most` is named rather than counted."""
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} ... and {len(names) - most:,} more"
