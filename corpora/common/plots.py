"""The look of every picture: quiet frames, one set of fonts, and an SVG that follows the page's light or dark."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from corpora.common.blocks import Picture

INK, QUIET, GRID = "#1b2027", "#5c6670", "#d9dee3"  # replaced by the page's own in the SVG
PANELS = 4  # side by side
WIDTH = 10.0  # inches
# Latin letters from matplotlib's own font; Chinese ones from whichever of these the machine has.
CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB",
    "Heiti SC", "Microsoft YaHei", "SimHei", "Arial Unicode MS",
)  # fmt: skip


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


def save(figure: Figure, name: str, caption: str) -> Picture:
    """Draw a figure as PNG on white and as SVG without addresses, its inks named by the page's variables."""
    png, svg = io.BytesIO(), io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": list(fonts())}
    with warnings.catch_warnings(), matplotlib.rc_context(settings):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(png, format="png", dpi=144, facecolor="white", metadata={"Software": None})
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


def make_panels(
    titles: Sequence[str], height: float, legend_rows: int, columns: int = PANELS
) -> tuple[Figure, list[Axes]]:
    """A grid of panels, `columns` side by side at most, under room for a legend, with quiet frames and horizontal rules."""
    columns = min(columns, len(titles))
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


def add_legend(figure: Figure, handles: Sequence[Any], columns: int) -> None:
    """A legend above all panels."""
    with matplotlib.rc_context({"font.family": list(fonts())}):
        figure.legend(
            handles=list(handles), loc="upper left", ncols=columns, frameon=False, fontsize=8.5, labelcolor=INK,
            handlelength=1.4, columnspacing=1.4, borderaxespad=0.1,
        )  # fmt: skip


def legend_shape(n: int, panels: int, longest: int = 0) -> tuple[int, int]:
    """(columns, rows) of a legend over that many panels, whose longest label has so many characters."""
    columns = {1: 3, 2: 4, 3: 6}.get(panels, 8)
    width = min(WIDTH, 2.5 * panels + 0.6) if panels > 1 else 4.8  # inches, as `make_panels` has it
    columns = max(1, min(columns, int(width / (0.056 * longest + 0.4))))  # 0.056: a character at this size
    return min(n, columns), math.ceil(n / columns)


def label_axis(axis: Axes, x: str, y: str) -> None:
    """Name an axis each way; an empty name is none."""
    if x:
        axis.set_xlabel(x, color=QUIET, fontsize=8.5)
    if y:
        axis.set_ylabel(y, color=QUIET, fontsize=8.5)
