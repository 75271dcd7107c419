"""What a reader is warned about."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.report_sections import at_chance
from finetune.report_tables import Line, Places, Stat


def places_of(**scores: list[float]) -> Places:
    """Lines of one task by name, a score a seed."""
    return {
        (Line(i, name, "normal", 0, "f", name, name), "sst2", 32): Stat(dict(enumerate(some)), {})
        for i, (name, some) in enumerate(scores.items())
    }


@pytest.mark.parametrize(
    ("scores", "warned"),
    [
        ({"ft": [0.5, 0.5], "ppt": [0.45, 0.5]}, True),
        ({"ft": [0.5, 0.7], "ppt": [0.45, 0.5]}, True),  # no further above than its own seeds differ
        ({"ft": [0.5, 0.5], "ppt": [0.64, 0.66]}, False),  # one is enough
        ({"ft": [0.9]}, False),
    ],
)
def test_a_task_on_which_nothing_is_above_guessing_is_named(
    scores: dict[str, list[float]], warned: bool
) -> None:
    rows: list[dict[str, Any]] = [{"task": "sst2", "test_chance": 0.5}]
    found = at_chance(places_of(**scores), {"sst2": 32}, rows)
    assert bool(found) == warned
    assert all("above guessing (50.0 %) on sst2" in one for one in found)


def test_rows_that_do_not_say_what_guessing_gives_are_not_judged() -> None:
    assert at_chance(places_of(ft=[0.1]), {"sst2": 32}, [{"task": "sst2"}]) == []
