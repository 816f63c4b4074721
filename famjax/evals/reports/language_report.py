"""Table and plot of language modelling by position."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from famjax.evals.reports import charts
from famjax.evals.reports.charts import Line, Point
from famjax.evals.reports.report import print_wide, value_text


def print_table(models: list[dict[str, Any]], task: str = "text") -> None:
    """Prints bits per byte and accuracy of every model by position, with 95% intervals; the last line is over all
    positions."""
    what = "held-out texts" if task == "text" else task
    table = Table(title=f"{what}: bits per byte | next-token accuracy, by position (95% interval)")
    for column in ("positions", "documents", "tokens"):
        table.add_column(column, justify="right")
    for model in models:
        table.add_column(model["name"], justify="right")
    for model in models[1:]:
        table.add_column(f"{models[0]['name']} - {model['name']}, bits per byte", justify="right")
    rows = [model["tasks"][task]["by_position"] for model in models]
    for i, first in enumerate(rows[0]):
        span = "all" if first["to"] is None else f"{first['from']:,} to {first['to'] - 1:,}"
        cells = [_cell(of_model[i]) for of_model in rows]
        cells += [gap_text(of_model[i]["less_than_first"]) for of_model in rows[1:]]
        last_bucket = i + 2 == len(rows[0])
        table.add_row(span, str(first["documents"]), f"{first['tokens']:,}", *cells, end_section=last_bucket)
    print_wide(table, 40 + 32 * (2 * len(models)))


def _cell(row: dict[str, Any]) -> str:
    bits = {"value": row["bits_per_byte"], "low": row["bits_per_byte_low"], "high": row["bits_per_byte_high"]}
    return f"{value_text(bits)} | {row['accuracy']:.3f}"


def gap_text(gap: dict[str, Any], digits: int = 4) -> str:
    """Formats a difference: "-0.0250 (-0.0330 to -0.0160)", without an interval if it has none."""
    mean = f"{gap['mean']:+.{digits}f}"
    return mean if gap["low"] is None else f"{mean} ({gap['low']:+.{digits}f} to {gap['high']:+.{digits}f})"


def plot(path: str | Path, models: list[dict[str, Any]], task: str = "text") -> None:
    """Plots bits per byte and accuracy against the position in the document, on a logarithmic axis."""
    figure = Figure(figsize=(11, 4.3), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name, label in zip(panels, ("bits_per_byte", "accuracy"), ("bits per byte", "next-token accuracy"),
                                 strict=True):  # fmt: skip
        for number, model in enumerate(models):
            rows = [row for row in model["tasks"][task]["by_position"] if row["to"] is not None]
            points = [Point(middle(row), row[name], row[f"{name}_low"], row[f"{name}_high"]) for row in rows]
            charts.curve(axes, Line(number, model["label"], points))
        axes.set(xscale="log", xlabel="position in the document (tokens)", ylabel=label)
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    figure.savefig(path)


def middle(row: dict[str, Any]) -> float:
    """Returns the x coordinate of a row of positions on a logarithmic axis: the geometric mean of its ends.

    The first row, which begins at 0, is placed as if it began at a quarter of its end.
    """
    return float((max(row["from"], row["to"] / 4) * row["to"]) ** 0.5)
