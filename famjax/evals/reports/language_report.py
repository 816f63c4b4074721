"""Table and plot of language modelling by position."""

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from famjax.evals.reports import charts
from famjax.evals.reports.charts import Line, Point
from famjax.evals.reports.report import all_of, notes, table_of, value_text
from famjax.process.shown import wide_console


def print_table(models: list[dict[str, Any]], task: str = "text") -> None:
    """Prints bits per byte and accuracy of every model by position, with 95% intervals; the last line is over all
    positions."""
    what = "held-out texts" if task == "text" else task
    unlike = [model["name"] for model in models[1:] if model["tasks"][task].get("against_first") == {}]
    first, *others = names = [model["name"] for model in models]
    gaps = (f"{first} - {name}, bits per byte" for name in others)
    columns = ("positions", "documents", "tokens", *names, *gaps)
    caption = notes(models, task)
    if unlike:
        caption.append(f"{', '.join(unlike)}: not compared, since --longest ended the texts at other places")
    title = f"{what}: bits per byte | next-token accuracy, by position (95% interval)"
    table = table_of(title, columns, " | ".join(caption))
    # A tokenizer that makes fewer tokens of the same documents does not reach the last positions.
    by_span = [{(row["to"] or math.inf, row["from"]): row for row in model["tasks"][task]["by_position"]}
               for model in models]  # fmt: skip
    spans = sorted({span for rows in by_span for span in rows})
    for i, span in enumerate(spans):
        found = [rows[span] for rows in by_span if span in rows]
        text = "all" if found[0]["to"] is None else f"{found[0]['from']:,} to {found[0]['to'] - 1:,}"
        cells = [_cell(rows[span]) if span in rows else "" for rows in by_span]
        cells += [gap_text(rows[span]["less_than_first"]) if span in rows else "" for rows in by_span[1:]]
        counts = (all_of(f"{row[name]:,}" for row in found) for name in ("documents", "tokens"))
        table.add_row(text, *counts, *cells, end_section=i + 2 == len(spans))
    wide_console(40 + 32 * (2 * len(models))).print(table)


def _cell(row: dict[str, Any]) -> str:
    bits = {"value": row["bits_per_byte"], "low": row["bits_per_byte_low"], "high": row["bits_per_byte_high"]}
    return f"{value_text(bits)} | {row['accuracy']:.3f}"


def gap_text(gap: dict[str, Any] | None, digits: int = 4) -> str:
    """Formats a difference: "-0.0250 (-0.0330 to -0.0160)", without an interval if it has none; empty if None."""
    if gap is None:
        return ""
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
