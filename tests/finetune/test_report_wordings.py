"""Label words that a search found are told where they stand behind a result."""

from __future__ import annotations

from typing import Any

import pytest

from corpora.common.blocks import Table, markdown
from finetune.report_wordings import search_sections

SEARCH = {
    "seed": 0, "pattern": "hard", "backbone": "models/tiny", "backbone_fingerprint": "f", "n_train": 32, "n_dev": 20,
    "accuracy": 0.9375, "dev_accuracy": 0.8, "own_accuracy": 0.75, "own_dev_accuracy": 0.7,
}  # fmt: skip


def made_row(seed: int, **changes: Any) -> dict[str, Any]:
    return {
        "task": "mood", "seed": seed, "chosen_wording": "found1", "verbalizer": ["spoon", "bridge"], "word_search": SEARCH,
        **changes,
    }  # fmt: skip


@pytest.mark.parametrize(("seeds", "warned"), [([0, 1], True), ([1, 2], False)])
def test_a_search_is_told_with_its_outcome_and_warned_of_where_its_seed_is_reported(
    seeds: list[int], warned: bool
) -> None:
    rows = [made_row(seed) for seed in seeds for _ in range(2)]  # two rates
    sections, warnings = search_sections(rows)
    (line,) = next(block for block in sections[0].blocks if isinstance(block, Table)).body
    assert [entry.text for entry in line] == [
        "mood", "found1", "spoon, bridge", "tiny", "hard prompt", "0", "93.8 of 32", "80.0 of 20", "75.0, 70.0",
        ", ".join(map(str, seeds)),
    ]  # fmt: skip
    assert "stand behind its result" in markdown("", sections)
    assert bool(warnings) == warned
    assert all("mood, wording found1" in one and "seed 0, which is among" in one for one in warnings)


def test_own_words_of_several_pieces_have_no_figure() -> None:
    search = {**SEARCH, "own_accuracy": None, "own_dev_accuracy": None}
    ((section,), _) = search_sections([made_row(1, word_search=search)])
    assert "–, –" in markdown("", [section])


def test_rows_without_a_search_say_nothing() -> None:
    assert search_sections([made_row(0, word_search=None), {"task": "mood", "seed": 0}]) == ([], [])
