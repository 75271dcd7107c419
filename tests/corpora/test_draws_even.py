"""Whether draws have the chances that method.md gives them: chi-squared on a fixed seed, and proof that it would tell."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from corpora import choices, draws
from corpora.common.rng import generator
from corpora.draws import RECIPES, draw
from corpora.view import StoreView

Maker = Callable[..., SimpleNamespace]
DOCS, UNITS = 400, 200  # of the store that is drawn from; every document has as many units
LEAST = 1e-3  # probability of what was drawn; below it a draw counts as uneven


@pytest.fixture(scope="module")
def store(made_store: Maker) -> SimpleNamespace:
    return made_store([[9] * UNITS] * DOCS)


def even(values: NDArray[np.integer], n: int) -> float:
    """Probability of counts as uneven as those of `values` in 0 .. n - 1, were all equally likely."""
    return float(stats.chisquare(np.bincount(values, minlength=n)).pvalue)


def chances(store: SimpleNamespace, format: str) -> dict[str, float]:
    """Draw a format from equal documents; by what was chosen, how probable such choices are if they are even."""
    drawn = draw(format, store, 0, validation=0.0)
    counts = np.diff(drawn.offsets)
    example = np.repeat(np.arange(len(drawn)), counts)
    query, label = drawn.query[example], drawn.label[example]
    there, here = drawn.options // UNITS, query // UNITS
    step = drawn.options - query
    beside = (there == here) & (abs(step) == 1)
    found = {}
    if format == "sentence_pair":
        found["label"] = even(label, 3)
    if format == "unified":
        found["number of options"] = even(counts - 2, 15)
    if format != "sentence_pair":
        assert beside[drawn.offsets[:-1] + drawn.label].all()
        p = [even(drawn.label[counts == n], n) for n in np.unique(counts)]
        found["place of the right one"] = float(stats.combine_pvalues(p).pvalue)
    inside = beside & (query % UNITS > 0) & (query % UNITS < UNITS - 1)
    found["previous or next"] = even((step[inside] + 1) // 2, 2)
    # Of a unit in the middle, the others of its document but its two neighbours: as they stand, and from the unit on.
    middle = (there == here) & ~beside & (query % UNITS > 0) & (query % UNITS < UNITS - 1)
    found["unit of the same document"] = even((drawn.options % UNITS - 3 * (step > 0))[middle], UNITS - 3)
    found["unit of the same document, from the query"] = even((step % UNITS)[middle] - 2, UNITS - 3)
    other = there != here
    found["unit of the other document"] = even((drawn.options % UNITS)[other], UNITS)
    once = np.unique(
        np.stack([example, here, there])[:, other], axis=1
    )  # a document may give several options
    found["other document"] = even(once[2], DOCS)
    found["other document, from the query's"] = even((once[2] - once[1]) % DOCS - 1, DOCS - 1)
    if format == "multiple_choice":
        four = there[other].reshape(-1, 4)
        assert (np.diff(np.sort(four, axis=1), axis=1) > 0).all()
        found["other documents, from each other"] = even((four[:, 0] - four[:, 1]) % DOCS - 1, DOCS - 1)
    return found


@pytest.mark.parametrize("format", RECIPES)
def test_choices_have_the_chances_of_the_method(store: SimpleNamespace, format: str) -> None:
    found = chances(store, format)
    assert len(found) >= 6
    for what, probability in found.items():
        assert probability > LEAST, what


class Skewed:
    """A generator whose numbers lean to the low end: below a half 52.6 times of 100 instead of 50."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def random(self, shape: Any) -> NDArray[np.float64]:
        return self.rng.random(shape) ** 1.08

    def integers(self, low: int, high: int, size: Any, dtype: Any = np.int64) -> NDArray[Any]:
        if dtype is not np.int64:
            return self.rng.integers(low, high, size, dtype)
        return (low + self.random(size) * (high - low)).astype(dtype)


def skewed_stream(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(draws, "generator", lambda *names: Skewed(generator(*names)))


def often_in_order(patch: pytest.MonkeyPatch) -> None:
    """Three examples of a hundred are not shuffled."""
    real = choices._orders

    def orders(count: int, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        found = real(count, n, rng)
        found[::33] = np.arange(n)
        return found

    patch.setattr(choices, "_orders", orders)


def often_the_next_document(patch: pytest.MonkeyPatch) -> None:
    """Of a hundred examples, three have the document behind their own as the first other one."""
    real = StoreView.other_docs

    def other_docs(view: StoreView, queries: Any, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        found = real(view, queries, count, rng)
        beside = (queries.doc + 1) % DOCS
        if count:
            free = (found[1:] != beside).all(0) & (np.arange(len(queries)) % 33 == 0)
            found[0, free] = beside[free]
        return found

    patch.setattr(StoreView, "other_docs", other_docs)


def often_two_in_a_row(patch: pytest.MonkeyPatch) -> None:
    """One example of eight has two other documents that follow each other."""
    real = StoreView.other_docs

    def other_docs(view: StoreView, queries: Any, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        found = real(view, queries, count, rng)
        if count == 4:
            beside = (found[0] + 1) % DOCS
            free = (found[2:] != beside).all(0) & (beside != queries.doc) & (np.arange(len(queries)) % 8 == 0)
            found[1, free] = beside[free]
        return found

    patch.setattr(StoreView, "other_docs", other_docs)


STREAM = ("previous or next", "unit of the same document", "other document", "unit of the other document")


@pytest.mark.parametrize(
    ("format", "skew", "uneven"),
    [
        ("sentence_pair", skewed_stream, ("label", *STREAM)),
        ("multiple_choice", skewed_stream, STREAM),
        ("unified", skewed_stream, ("number of options", *STREAM)),
        ("multiple_choice", often_in_order, ("place of the right one",)),
        ("unified", often_in_order, ("place of the right one",)),
        *((name, often_the_next_document, ("other document, from the query's",)) for name in RECIPES),
        ("multiple_choice", often_two_in_a_row, ("other documents, from each other",)),
    ],
)
def test_a_skew_of_a_few_in_a_hundred_would_be_seen(
    store: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    skew: Callable[[pytest.MonkeyPatch], None],
    uneven: tuple[str, ...],
) -> None:
    skew(monkeypatch)
    found = chances(store, format)
    assert {what: found[what] for what in uneven if found[what] > LEAST} == {}
