"""The pictures of a report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from corpora.common.blocks import Picture
from corpora.common.plots import (
    GRID,
    INK,
    PANELS,
    QUIET,
    add_legend,
    label_axis,
    legend_shape,
    make_panels,
    save,
)
from finetune.report_stats import ALPHA, NOT_TOLD_APART, Comparison
from finetune.report_tables import Line, Places

# Okabe and Ito's colours, told apart with every common colour blindness: cool ones start from a random prompt,
# warm ones from a pre-trained one, grey is full tuning.
COLOURS = {
    "ft": "#8c939b",
    "vanilla_pt": "#56b4e9",
    "hybrid_pt": "#0072b2",
    "lm_adaption": "#009e73",
    "ppt": "#e69f00",
    "hybrid_ppt": "#d55e00",
    "unified_ppt": "#cc79a7",
    "sentence_pair": "#0072b2",
    "multiple_choice": "#d55e00",
    "single_text": "#009e73",
    "unified": "#cc79a7",
}
OTHERS = ("#7f63b8", "#a6761d", "#66a61e", "#b2476f", "#40798c", "#6b6b47")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (2, 2)), (0, (8, 2)))
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def colour(key: str, index: int = 0) -> str:
    """The colour of a method or format; names without one of their own take turns."""
    return COLOURS.get(key, OTHERS[index % len(OTHERS)])


def _styles(lines: Sequence[Line]) -> dict[Line, tuple[str, str, str]]:
    """Line -> (colour, hatch, marker); lines of one method share its colour and differ in hatch and marker."""
    styles, others = {}, 0
    for number, line in enumerate(lines):
        kin = [other for other in lines if other.method == line.method].index(line)
        if line.method not in COLOURS and kin == 0:
            others += 1
        styles[line] = (
            colour(line.method, others - 1),
            HATCHES[kin % len(HATCHES)],
            MARKERS[number % len(MARKERS)],
        )
    return styles


def _dashes(lines: Sequence[Line]) -> dict[Line, Any]:
    """Line -> its stroke in curves: lines of one method differ in it."""
    kin = {line: [other for other in lines if other.method == line.method] for line in lines}
    return {line: DASHES[kin[line].index(line) % len(DASHES)] for line in lines}


def _longest(lines: Sequence[Line]) -> int:
    return max(len(line.label) for line in lines)


def bars(places: Places, shots: dict[str, int], chance: dict[str, float]) -> Picture:
    """Mean test score of every line on every task: bars with sample deviations, a dot for each seed, a line at what guessing gets."""
    lines = sorted({line for line, _, _ in places})
    styles = _styles(lines)
    columns, rows = legend_shape(len(lines), min(PANELS, len(shots)), _longest(lines))
    figure, axes = make_panels(list(shots), 2.5, rows)
    for number, (axis, (task, n)) in enumerate(zip(axes, shots.items(), strict=True)):
        for x, line in enumerate(lines):
            stat = places.get((line, task, n))
            if stat is None:
                axis.text(x, 1.5, "missing", rotation=90, ha="center", va="bottom", color=QUIET, fontsize=7)
                continue
            fill, hatch, _ = styles[line]
            axis.bar(
                x,
                100 * stat.mean,
                width=0.78,
                color=fill,
                hatch=hatch,
                edgecolor="white" if hatch else fill,
                linewidth=0,
            )
            if stat.std is not None:
                axis.errorbar(
                    x, 100 * stat.mean, yerr=100 * stat.std, color=INK, linewidth=1.1, capsize=3, capthick=1.1
                )
            scores = [100 * score for score in stat.scores.values()]
            spread = [
                x + 0.26 * (2 * i / max(1, len(scores) - 1) - 1) * (len(scores) > 1)
                for i in range(len(scores))
            ]
            axis.plot(spread, scores, "o", color=INK, markersize=2.2, alpha=0.55, markeredgewidth=0)
        if task in chance:
            axis.axhline(100 * chance[task], color=QUIET, linewidth=0.9, linestyle=(0, (2, 2)))
        axis.set_ylim(0, 103)
        axis.set_xlim(-0.6, len(lines) - 0.4)
        axis.set_xticks([])
        label_axis(axis, "", "test accuracy, %" if number % PANELS == 0 else "")
    handles: list[Any] = [
        Patch(
            facecolor=styles[line][0], hatch=styles[line][1], edgecolor="white", linewidth=0, label=line.label
        )
        for line in lines
    ]
    add_legend(figure, handles, columns)
    caption = (
        "Test accuracy: mean over seeds (bar), sample deviation (whisker), each seed (dot), guessing (dotted line): one label at "
        "random or always the most frequent one, whichever is right more often."
    )
    return save(figure, "bars", caption)


def _averaged(curves: Sequence[list[dict[str, Any]]], field: str) -> list[tuple[float, float, float, float]]:
    """(step, mean, lowest, highest) over seeds at the steps where every curve has a value."""
    values = [{row["step"]: row[field] for row in curve if row.get(field) is not None} for curve in curves]
    steps = sorted(set.intersection(*(set(one) for one in values))) if values else []
    at = [[one[step] for one in values] for step in steps]
    return [
        (step, statistics.fmean(some), min(some), max(some)) for step, some in zip(steps, at, strict=True)
    ]


def curves(
    places: Places, shots: dict[str, int], rows: dict[str, list[dict[str, Any]]], field: str, label: str
) -> Picture | None:
    """Training curves of the chosen cells: a line a method, the mean over seeds, a band from the lowest to the highest.

    Args:
        places: scores by place.
        shots: task -> number of examples shown.
        rows: cell -> rows of its curve.
        field: which value: `dev` (a fraction, drawn in percent), `dev_loss` or `train_loss`.
        label: the vertical axis.

    Returns:
        The picture, or None where no cell has such values.
    """
    lines = sorted({line for line, _, _ in places})
    styles = _styles(lines)
    dashes = _dashes(lines)
    scale = 100 if field == "dev" else 1
    drawn: dict[str, dict[Line, list[tuple[float, float, float, float]]]] = {}
    for task, n in shots.items():
        for line in lines:
            stat = places.get((line, task, n))
            if stat is None or stat.filled_from:
                continue
            seeds = [rows[str(row["cell"])] for row in stat.rows.values() if str(row["cell"]) in rows]
            averaged = _averaged(seeds, field)
            if averaged:
                drawn.setdefault(task, {})[line] = averaged
    if not drawn:
        return None
    shown = [line for line in lines if any(line in some for some in drawn.values())]
    columns, legend_rows = legend_shape(len(shown), min(PANELS, len(drawn)), _longest(shown))
    figure, axes = make_panels(list(drawn), 2.3, legend_rows)
    for number, (axis, some) in enumerate(zip(axes, drawn.values(), strict=True)):
        for line, averaged in some.items():
            steps, mean, low, high = zip(*averaged, strict=True)
            axis.plot(
                steps, [scale * y for y in mean], color=styles[line][0], linestyle=dashes[line], linewidth=1.6
            )
            if any(a != b for a, b in zip(low, high, strict=True)):
                axis.fill_between(
                    steps,
                    [scale * y for y in low],
                    [scale * y for y in high],
                    color=styles[line][0],
                    alpha=0.12,
                    linewidth=0,
                )
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        label_axis(axis, "step", label if number % PANELS == 0 else "")
    add_legend(
        figure,
        [
            Line2D([], [], color=styles[line][0], linestyle=dashes[line], linewidth=2, label=line.label)
            for line in shown
        ],
        columns,
    )
    what = label.replace(", %", " in percent")
    caption = (
        f"{what[0].upper()}{what[1:]} while tuning, cells with the chosen learning rate: mean over seeds, "
        "band from lowest to highest."
    )
    return save(figure, f"curves_{field}", caption)


def efficiency(places: Places) -> Picture | None:
    """Sample efficiency: test score against the number of examples, for tasks that were run with several."""
    by_task: dict[str, set[int]] = {}
    for _, task, n in places:
        by_task.setdefault(task, set()).add(n)
    tasks = [task for task, some in by_task.items() if len(some) > 1]
    if not tasks:
        return None
    several = {
        (line, task): [n for n in sorted(by_task[task]) if (line, task, n) in places]
        for line, task in {(line, task) for line, task, _ in places if task in tasks}
    }
    lines = sorted({line for (line, _), some in several.items() if len(some) > 1})
    styles = _styles(lines)
    columns, legend_rows = legend_shape(len(lines), min(PANELS, len(tasks)), _longest(lines))
    figure, axes = make_panels(tasks, 2.5, legend_rows)
    for number, (axis, task) in enumerate(zip(axes, tasks, strict=True)):
        for line in lines:
            points = [(n, places[line, task, n]) for n in several.get((line, task), ())]
            if len(points) < 2:  # one number of examples is no curve
                continue
            axis.errorbar(
                [n * 2 ** (0.07 * (lines.index(line) - (len(lines) - 1) / 2)) for n, _ in points],  # side by side
                [100 * stat.mean for _, stat in points],
                yerr=[100 * (stat.std or 0.0) for _, stat in points],
                color=styles[line][0], marker=styles[line][2], markersize=4.5, linewidth=1.5, capsize=2.5, elinewidth=0.9,
            )  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(by_task[task]), [str(n) for n in sorted(by_task[task])])
        axis.minorticks_off()
        label_axis(axis, "training examples", "test accuracy, %" if number % PANELS == 0 else "")
    handles = [
        Line2D([], [], color=styles[line][0], marker=styles[line][2], markersize=4.5, label=line.label)
        for line in lines
    ]
    add_legend(figure, handles, columns)
    return save(
        figure,
        "efficiency",
        "Sample efficiency: mean test accuracy and sample deviation by number of training examples.",
    )


def _reach(comparisons: Sequence[Comparison]) -> float:
    """How far from zero an axis has to go, in points, to hold every 95 % interval."""
    intervals = [one.paired.interval() for one in comparisons if one.paired]
    return min(100.0, 105 * max(0.01, *(abs(end) for ends in intervals if ends for end in ends), 0.0))


def _draw_difference(axis: Axes, one: Comparison, y: int, ink: str) -> None:
    assert one.paired is not None and one.level is not None
    for level, width, alpha in ((one.level, 0.9, 0.6), (1 - ALPHA, 2.6, 0.85)):
        ends = one.paired.interval(level)
        if ends:
            x = [100 * end for end in ends]
            axis.plot(x, [y, y], color=ink, linewidth=width, alpha=alpha, solid_capstyle="butt")
    fill = ink if one.winner else "white"
    axis.plot(
        100 * one.paired.mean, y, "o", markersize=4.6, markeredgewidth=1.2, markeredgecolor=ink, markerfacecolor=fill
    )  # fmt: skip


def differences(comparisons: Sequence[Comparison], shots: Mapping[str, int]) -> Picture | None:
    """Paired differences with their intervals (a forest plot): a panel for all tasks and one for each task.

    Args:
        comparisons: what is drawn; pairs that could not be judged are left out.
        shots: task -> the number of examples of the main table; panels of other numbers name theirs.

    Returns:
        The picture, or None where nothing could be judged.
    """
    judged = [one for one in comparisons if one.paired and one.level is not None]
    pairs = list(dict.fromkeys((one.one, one.other) for one in judged))
    panels: dict[str, list[Comparison]] = {}
    for one in judged:
        same = one.task is None or one.shots == shots.get(one.task)
        title = one.task or "all tasks (own scale)"
        panels.setdefault(title if same else f"{title}, {one.shots} examples", []).append(one)
    if not panels:
        return None
    colours = {line: style[0] for line, style in _styles(sorted({pair[0] for pair in pairs})).items()}
    columns = math.ceil(len(panels) / math.ceil(len(panels) / PANELS))  # rows of panels as even as they go
    legend_columns = min(4, 2 * len(panels))
    figure, axes = make_panels(list(panels), 0.6 + 0.19 * len(pairs), 4 // legend_columns, columns)
    limits = {
        together: _reach([one for one in judged if (one.task is None) == together])
        for together in (True, False)
    }
    for number, (axis, some) in enumerate(zip(axes, panels.values(), strict=True)):
        axis.axvline(0, color=QUIET, linewidth=0.9)
        for one in some:
            _draw_difference(axis, one, pairs.index((one.one, one.other)), colours[one.one])
        limit = limits[some[0].task is None]
        axis.set_xlim(-limit, limit)
        axis.set_ylim(len(pairs) - 0.4, -0.6)
        axis.grid(False, axis="y")
        axis.grid(True, axis="x", color=GRID, linewidth=0.7)
        axis.set_yticks(range(len(pairs)))
        first = number % columns == 0
        axis.set_yticklabels([f"{a.label} − {b.label}" if first else "" for a, b in pairs])
        label_axis(axis, "difference, points", "")
    handles: list[Any] = [
        Line2D([], [], color=INK, linewidth=2.6, alpha=0.85, label="95 % interval"),
        Line2D([], [], color=INK, linewidth=0.9, alpha=0.6, label="the same, corrected"),
        *(
            Line2D(
                [], [], linestyle="", marker="o", markersize=4.6, color=INK, markerfacecolor=fill, label=label
            )
            for fill, label in ((INK, "told apart"), ("white", NOT_TOLD_APART))
        ),
    ]
    add_legend(figure, handles, legend_columns)
    caption = (
        "Paired differences of test accuracy in points, to the right in favour of the method named first: mean over draws, "
        "95 % interval (thick) and the one corrected for many comparisons (thin; it may leave the frame). Filled: told apart. No "
        "mark: one of the two has no run of its own there."
    )
    return save(figure, "differences", caption)


def pretraining(metrics: Sequence[dict[str, Any]], name: str = "pretraining") -> Picture | None:
    """A pre-training run: loss and accuracy by step for every prompt group, held-out as a line, training faint behind it."""
    formats = list(dict.fromkeys(str(row["format"]) for row in metrics if row.get("format")))
    fields = [field for field in ("loss", "accuracy") if any(row.get(field) is not None for row in metrics)]
    if not formats or not fields:
        return None
    figure, axes = make_panels(["loss", "accuracy, %"][: len(fields)], 2.7, 1)
    scale: Callable[[str, float], float] = lambda field, value: 100 * value if field == "accuracy" else value  # noqa: E731
    for axis, field in zip(axes, fields, strict=True):
        for number, group in enumerate(formats):
            for split, width, alpha in (("train", 0.8, 0.35), ("validation", 1.8, 1.0)):
                points = [
                    (row["step"], scale(field, row[field]))
                    for row in metrics
                    if row.get("format") == group
                    and row.get(field) is not None
                    and (row.get("split") == "train") == (split == "train")
                ]
                if points:
                    x, y = zip(*sorted(points), strict=True)
                    axis.plot(x, y, color=colour(group, number), linewidth=width, alpha=alpha)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        label_axis(axis, "step", "")
    handles = [
        Line2D([], [], color=colour(group, i), linewidth=2, label=group) for i, group in enumerate(formats)
    ]
    add_legend(figure, handles, 4)
    return save(
        figure,
        name,
        "Pre-training: held-out loss and accuracy of each prompt group (strong), training batches (faint).",
    )
