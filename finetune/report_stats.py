"""Which methods can be told apart: paired differences over the same draws, with intervals and Holm's correction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy import stats

from corpora.common.blocks import Entry, Table
from finetune.report_tables import Line, Places, Stat, in_order

ALPHA = 0.05
# What is compared unless nothing of it was run: the question of the paper's main table, fixed before any score is seen.
VARIANTS = ("ppt", "hybrid_ppt", "unified_ppt")
BASELINES = ("ft", "vanilla_pt", "hybrid_pt", "lm_adaption")
# Fractions of 1; a test set of a million rows counts in steps of 1e-6, what is below is rounding of the subtraction.
NO_SPREAD = 1e-9
COMPARISON_FIELDS = (
    "task", "shots", "method", "against", "draws", "difference", "low", "high", "p", "p_corrected", "family", "result",
)  # fmt: skip
NOT_TOLD_APART = "not told apart"


@dataclass(frozen=True)
class Paired:
    """The mean of paired differences over one task or several.

    Attributes:
        mean: of the tasks' mean differences, fractions of 1.
        error: its standard error; 0 where there is no deviation to judge by.
        df: degrees of freedom.
    """

    mean: float
    error: float
    df: float

    @property
    def p(self) -> float:
        """Two-sided p of a true difference of 0; 1 where there is no deviation to judge by: no evidence, not proof."""
        return float(2 * stats.t.sf(abs(self.mean) / self.error, self.df)) if self.error else 1.0

    def interval(self, level: float = 1 - ALPHA) -> tuple[float, float] | None:
        """The confidence interval; None where there is no deviation to judge by."""
        if not self.error:
            return None
        low, high = stats.t.interval(level, self.df, loc=self.mean, scale=self.error)
        return float(low), float(high)


def paired(differences: Sequence[Sequence[float]]) -> Paired:
    """Judge paired differences, one list a task.

    The unit is a draw: a seed's examples of one task, the same for both methods. With one task this is the paired t test. A
    seed's draws of two tasks share nothing, so several tasks are strata of independent draws: the variances of their means
    add up, with Welch's and Satterthwaite's degrees of freedom (Satterthwaite 1946). The tasks count as given, not as a
    sample of all tasks.

    A task whose differences are all equal has no deviation to judge by, so neither has a mean that it is part of: it would
    count as proof. All 0, they pull the mean towards no difference, and the other tasks alone are the evidence.

    Raises:
        ValueError: a task has fewer than two differences.
    """
    if not differences or min(map(len, differences)) < 2:
        raise ValueError("expected two differences or more in every task")
    means, variances = [], []
    for some in differences:
        mean = math.fsum(some) / len(some)
        spread = math.sqrt(math.fsum((x - mean) ** 2 for x in some) / (len(some) - 1))
        means.append(mean)
        variances.append(spread**2 / len(some) if spread > NO_SPREAD else 0.0)
    if any(variance == 0 and abs(mean) > NO_SPREAD for mean, variance in zip(means, variances, strict=True)):
        return Paired(math.fsum(means) / len(means), 0.0, 1.0)
    total = math.fsum(variances)
    parts = math.fsum(v**2 / (len(some) - 1) for v, some in zip(variances, differences, strict=True))
    return Paired(
        math.fsum(means) / len(means),
        math.sqrt(total) / len(means),
        total**2 / parts if parts else 1.0,
    )


def holm(p_values: Sequence[float]) -> list[tuple[float, float]]:
    """Correct for many comparisons (Holm 1979): the chance of a single false one stays below alpha.

    Returns:
        For each p value the corrected one, and the confidence level of the interval that goes with it: where the corrected
        p is below `ALPHA`, that interval leaves out 0.
    """
    found: list[tuple[float, float]] = [(1.0, 0.0)] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        left = len(p_values) - rank
        highest = max(highest, min(1.0, left * p_values[i]))
        found[i] = highest, 1 - ALPHA / left
    return found


@dataclass(frozen=True)
class Comparison:
    """Two lines over the draws that both have.

    Attributes:
        task: the task, or None for all of them together.
        shots: its number of training examples; None for all tasks.
        one, other: the lines; positive differences are in favour of `one`.
        differences: task -> seed -> difference of test accuracy, a fraction of 1.
        planned: whether it belongs to the family that was fixed beforehand.
        paired: the judgement; None where a task has fewer than two seeds in common.
        corrected: p corrected over its family.
        level: confidence of the interval that goes with `corrected`.
    """

    task: str | None
    shots: int | None
    one: Line
    other: Line
    differences: dict[str, dict[int, float]]
    planned: bool
    paired: Paired | None
    corrected: float | None = None
    level: float | None = None

    @property
    def draws(self) -> int:
        """How many pairs of scores stand behind it."""
        return sum(map(len, self.differences.values()))

    @property
    def winner(self) -> Line | None:
        """The line with the higher accuracy, only where the corrected p says so."""
        if self.paired is None or self.corrected is None or self.corrected >= ALPHA:
            return None
        return self.one if self.paired.mean > 0 else self.other

    @property
    def verdict(self) -> str:
        """What may be said."""
        if self.paired is None:
            return "no comparison: fewer than two seeds in common"
        return f"{self.winner.label} better" if self.winner else NOT_TOLD_APART


def _planned_pair(one: Line, other: Line) -> bool:
    """PPT's variants against what PPT claims to improve on; prompts of two backbones answer another question."""
    if one.method not in VARIANTS or other.method not in BASELINES:
        return False
    return other.method in ("ft", "lm_adaption") or one.backbone == other.backbone


def _pairs(lines: Iterable[Line]) -> list[tuple[Line, Line, bool]]:
    """(one, other, planned); where nothing planned was run, every pair is."""
    pairs = sorted((one, other) for other, one in itertools.combinations(sorted(lines), 2))
    some = any(_planned_pair(*pair) for pair in pairs)
    return [(one, other, _planned_pair(one, other) or not some) for one, other in pairs]


def _compared(
    place: tuple[str | None, int | None],
    pair: tuple[Line, Line, bool],
    stats_of: Mapping[str, tuple[Stat, Stat]],
) -> Comparison:
    one, other, planned = pair
    differences = {
        task: {seed: a.scores[seed] - b.scores[seed] for seed in sorted(set(a.scores) & set(b.scores))}
        for task, (a, b) in stats_of.items()
    }
    enough = all(len(some) > 1 for some in differences.values())
    judged = paired([list(some.values()) for some in differences.values()]) if enough else None
    return Comparison(*place, one, other, differences, planned, judged)


def compare(places: Places, shots: Mapping[str, int]) -> list[Comparison]:
    """Compare all lines in pairs: first over all tasks together, then task by task.

    Each of the two is a family of its own. Planned comparisons are corrected for each other, the rest for all pairs.
    A place that another line's run fills (†) is compared under the line that ran.

    Args:
        places: scores by place.
        shots: task -> the number of examples that counts where all tasks are taken together.

    Returns:
        Comparisons over all tasks (where there are several) of the lines that have them all, then by task, number of
        examples and pair.
    """
    pairs = _pairs({line for (line, _, _), stat in places.items() if not stat.filled_from})
    together, apart = [], []
    for one, other, planned in pairs:
        found = {
            task: (places[one, task, n], places[other, task, n])
            for task, n in shots.items()
            if (one, task, n) in places and (other, task, n) in places
        }
        if len(shots) > 1 and len(found) == len(shots):
            together.append(_compared((None, None), (one, other, planned), found))
    for task, n in dict.fromkeys((task, n) for _, task, n in in_order(places)):
        here = {
            line: stat
            for (line, name, m), stat in places.items()
            if (name, m) == (task, n) and not stat.filled_from
        }
        for one, other, planned in pairs:
            if one in here and other in here:
                both = {task: (here[one], here[other])}
                apart.append(_compared((task, n), (one, other, planned), both))
    return [*_corrected(together), *_corrected(apart)]


def _corrected(comparisons: list[Comparison]) -> list[Comparison]:
    values: dict[int, tuple[float, float]] = {}
    for planned_only in (False, True):  # the planned ones last: their own family counts
        family = [i for i, one in enumerate(comparisons) if one.paired and (one.planned or not planned_only)]
        judged = [comparisons[i].paired for i in family]
        values |= dict(zip(family, holm([one.p for one in judged if one]), strict=True))
    return [
        replace(one, corrected=values[i][0], level=values[i][1]) if i in values else one
        for i, one in enumerate(comparisons)
    ]


def told_apart(comparisons: Iterable[Comparison], places: Places) -> set[tuple[Line, str, int]]:
    """Places that a planned comparison tells apart from the highest mean of their task and number of examples."""
    highest: dict[tuple[str, int], float] = {}
    for (_, task, n), stat in places.items():
        highest[task, n] = max(highest.get((task, n), 0.0), stat.mean)
    return {
        (loser, one.task, one.shots)
        for one in comparisons
        if one.planned and one.task is not None and one.shots is not None and one.winner
        for loser in (one.other if one.winner == one.one else one.one,)
        if places[one.winner, one.task, one.shots].mean == highest[one.task, one.shots]
    }


def points(fraction: float) -> str:
    """0.0213 -> "+2.1", with a real minus sign."""
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def probability(p: float) -> str:
    """0.0312 -> "0.031"."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def comparisons_table(comparisons: Iterable[Comparison]) -> Table:
    """Difference, 95 % interval, p, corrected p and what may be said; a line a comparison."""
    body = []
    several = False
    for one in comparisons:
        several |= one.task is not None
        entries = [Entry(f"{one.one.label} − {one.other.label}")]
        entries += [Entry(str(one.task)), Entry(str(one.shots))] if one.task is not None else []
        entries.append(Entry(str(one.draws)))
        judged = one.paired
        if judged is None or one.corrected is None:
            entries += [Entry("–", quiet=True)] * 4
        else:
            interval = judged.interval()
            shown = f"{points(interval[0])} to {points(interval[1])}" if interval else "–"
            entries += [Entry(points(judged.mean)), Entry(shown)]
            entries += [Entry(probability(p) if interval else "–") for p in (judged.p, one.corrected)]
        body.append((*entries, Entry(one.verdict, strong=bool(one.winner), quiet=not one.winner)))
    where = ("task", "examples") if several else ()
    head = ("methods", *where, "draws", "difference", "95 % interval", "p", "corrected p", "result")
    return Table(head, tuple(body))


def as_records(comparisons: Iterable[Comparison]) -> list[dict[str, Any]]:
    """The comparisons for programs: fractions of 1, None where there is no figure."""
    records = []
    for one in comparisons:
        low, high = (one.paired.interval() if one.paired else None) or (None, None)
        varies = bool(one.paired and one.paired.error)
        records.append(
            {
                "task": one.task,
                "shots": one.shots,
                "method": one.one.key,
                "against": one.other.key,
                "draws": one.draws,
                "difference": one.paired.mean if one.paired else None,
                "low": low,
                "high": high,
                "p": one.paired.p if one.paired and varies else None,
                "p_corrected": one.corrected if varies else None,
                "family": "planned" if one.planned else "all pairs",
                "result": one.verdict,
                "differences": {
                    task: {str(seed): d for seed, d in some.items()} for task, some in one.differences.items()
                },
            }
        )
    return records
