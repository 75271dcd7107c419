"""Whether anything was learnt: the mean over seeds is tested, against the better of two blind answers."""

from __future__ import annotations

from typing import Any

import pytest
from scipy import stats

from finetune.report_chance import at_chance, guesses, p_above
from finetune.report_stats import compare
from finetune.report_tables import Line, Places, Stat

CHANCE: list[dict[str, Any]] = [{"task": "sst2", "test_chance": 0.5}]
COLLAPSED = [0.62, 0.62, 0.62, 0.62, 0.63]  # what always saying yes gets, all but once


def places_of(**scores: list[float]) -> Places:
    """Lines of one task by name, a score a seed."""
    return {
        (Line(i, name, "normal", 0, "f", name, name), "sst2", 32): Stat(dict(enumerate(some)), {})
        for i, (name, some) in enumerate(scores.items())
    }


def warnings_of(rows: list[dict[str, Any]], **scores: list[float]) -> list[str]:
    return at_chance(places_of(**scores), {"sst2": 32}, rows)


@pytest.mark.parametrize(
    ("scores", "warned"),
    [
        ({"ft": [0.5, 0.5], "ppt": [0.45, 0.5]}, True),
        ({"ft": [0.5, 0.7], "ppt": [0.45, 0.5]}, True),
        ({"ft": [0.5, 0.5], "ppt": [0.64, 0.65, 0.66]}, False),  # one is enough
        ({"ft": [0.51, 0.66, 0.52, 0.59, 0.65]}, False),  # its deviation is large, its mean's error is not
        ({"ft": [0.9]}, False),  # one seed has no deviation: the mean alone
        ({"ft": [0.5]}, True),
        ({"ft": [1.0] * 5}, False),
    ],
)
def test_a_task_on_which_nothing_is_told_apart_from_guessing_is_named(
    scores: dict[str, list[float]], warned: bool
) -> None:
    found = warnings_of(CHANCE, **scores)
    assert bool(found) == warned
    assert all("guessing on sst2: one label at random is right on 50.0 %" in one for one in found)


def test_p_is_scipys_one_sided_t_test_and_corrected_for_the_lines() -> None:
    scores = [0.51, 0.62, 0.55, 0.57]
    p = stats.ttest_1samp(scores, 0.5, alternative="greater").pvalue
    assert p_above(scores, 0.5) == pytest.approx(p) and p < 0.05 < 3 * p
    assert warnings_of(CHANCE, ft=scores) == []
    (one,) = warnings_of(CHANCE, ft=scores, ppt=[0.4, 0.5], vanilla_pt=[0.5, 0.41])
    assert f"corrected for 3 lines: {3 * p:.3f}" in one


def test_a_model_that_always_gives_the_most_frequent_label_is_no_better_than_guessing() -> None:
    rows = [{**CHANCE[0], "test_majority": 0.62}]
    assert guesses(rows)["sst2"].share == 0.62
    (found,) = warnings_of(rows, ft=COLLAPSED)
    assert "always the most frequent label is right on 62.0 %" in found
    assert warnings_of(CHANCE, ft=COLLAPSED) == []  # rows that do not tell its share


def test_equal_labels_are_said_as_one_at_random() -> None:
    rows = [{**CHANCE[0], "test_majority": 0.5}]
    assert guesses(rows)["sst2"].how == "one label at random"


def test_the_warning_says_nothing_about_differences_and_may_stand_beside_one() -> None:
    base = [0.4, 0.5, 0.6, 0.7, 0.8]
    shifts = [0.028, 0.032, 0.03, 0.031, 0.029]
    scores = {"vanilla_pt": base, "ppt": [x + d for x, d in zip(base, shifts, strict=True)]}
    (comparison,) = compare(places_of(**scores), {"sst2": 32})
    assert comparison.verdict == "ppt better"
    (warning,) = warnings_of(CHANCE, **scores)
    assert "differ" not in warning and "better" not in warning


def test_rows_that_do_not_say_what_guessing_gives_are_not_judged() -> None:
    assert warnings_of([{"task": "sst2"}], ft=[0.1]) == []
