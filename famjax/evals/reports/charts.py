"""Charts: lines with intervals, and heat maps, drawn by matplotlib.

Pages embed them as self-contained SVG without scripts, with tooltips. A chart is 4.8 inches wide; a phone scales it
to about three quarters, so its text stays readable.
"""

import html
import io
import re
import textwrap
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator

from famjax.process.shown import plain

SIZE = (4.8, 3.2)
# Okabe and Ito's palette, which is safe for color blindness; markers and dashes differ too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D00", "#555555")
MARKERS = "osD^vPX*"
DASHES = ("-", "--", ":")
MOST_TICKS = 6
# Length of a line of a legend, which would else squeeze the chart.
MOST_LETTERS = 48


class Point(NamedTuple):
    """A value with its interval.

    Attributes:
      x, y: coordinates.
      low, high: its interval; None if it has none.
      tooltip: text shown when the pointer is over the point.
    """

    x: float
    y: float
    low: float | None
    high: float | None
    tooltip: str = ""


class Line(NamedTuple):
    """A curve.

    Attributes:
      number: sets its color, marker and dashes: that of the model on the whole page (`html.key`), not of this chart.
      label: its name in the legend and in tooltips.
      points: its points.
    """

    number: int
    label: str
    points: Sequence[Point]


def color(number: int) -> str:
    """Returns the color of curve `number`."""
    return COLORS[number % len(COLORS)]


def curve(axes: Any, line: Line) -> None:
    """Draws a curve of a plot: line and markers, and a band, or a bar if only one point has an interval."""
    x, y = [point.x for point in line.points], [point.y for point in line.points]
    number = line.number
    style: dict[str, Any] = {"color": color(number), "linestyle": DASHES[number % 3], "linewidth": 1.6}
    label = "\n".join(textwrap.wrap(plain(line.label), MOST_LETTERS, drop_whitespace=False))
    axes.plot(x, y, marker=MARKERS[number % len(MARKERS)], markersize=5, label=label, **style)
    known = [point for point in line.points if point.low is not None and point.high is not None]
    ends = [[point.low for point in known], [point.high for point in known]]
    if len(known) > 1:
        axes.fill_between([point.x for point in known], *ends, color=color(number), alpha=0.15, linewidth=0)
    elif known:
        axes.vlines(known[0].x, *ends, color=color(number), linewidth=1.6)


def lines(
    curves: Sequence[Line], x_label: str, y_label: str, from_zero_to_one: bool = True, thousand: int = 2**10
) -> str:
    """Returns an SVG of curves over a logarithmic x axis, log(1 + x), so that 0 can be shown; `thousand` as in
    `in_units`."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    tooltips: list[str] = []
    for line in curves:
        curve(axes, line)
        for point in line.points:  # large and invisible, under the pointer
            (spot,) = axes.plot([point.x], [point.y], marker="o", markersize=11, alpha=0, linestyle="none")
            spot.set_gid(f"tooltip{len(tooltips)}")
            tooltips.append(f"{line.label}: {point.tooltip}")
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_xscale("function", functions=(np.log1p, np.expm1))
    shown = _some(sorted({point.x for line in curves for point in line.points}))
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(shown, [in_units(x, thousand) for x in shown])
    if from_zero_to_one:
        axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)
    return svg_of(figure, f"{y_label} against {x_label}", tooltips)


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]],
    tooltips: Sequence[Sequence[str]], x_label: str, y_label: str,
) -> str:  # fmt: skip
    """Returns an SVG of values 0..1 as cells with numbers, darker for higher; None leaves a cell empty."""
    figure = Figure(figsize=(SIZE[0], min(SIZE[1], 0.9 + 0.44 * len(rows))), layout="constrained")
    axes = figure.subplots()
    paint = matplotlib.colormaps["Blues"]
    told: list[str] = []
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value is None:
                continue
            ink = "white" if value > 0.6 else "black"
            text = f"{value:.3f}".rstrip("0").rstrip(".") or "0"
            axes.text(j, i, text, ha="center", va="center", color=ink)
            cell = Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, facecolor=paint(0.1 + 0.8 * value), zorder=0)
            cell.set_gid(f"tooltip{len(told)}")
            axes.add_patch(cell)
            told.append(tooltips[i][j])
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5), xlabel=x_label, ylabel=y_label)
    axes.set_xticks(range(len(columns)), [plain(column) for column in columns])
    axes.set_yticks(range(len(rows)), rows)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return svg_of(figure, f"{y_label} against {x_label}", told)


def svg_of(figure: Figure, name: str = "", tooltips: Sequence[str] = ()) -> str:
    """Returns a figure as deterministic SVG for a page. Tooltip i belongs to the artist with the gid `tooltip{i}`."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "famjax", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    for number, tooltip in enumerate(tooltips):
        mark = f'<g id="tooltip{number}">'
        svg = svg.replace(mark, f"<g><title>{html.escape(tooltip)}</title>")
    if name:
        svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(name, quote=True)}" ', 1)
    return _with_own_ids(svg)


def _with_own_ids(svg: str) -> str:
    """Makes an SVG's ids unique, because ids are shared by the whole page."""
    mark = f"p{zlib.crc32(svg.encode()):08x}-"
    svg = re.sub(r'\bid="', f'id="{mark}', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{mark}", svg)


def _some(xs: Sequence[float]) -> list[float]:
    """Returns at most `MOST_TICKS` evenly spaced values, including the last."""
    step = -(-len(xs) // MOST_TICKS)
    return [x for i, x in enumerate(xs) if (len(xs) - 1 - i) % step == 0]


def in_units(value: float, thousand: int = 2**10) -> str:
    """Formats a number with units: of a length or of bytes binary ones, 1k is 1024; with a `thousand` of 1000 decimal
    ones. Below 10 and below 10 units two digits are kept."""
    power = next((power for power in (3, 2, 1) if round(value) >= thousand**power), 0)
    share = value / thousand**power
    return (f"{share:.0f}" if share >= 10 else f"{share:.2g}") + ("", "k", "M", "G")[power]
