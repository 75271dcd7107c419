from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corpora.origins import ADJACENT, OTHER, SAME, documents_of, kinds_of, some_names
from corpora.store import SentenceStore

# Documents of some units each; False for a unit that was dropped before it reached the store.
documents = st.lists(st.lists(st.booleans(), max_size=6), min_size=1, max_size=8).filter(
    lambda d: any(map(any, d))
)


def store_of(made_store: Callable[..., SimpleNamespace], docs: list[list[bool]]) -> SentenceStore:
    return cast(SentenceStore, made_store([[3 if there else None for there in doc] for doc in docs]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(docs=documents)
def test_kinds_are_what_document_and_position_say_of_every_pair(
    made_store: Callable[..., SimpleNamespace], docs: list[list[bool]]
) -> None:
    store = store_of(made_store, docs)
    where = [(d, place) for d, doc in enumerate(docs) for place, there in enumerate(doc) if there]
    units = np.arange(len(where))
    assert documents_of(store, units).tolist() == [document for document, _ in where]
    query, option = np.repeat(units, len(units)), np.tile(units, len(units))
    expected = [
        OTHER if a[0] != b[0] else ADJACENT if abs(a[1] - b[1]) == 1 else SAME for a in where for b in where
    ]
    assert kinds_of(store, query, option).tolist() == expected


def test_a_unit_behind_a_dropped_one_is_no_neighbour(made_store: Callable[..., SimpleNamespace]) -> None:
    store = store_of(made_store, [[True, False, True, True]])
    assert kinds_of(store, np.array([0, 1]), np.array([1, 2])).tolist() == [SAME, ADJACENT]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, "0.txt"),
        (4, "0.txt, 1.txt, 2.txt, 3.txt"),
        (100, "0.txt, 1.txt, 2.txt ... and 97 more"),
        (2003, "0.txt, 1.txt, 2.txt ... and 2,000 more"),
    ],
)
def test_of_many_names_the_first_are_said_and_the_rest_counted(count: int, expected: str) -> None:
    assert some_names([f"{number}.txt" for number in range(count)]) == expected
