"""Whether anything was learnt: each line's mean over seeds against answers that need no look at the text."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from finetune.report_read import Row
from finetune.report_stats import ALPHA, NO_SPREAD, holm, probability
from finetune.report_tables import Places, percent


@dataclass(frozen=True)
class Guess:
    """An answer without a look at the text, and the share of the test examples that it is right on."""

    how: str
    share: float


def guesses(rows: Iterable[Row]) -> dict[str, Guess]:
    """Task -> the guess that is right more often: one of the row's own labels, or always the test set's most frequent one.

    Rows of an earlier release do not tell the second (`test_majority`) or either; then it does not count.
    """
    found: dict[str, Guess] = {}
    for row in rows:
        for how, field in (("one label at random", "test_chance"), ("always the most frequent label", "test_majority")):  # fmt: skip
            if row.get(field) is None:
                continue
            guess, task = Guess(how, float(row[field])), str(row["task"])
            if task not in found or guess.share > found[task].share + NO_SPREAD:
                found[task] = guess
    return found


def p_above(scores: Sequence[float], share: float) -> float:
    """One-sided p of a true mean of `share` or less, by the t test over seeds.

    One seed, or equal scores, have no deviation to judge by: 0 where the mean lies above, else 1.
    """
    if max(scores) - min(scores) <= NO_SPREAD:
        return 0.0 if statistics.fmean(scores) > share + NO_SPREAD else 1.0
    return float(stats.ttest_1samp(list(scores), share, alternative="greater").pvalue)


def at_chance(places: Places, shots: Mapping[str, int], rows: Iterable[Row]) -> list[str]:
    """A warning for each task on which no line is told apart from guessing, corrected for the lines."""
    warnings = []
    for task, guess in guesses(rows).items():
        p_values = [
            p_above(list(stat.scores.values()), guess.share)
            for (_, name, n), stat in places.items()
            if (name, n) == (task, shots[task]) and not stat.filled_from
        ]
        lowest = min((p for p, _ in holm(p_values)), default=0.0)
        if lowest >= ALPHA:
            lines = "1 line" if len(p_values) == 1 else f"{len(p_values)} lines"
            warnings.append(
                f"No method is told apart from guessing on {task}: {guess.how} is right on {percent(guess.share)} % of its "
                f"test examples (one-sided t test over seeds, the lowest p corrected for {lines}: {probability(lowest)})"
            )
    return warnings
