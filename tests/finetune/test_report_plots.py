"""Pictures can be read: lines are told apart, nothing lies over anything."""

from __future__ import annotations

import re
from typing import Any

import pytest

from finetune import report_plots as plots
from finetune.report_stats import compare
from finetune.report_tables import Line, Places, Stat


def places_of(*lines: tuple[str, str], tasks: tuple[str, ...] = ("sst2",)) -> Places:
    """Places of (method, start) lines, three seeds each."""
    places = {}
    for order, (method, start) in enumerate(lines):
        line = Line(order, method, start, 0, "f", f"{method} ({start})", f"{method}:{start}")
        for task in tasks:
            scores = {seed: 0.5 + 0.1 * order + 0.01 * seed * (order + 1) for seed in range(3)}
            rows = {seed: {"cell": f"{method} {start} {seed}"} for seed in scores}
            places[line, task, 32] = Stat(scores, rows)
    return places


def test_curves_of_one_methods_starts_differ_in_their_strokes() -> None:
    places = places_of(("vanilla_pt", "normal"), ("vanilla_pt", "vocabulary"), ("ppt", "pretrained"))
    points = [{"step": step, "dev": 0.5} for step in (0, 6)]
    rows = {row["cell"]: points for stat in places.values() for row in stat.rows.values()}
    picture = plots.curves(places, {"sst2": 32}, rows, "dev", "dev accuracy, %")
    assert picture is not None
    strokes = re.findall(r'style="fill: none;([^"]*?)stroke: (#56b4e9|#e69f00)', picture.svg)
    dashed = {(colour, "dasharray" in style) for style, colour in strokes}
    assert dashed == {("#56b4e9", False), ("#56b4e9", True), ("#e69f00", False)}


@pytest.mark.parametrize("tasks", [("sst2",), ("sst2", "cb"), ("sst2", "cb", "rte")])
def test_the_legend_of_the_differences_lies_above_all_titles(
    monkeypatch: pytest.MonkeyPatch, tasks: tuple[str, ...]
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, *_: drawn.append(figure))
    places = places_of(("vanilla_pt", "normal"), ("ppt", "pretrained"), tasks=tasks)
    plots.differences(compare(places, dict.fromkeys(tasks, 32)), dict.fromkeys(tasks, 32))
    (figure,) = drawn
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert all(axis._left_title.get_window_extent().y1 <= legend.y0 for axis in figure.axes)
