"""The pictures of a report. Each is a figure that is saved twice: a PNG, and an SVG that follows the page's light or dark."""

from __future__ import annotations

import io
import math
import re
import statistics
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from finetune.report_tables import Line, Places

INK, QUIET, GRID = "#1b2027", "#5c6670", "#d9dee3"  # replaced by the page's own in the SVG
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
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
PANELS = 4  # side by side
WIDTH = 10.0  # inches
# Latin letters from matplotlib's own font; Chinese ones from whichever of these the machine has.
CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB",
    "Heiti SC", "Microsoft YaHei", "SimHei", "Arial Unicode MS",
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A figure as the report keeps it: `png` is a file's bytes, `svg` goes into the page."""

    name: str
    caption: str
    png: bytes
    svg: str


@cache
def fonts() -> tuple[str, ...]:
    """The fonts of all text, first choice first; only those that this machine has."""
    have = set(font_manager.get_font_names())
    return ("DejaVu Sans", *(name for name in CHINESE_FONTS if name in have))


def missing_glyphs(texts: Iterable[str]) -> str:
    """Characters of `texts` that no font here can draw: boxes in the PNG files, fine in the page."""
    characters = {character for text in texts for character in text if not character.isspace()}
    for name in fonts():
        path = font_manager.findfont(name)
        font = font_manager.get_font(path)
        characters = {one for one in characters if font.get_char_index(ord(one)) == 0}
    return "".join(sorted(characters))


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


def _save(figure: Figure, name: str, caption: str) -> Picture:
    """Draw a figure as PNG on white and as SVG without addresses, its inks named by the page's variables."""
    png, svg = io.BytesIO(), io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": list(fonts())}
    with warnings.catch_warnings(), matplotlib.rc_context(settings):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(png, format="png", dpi=144, facecolor="white")
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(svg, format="svg", transparent=True, metadata=nothing)
    return Picture(name, caption, png.getvalue(), page_svg(svg.getvalue(), name, caption))


def page_svg(svg: str, name: str, caption: str) -> str:
    """Fit matplotlib's SVG into an HTML page: no XML head, no name spaces, no sizes, identifiers of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    width = re.search(r'viewBox="0 0 ([\d.]+)', svg)
    points = float(width.group(1)) if width else WIDTH * 72
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', rf'\1 style="--w:{points * 1.4:.0f}px"', svg, count=1)
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    for ink, variable in ((INK, "ink"), (QUIET, "quiet"), (GRID, "rule")):
        svg = svg.replace(ink, f"var(--{variable})")
    svg = re.sub(r"font(-family)?: ([\d.]+px )?[^;\"]*DejaVu Sans[^;\"]*", _font_of_page, svg)
    label = caption.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _font_of_page(match: re.Match[str]) -> str:
    return f"font: {match.group(2)}var(--sans)" if match.group(2) else "font-family: var(--sans)"


def _panels(titles: Sequence[str], height: float, legend_rows: int) -> tuple[Figure, list[Axes]]:
    """A grid of panels under room for a legend, with quiet frames and horizontal rules."""
    columns = min(PANELS, len(titles))
    rows = math.ceil(len(titles) / columns)
    width = min(WIDTH, 2.5 * columns + 0.6) if columns > 1 else 4.8
    total = height * rows + 0.26 * legend_rows + 0.1
    figure = Figure(
        figsize=(width, total),
        layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - (0.26 * legend_rows + 0.08) / total)),
    )
    axes = []
    with matplotlib.rc_context({"font.family": list(fonts()), "font.size": 8.5}):
        for number, title in enumerate(titles):
            axis = figure.add_subplot(rows, columns, number + 1)
            axis.set_title(title, fontsize=9.5, color=INK, loc="left", fontweight="bold")
            axis.grid(axis="y", color=GRID, linewidth=0.7)
            axis.set_axisbelow(True)
            axis.tick_params(colors=QUIET, labelcolor=QUIET, length=0, labelsize=8)
            axis.spines[["top", "right", "left"]].set_visible(False)
            axis.spines["bottom"].set_color(GRID)
            axes.append(axis)
    return figure, axes


def _legend(figure: Figure, handles: Sequence[Any], columns: int) -> None:
    with matplotlib.rc_context({"font.family": list(fonts())}):
        figure.legend(
            handles=list(handles), loc="upper left", ncols=columns, frameon=False, fontsize=8.5, labelcolor=INK,
            handlelength=1.4, columnspacing=1.4, borderaxespad=0.1,
        )  # fmt: skip


def _legend_shape(n: int, panels: int) -> tuple[int, int]:
    """(columns, rows) of a legend over that many panels."""
    columns = {1: 3, 2: 4, 3: 6}.get(panels, 8)
    return min(n, columns), math.ceil(n / columns)


def _label(axis: Axes, x: str, y: str) -> None:
    if x:
        axis.set_xlabel(x, color=QUIET, fontsize=8.5)
    if y:
        axis.set_ylabel(y, color=QUIET, fontsize=8.5)


def bars(places: Places, shots: dict[str, int], chance: dict[str, float]) -> Picture:
    """Mean test score of every line on every task: bars with sample deviations, a dot for each seed, a line at chance."""
    lines = sorted({line for line, _, _ in places})
    styles = _styles(lines)
    columns, rows = _legend_shape(len(lines), min(PANELS, len(shots)))
    figure, axes = _panels(list(shots), 2.5, rows)
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
        _label(axis, "", "test accuracy, %" if number % PANELS == 0 else "")
    handles: list[Any] = [
        Patch(
            facecolor=styles[line][0], hatch=styles[line][1], edgecolor="white", linewidth=0, label=line.label
        )
        for line in lines
    ]
    _legend(figure, handles, columns)
    caption = "Test accuracy: mean over seeds (bar), sample deviation (whisker), each seed (dot), uniform guessing (dotted line)."
    return _save(figure, "bars", caption)


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
    columns, legend_rows = _legend_shape(len(shown), min(PANELS, len(drawn)))
    figure, axes = _panels(list(drawn), 2.3, legend_rows)
    for number, (axis, some) in enumerate(zip(axes, drawn.values(), strict=True)):
        for line, averaged in some.items():
            steps, mean, low, high = zip(*averaged, strict=True)
            axis.plot(steps, [scale * y for y in mean], color=styles[line][0], linewidth=1.6)
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
        _label(axis, "step", label if number % PANELS == 0 else "")
    _legend(
        figure,
        [Line2D([], [], color=styles[line][0], linewidth=2, label=line.label) for line in shown],
        columns,
    )
    what = label.replace(", %", " in percent")
    caption = (
        f"{what[0].upper()}{what[1:]} while tuning, cells with the chosen learning rate: mean over seeds, "
        "band from lowest to highest."
    )
    return _save(figure, f"curves_{field}", caption)


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
    columns, legend_rows = _legend_shape(len(lines), min(PANELS, len(tasks)))
    figure, axes = _panels(tasks, 2.5, legend_rows)
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
        _label(axis, "training examples", "test accuracy, %" if number % PANELS == 0 else "")
    handles = [
        Line2D([], [], color=styles[line][0], marker=styles[line][2], markersize=4.5, label=line.label)
        for line in lines
    ]
    _legend(figure, handles, columns)
    return _save(
        figure,
        "efficiency",
        "Sample efficiency: mean test accuracy and sample deviation by number of training examples.",
    )


def pretraining(metrics: Sequence[dict[str, Any]], name: str = "pretraining") -> Picture | None:
    """A pre-training run: loss and accuracy by step for every prompt group, held-out as a line, training faint behind it."""
    formats = list(dict.fromkeys(str(row["format"]) for row in metrics if row.get("format")))
    fields = [field for field in ("loss", "accuracy") if any(row.get(field) is not None for row in metrics)]
    if not formats or not fields:
        return None
    figure, axes = _panels(["loss", "accuracy, %"][: len(fields)], 2.7, 1)
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
        _label(axis, "step", "")
    handles = [
        Line2D([], [], color=colour(group, i), linewidth=2, label=group) for i, group in enumerate(formats)
    ]
    _legend(figure, handles, 4)
    return _save(
        figure,
        name,
        "Pre-training: held-out loss and accuracy of each prompt group (strong), training batches (faint).",
    )
