"""The pictures of `ppt corpora stats`, drawn from the numbers that `stats.collect` gives."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from corpora.common.blocks import Picture
from corpora.common.plots import GRID, INK, PANELS, QUIET, WIDTH, add_legend, label_axis, make_panels, save
from corpora.origins import KINDS
from corpora.stats import count_title

BAR, GREY = "#3d8ec9", "#9fabb6"  # seen well on white and on the page's dark
# Okabe and Ito's: told apart with every common colour blindness, near to the terminal's green, yellow, magenta.
KIND_COLOURS = dict(zip(KINDS, ("#009e73", "#e69f00", "#cc79a7"), strict=True))
LIMIT = "#d55e00"
ROW, GAP = 0.26, 0.4  # inches of a horizontal bar; bars between two groups
REASON_CHARS = 74  # of a drop reason in a picture; the page's table has all of it


def units(found: dict[str, Any]) -> Picture:
    """How long units are and how many a document has."""
    store = found["store"]
    one = store["unit"].removesuffix("s")
    figure, axes = make_panels([f"tokens of a {one}", f"{store['unit']} of a document"], 2.4, 1)
    for axis, field in zip(axes, ("unit_tokens", "document_units"), strict=True):
        _histogram(axis, store[field])
    label_axis(axes[0], "", store["unit"])
    label_axis(axes[1], "", "documents")
    _legend_of_histograms(figure)
    caption = (
        f"How many {store['unit']} have so many tokens, and how many documents so many {store['unit']}; the last, grey bar "
        "holds all that are longer."
    )
    return save(figure, "units", caption)


def lengths(found: dict[str, Any]) -> Picture:
    """How long the examples of each format are as rendered, and where their budget ends."""
    formats = _with_examples(found)
    figure, axes = make_panels([_title(name) for name in formats], 2.3, 1)
    for number, (axis, about) in enumerate(zip(axes, formats.values(), strict=True)):
        _histogram(axis, about["lengths"])
        axis.axvline(about["budget"], color=LIMIT, linewidth=1.4)
        axis.set_xlim(0, about["budget"] * 1.03)
        axis.margins(y=0.14)
        share = 100 * about["full"] / about["looked_at"]
        axis.text(
            0.945, 0.985, f"{share:.1f} % cut", transform=axis.transAxes, ha="right", va="top", color=LIMIT, fontsize=8
        )  # fmt: skip
        label_axis(axis, "tokens", "examples" if number % PANELS == 0 else "")
    median = Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (3, 2)), label="median")
    add_legend(figure, [Line2D([], [], color=LIMIT, linewidth=1.4, label="budget"), median], 2)
    caption = (
        "Tokens of the examples as the encoder reads them beside a prompt of 100; what would pass the budget is cut "
        "to fit, so that the last bar holds the cut ones."
    )
    return save(figure, "lengths", caption)


def labels(found: dict[str, Any]) -> Picture:
    """Each label's share of both splits, and for choices the share that even positions would give."""
    formats = _with_examples(found)
    figure, axes = make_panels([_title(name) for name in formats], 2.3, 1)
    for number, (axis, about) in enumerate(zip(axes, formats.values(), strict=True)):
        words = about["label_words"]
        x = np.arange(len(words))
        for offset, split, colour in ((-0.2, "train", BAR), (0.2, "validation", GREY)):
            counts = np.array([about["labels"][split][word] for word in words])
            axis.bar(x + offset, 100 * counts / max(1, counts.sum()), width=0.4, color=colour)
        axis.plot(
            x,
            [100 * share for share in even_shares(about)],
            "_",
            color=INK,
            markersize=9 if len(words) < 9 else 5,
        )
        axis.margins(y=0.12)
        crowded = sum(map(len, words)) > 24
        axis.set_xticks(x, words, rotation=35 if crowded and len(words) < 9 else 0)
        axis.yaxis.set_major_locator(MaxNLocator(4))
        label_axis(axis, "", "% of the split" if number % PANELS == 0 else "")
    even = Line2D([], [], color=INK, marker="_", linestyle="", markersize=9, label="if all were even")
    add_legend(figure, [Patch(color=BAR, label="train"), Patch(color=GREY, label="held out"), even], 3)
    caption = (
        "Labels by split. For choices the label is the place of the right option; a late letter is rarer because "
        "fewer examples have so many options."
    )
    return save(figure, "labels", caption)


def even_shares(about: dict[str, Any]) -> list[float]:
    """Each label's share where all are equally likely; of a choice, where every place among its options is."""
    words = about["label_words"]
    if "n_options" not in about:
        return [1 / len(words)] * len(words)
    total = sum(about["n_options"].values())
    return [
        sum(times / int(n) for n, times in about["n_options"].items() if int(n) > place) / max(1, total)
        for place in range(len(words))
    ]


def options(found: dict[str, Any]) -> Picture | None:
    """How many options examples have, and how options stand to their queries, by label or rightness."""
    formats = {name: about for name, about in _with_examples(found).items() if "kinds" in about}
    if not formats:
        return None
    rows = [
        (name, label, kinds) for name, about in formats.items() for label, kinds in about["kinds"].items()
    ]
    height = ROW * (len(rows) + (1 + GAP) * len(formats)) + 0.65
    figure = _figure(height, 1)
    axis = figure.add_subplot()
    y, ticks, names = 0.0, [], []
    last = ""
    for name, label, kinds in rows:
        if name != last:
            y += GAP if last else 0
            axis.text(0, y, _title(name), color=INK, fontsize=9.5, fontweight="bold", va="center")
            y, last = y + 1, name
        total, left = max(1, sum(kinds.values())), 0.0
        for kind in KINDS:
            share = 100 * kinds[kind] / total
            axis.barh(y, share, left=left, height=0.72, color=KIND_COLOURS[kind])
            if share >= 4:
                axis.text(
                    left + share / 2,
                    y,
                    f"{share:.1f}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="#101418",
                )
            left += share
        ticks.append(y)
        names.append(label)
        y += 1
    axis.set_xlim(0, 100)
    axis.set_ylim(y - 0.4, -0.6)
    axis.set_yticks(ticks, names)
    _quiet(axis)
    label_axis(axis, "% of the options", "")
    add_legend(figure, [Patch(color=colour, label=kind) for kind, colour in KIND_COLOURS.items()], 3)
    caption = (
        "How the second text of a pair, by label, and the options of a choice stand to the query: next to it, elsewhere in "
        "its document, or in another one."
    )
    return save(figure, "options", caption)


def option_counts(found: dict[str, Any]) -> Picture | None:
    """How many examples have how many options, of formats in which that differs."""
    formats = {
        name: about for name, about in _with_examples(found).items() if len(about.get("n_options", ())) > 1
    }
    if not formats:
        return None
    figure, axes = make_panels([_title(name) for name in formats], 2.2, 0)
    for axis, about in zip(axes, formats.values(), strict=True):
        numbers = [int(n) for n in about["n_options"]]
        axis.bar(numbers, list(about["n_options"].values()), width=0.8, color=BAR)
        axis.set_xticks(numbers)
        axis.yaxis.set_major_formatter(EngFormatter(sep=""))
        label_axis(axis, "options", "examples")
    return save(figure, "option_counts", "How many examples have how many options.")


def dropped(found: dict[str, Any]) -> Picture | None:
    """What was left out, repaired or filtered, by reason: of the text, and of each format."""
    groups = {count_title(name): counts for name, counts in found["counts"].items()}
    groups |= {_title(name): about["dropped"] for name, about in found["formats"].items()}
    groups = {name: counts for name, counts in groups.items() if counts}
    if not groups:
        return None
    height = ROW * sum(len(counts) + 1 + GAP for counts in groups.values()) + 0.3
    figure = _figure(height, 0)
    axis = figure.add_subplot()
    most = max(max(counts.values()) for counts in groups.values())
    y, ticks, names = 0.0, [], []
    for name, counts in groups.items():
        y += GAP if y else 0
        axis.text(0, y, name, color=INK, fontsize=9.5, fontweight="bold", va="center")
        y += 1
        for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            axis.barh(y, count, height=0.68, color=BAR)
            axis.text(count + most * 0.008, y, f"{count:,}", va="center", fontsize=8, color=QUIET)
            ticks.append(y)
            names.append(reason if len(reason) <= REASON_CHARS else reason[: REASON_CHARS - 1] + "…")
            y += 1
    axis.set_xlim(0, most * 1.16)
    axis.set_ylim(y - 0.4, -0.6)
    axis.set_yticks(ticks, names)
    _quiet(axis)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    return save(figure, "dropped", "What was left out, repaired or filtered, and why.")


def pictures(found: dict[str, Any]) -> list[Picture]:
    """All pictures that the numbers give, in the page's order."""
    drawn: list[Picture | None] = [units(found)]
    if _with_examples(found):
        drawn += [lengths(found), labels(found), options(found), option_counts(found)]
    return [picture for picture in (*drawn, dropped(found)) if picture is not None]


def _with_examples(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: about for name, about in found["formats"].items() if about["looked_at"]}


def _title(format: str) -> str:
    return format.replace("_", " ")


def _histogram(axis: Axes, values: dict[str, Any]) -> None:
    """Bars of one histogram, a grey one for what is beyond them, a line at the median."""
    if not values["n"]:
        return
    width, bars = values["width"], values["bars"]
    edges = width * np.arange(len(bars) + 1)
    axis.bar(edges[:-1], bars, width=width * 0.94, align="edge", color=BAR)
    if values["longer"]:
        axis.bar(edges[-1], values["longer"], width=width * 1.6, align="edge", color=GREY)
    axis.axvline(values["quantiles"]["0.5"], color=INK, linewidth=1.1, linestyle=(0, (3, 2)))
    axis.set_xlim(0, edges[-1] + width * 2)
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _legend_of_histograms(figure: Figure) -> None:
    median = Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (3, 2)), label="median")
    add_legend(figure, [median, Patch(color=GREY, label="longer")], 2)


def _figure(height: float, legend_rows: int) -> Figure:
    """A figure of horizontal bars as wide as the page, under room for a legend."""
    total = height + 0.26 * legend_rows
    return Figure(
        figsize=(WIDTH * 0.86, total),
        layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - 0.26 * legend_rows / total)),
    )


def _quiet(axis: Axes) -> None:
    """The house's frame for horizontal bars: rules upright, names at the left."""
    axis.grid(axis="x", color=GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(colors=QUIET, labelcolor=QUIET, length=0, labelsize=8.5)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.spines["left"].set_color(GRID)
