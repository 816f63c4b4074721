"""Charts as SVG text: lines with intervals, heat maps. They need no script.

Sizes are in units of a drawing 480 wide, which a phone shows at three quarters: text of size 14 stays readable.
"""

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 52
# Okabe and Ito's palette, which is safe for color blindness; dashes differ too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D00", "#555555")
MOST_TICKS = 6


class Point(NamedTuple):
    """A value with its interval.

    Attributes:
      x, y: coordinates.
      low, high: its interval; None if it has none.
      tooltip: text under the pointer.
    """

    x: float
    y: float
    low: float | None
    high: float | None
    tooltip: str


class Line(NamedTuple):
    """A curve."""

    label: str
    points: Sequence[Point]


def color(number: int) -> str:
    """Returns the color of curve `number`."""
    return COLORS[number % len(COLORS)]


def lines(curves: Sequence[Line], x_label: str, y_label: str, from_zero_to_one: bool = True) -> str:
    """Draws curves over a logarithmic axis (of 1 + x, so that 0 has a place), with bands for intervals."""
    points = [point for curve in curves for point in curve.points]
    xs = sorted({point.x for point in points})
    place = _x_scale(xs)
    low, high = (0.0, 1.0) if from_zero_to_one else _range(points)
    height = HEIGHT - TOP - BOTTOM
    up = lambda y: TOP + height * (1 - (y - low) / (high - low))
    parts = [_axes(x_label, y_label)]
    for value in _steps(low, high):
        parts.append(_grid(up(value), _short(value)))
    for x in _some(xs):
        parts.append(f'<text x="{place(x):.1f}" y="{HEIGHT - BOTTOM + 19}" text-anchor="middle">{in_units(x)}</text>')
    for number, curve in enumerate(curves):
        parts.append(_curve(curve, number, place, up))
    return _svg(f"{y_label} against {x_label}", parts)


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]],
    tooltips: Sequence[Sequence[str]], x_label: str, y_label: str,
) -> str:  # fmt: skip
    """Draws values 0..1 as cells with numbers, darker for higher; None leaves a cell empty."""
    cell_width = (WIDTH - LEFT - RIGHT) / len(columns)
    cell_height = min(44.0, (HEIGHT - TOP - BOTTOM) / len(rows))
    bottom = TOP + cell_height * len(rows)
    parts = [_names(x_label, y_label, bottom, round(bottom + 42))]
    for i, row in enumerate(rows):
        y = TOP + i * cell_height
        parts.append(
            f'<text x="{LEFT - 7}" y="{y + cell_height / 2 + 5:.1f}" text-anchor="end">{html.escape(row)}</text>'
        )
        for j, value in enumerate(values[i]):
            if value is not None:
                parts.append(_cell(LEFT + j * cell_width, y, cell_width, cell_height, value, tooltips[i][j]))
    for j, column in enumerate(columns):
        x = LEFT + (j + 0.5) * cell_width
        parts.append(f'<text x="{x:.1f}" y="{bottom + 20:.0f}" text-anchor="middle">{html.escape(column)}</text>')
    return _svg(f"{y_label} against {x_label}", parts, round(bottom + 52))


def _cell(x: float, y: float, width: float, height: float, value: float, tooltip: str) -> str:
    # From pale to dark blue; numbers on dark cells are white.
    shade = [round(pale + (dark - pale) * value) for pale, dark in ((235, 0), (242, 66), (250, 128))]
    ink = "#fff" if value > 0.45 else "#222"
    number = f'<text x="{x + width / 2:.1f}" y="{y + height / 2 + 5:.1f}" text-anchor="middle" style="fill:{ink}">'
    box = f'<rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" height="{height - 2:.1f}" rx="3"'
    return f'<g><title>{html.escape(tooltip)}</title>{box} fill="rgb{tuple(shade)}"/>{number}{_short(value)}</text></g>'


def _curve(curve: Line, number: int, place: Callable[[float], float], up: Callable[[float], float]) -> str:
    paint = color(number)
    at = [(place(point.x), up(point.y)) for point in curve.points]
    parts = []
    known = [point for point in curve.points if point.low is not None and point.high is not None]
    if len(known) > 1:
        over = [f"{place(point.x):.1f},{up(point.high or 0):.1f}" for point in known]
        under = [f"{place(point.x):.1f},{up(point.low or 0):.1f}" for point in reversed(known)]
        parts.append(f'<polygon points="{" ".join(over + under)}" fill="{paint}" opacity="0.16"/>')
    elif known:
        (one,) = known
        x = place(one.x)
        ends = f'y1="{up(one.low or 0):.1f}" y2="{up(one.high or 0):.1f}"'
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" {ends} stroke="{paint}" stroke-width="2"/>')
    track = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    dashes = ("", "7 4", "2 3")[number % 3]
    parts.append(
        f'<polyline points="{track}" fill="none" stroke="{paint}" stroke-width="2.2" stroke-dasharray="{dashes}"/>'
    )
    for (x, y), point in zip(at, curve.points, strict=True):
        tooltip = html.escape(f"{curve.label}: {point.tooltip}")
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{paint}"><title>{tooltip}</title></circle>')
    return "".join(parts)


def _svg(name: str, parts: Sequence[str], height: int = HEIGHT) -> str:
    label = html.escape(name, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _axes(x_label: str, y_label: str) -> str:
    bottom = HEIGHT - BOTTOM
    line = f'<line x1="{LEFT}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}" class="axis"/>'
    return line + _names(x_label, y_label, bottom, HEIGHT - 8)


def _names(x_label: str, y_label: str, bottom: float, below: int) -> str:
    """Returns the labels of both axes."""
    middle, side = (LEFT + WIDTH - RIGHT) / 2, f"translate(15 {(TOP + bottom) / 2:.0f}) rotate(-90)"
    return (
        f'<text x="{middle}" y="{below}" text-anchor="middle">{html.escape(x_label)}</text>'
        f'<text transform="{side}" text-anchor="middle">{html.escape(y_label)}</text>'
    )


def _grid(y: float, label: str) -> str:
    line = f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" class="grid"/>'
    return f'{line}<text x="{LEFT - 7}" y="{y + 5:.1f}" text-anchor="end">{label}</text>'


def _x_scale(xs: Sequence[float]) -> Callable[[float], float]:
    first, last = math.log2(1 + xs[0]), math.log2(1 + xs[-1])
    inner = WIDTH - LEFT - RIGHT - 36
    if last == first:
        return lambda x: LEFT + 18 + inner / 2
    return lambda x: LEFT + 18 + inner * (math.log2(1 + x) - first) / (last - first)


def _some(xs: Sequence[float]) -> list[float]:
    """Returns at most `MOST_TICKS` evenly spaced values, including the last."""
    step = -(-len(xs) // MOST_TICKS)
    return [x for i, x in enumerate(xs) if (len(xs) - 1 - i) % step == 0]


def _range(points: Sequence[Point]) -> tuple[float, float]:
    values = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.1 * (abs(high) or 1)
    return low - margin, high + margin


def _steps(low: float, high: float) -> list[float]:
    """Returns about five round values between low and high."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") or "0"


def in_units(value: float) -> str:
    """Formats a length with binary units (1k is 1024), rounded to one decimal below 10 units."""
    number = round(value)
    for unit, name in ((2**20, "M"), (2**10, "k")):
        if number >= unit:
            share = f"{number / unit:.0f}" if number >= 10 * unit else f"{number / unit:.1f}".removesuffix(".0")
            return share + name
    return str(number)
