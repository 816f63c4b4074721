"""Tables in the terminal, and the plot of the paper's Fig. 3a."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from famjax.evals import reach
from famjax.evals.reports import charts
from famjax.evals.reports.charts import Line, Point

RESULTS_JSON, PLOT_PNG = "results.json", "passkey.png"
# Numbers from here on are printed in scientific notation.
LARGE = 1e5
# Maximum number of bins of a table that the terminal shows; of more, see `legible`.
MOST_BINS = 12


def print_table(models: list[dict[str, Any]]) -> None:
    """Prints the exact match of every model at every length, with 95% intervals."""
    found = [model.get("tasks", {}).get("passkey", {}) for model in models]
    caption = " | ".join(_reach_notes(models, found))
    table = Table(title="pass key: exact match (95% interval)", caption=caption or None)
    for column in ("filler blocks", "filler tokens", "FAM updates", "documents"):
        table.add_column(column, justify="right")
    for model in models:
        table.add_column(model["name"], justify="right")
    for rows in zip(*(model["passkey"] for model in models), strict=True):
        first = rows[0]
        same = {row["filler_tokens"] for row in rows}
        tokens = " / ".join(f"{t:,.0f}" for t in sorted(same))
        cells = [f"{row['exact_match']:.3f} ({row['low']:.2f}-{row['high']:.2f})" for row in rows]
        updates = f"{first['fam_updates']:.0f}"
        table.add_row(str(first["filler_blocks"]), tokens, updates, str(first["documents"]), *cells)
    _add_reach(table, found, "exact_match", 4)
    print_wide(table, 40 + 24 * (len(models) + 2))


def print_task(models: list[dict[str, Any]], task: str, console: Console | None = None) -> None:
    """Prints a task's metrics of every model, the first one also by length, and notes on problems with examples."""
    summaries = [model["tasks"][task] for model in models]
    metric = next(iter(summaries[0]["metrics"]))
    caption = " | ".join([*_notes(models, task), *_reach_notes(models, summaries)])
    table = Table(title=f"{task}: {metric.replace('_', ' ')} (95% interval)", caption=caption)
    for column in ("length", "FAM updates", "examples"):
        table.add_column(column, justify="right")
    for model in models:
        table.add_column(model["name"], justify="right")
    for rows in zip(*(one.get("by_length", []) for one in summaries), strict=True):
        first = rows[0]
        numbers = f"{first['length']:,}", f"{first['fam_updates']:.0f}", str(first["n"])
        table.add_row(*numbers, *(value_text(row["metrics"][metric]) for row in rows))
    _add_tables(table, summaries)
    _add_sources(table, summaries, metric)
    _add_reach(table, summaries, metric, 3)
    if summaries[0].get("by_length") or summaries[0].get("by_source"):
        table.add_section()
    for i, name in enumerate(summaries[0]["metrics"]):
        if i or len(summaries[0].get("by_length", [])) != 1:
            label = "all" if not i else name.replace("_", " ")
            cells = [value_text(one["metrics"][name]) for one in summaries if name in one["metrics"]]
            table.add_row(label, "", str(summaries[0]["n"]), *cells)
    print_wide(table, 40 + 24 * (len(models) + 2), console)


def _add_sources(table: Table, summaries: list[dict[str, Any]], metric: str) -> None:
    """Adds rows of the first metric by part of the data set, such as `qa1`, and length or position."""
    by_part = [{part_text(row): row for row in one.get("by_source", [])} for one in summaries]
    if any(by_part):
        table.add_section()
    for part in dict.fromkeys(part for rows in by_part for part in rows):
        first = next(rows[part] for rows in by_part if part in rows)
        cells = [value_text(rows[part]["metrics"][metric]) if part in rows else "" for rows in by_part]
        table.add_row(part, f"{first['fam_updates']:.0f}", str(first["n"]), *cells)


def _add_tables(table: Table, summaries: list[dict[str, Any]]) -> None:
    """Adds the `legible` rows of `tables` at the longest length."""
    for tables in zip(*(one.get("tables", []) for one in summaries), strict=True):
        table.add_section()
        rows = [of_longest(one) for one in tables]
        for at in legible(list(rows[0])):
            first, cells = rows[0][at], [value_text(found[at]) if at in found else "" for found in rows]
            table.add_row(f"{first['length']:,}, {tables[0]['label']} {at}", "", str(first["n"]), *cells)


def legible(places: Sequence[int]) -> list[int]:
    """Returns the bins of a table to show: all up to `MOST_BINS`; of more, 0, powers of two and the last."""
    if len(places) <= MOST_BINS:
        return list(places)
    return [at for at in places if at & (at - 1) == 0 or at == places[-1]]


def of_longest(table: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Returns the rows of a table (`tasks/labelled.py`) at the longest length, by the number `at`."""
    longest = max(row["length"] for row in table["rows"])
    return {row["at"]: row for row in table["rows"] if row["length"] == longest}


def part_text(row: dict[str, Any]) -> str:
    """Formats the name of a row: "qa1, 4,096" or "75 keys, position 18"."""
    more = [f"{row['length']:,}"] if "length" in row else []
    more += [f"position {row['position']}"] if "position" in row else []
    return ", ".join([row["source"], *more])


# Table labels of the sides of a model's reach (`evals/reach.py`).
SIDES = {
    reach.INSIDE: "inside the reach of one layer", reach.PARTLY: "partly inside", reach.OUTSIDE: "outside it",
    reach.BEYOND: "of these, beyond all layers",
}  # fmt: skip


def _add_reach(table: Table, summaries: list[dict[str, Any]], metric: str, columns: int) -> None:
    """Adds rows of a metric by the needle's place relative to the reach. Each cell has its own n, because models may
    differ in their reach."""
    sides = [{row["side"]: row for row in one.get("by_reach", [])} for one in summaries]
    if not any(sides):
        return
    table.add_section()
    for side, label in SIDES.items():
        if side == reach.PARTLY and not any(side in rows for rows in sides):
            continue
        cells = [
            f"{value_text(rows[side]['metrics'][metric])}, n {rows[side]['n']}" if side in rows else "n 0"
            for rows in sides
        ]
        table.add_row(label, *[""] * (columns - 1), *cells)


def _reach_notes(models: list[dict[str, Any]], summaries: list[dict[str, Any]]) -> list[str]:
    """Returns notes on the models' reach, one for all models with the same reach."""
    names: dict[str, list[str]] = {}
    for model, one in zip(models, summaries, strict=True):
        if "reach" in one:
            names.setdefault(reach.note(one["reach"]), []).append(model["name"])
    return [f"{', '.join(same)}: {text}" for text, same in names.items()]


def value_text(metric: dict[str, Any]) -> str:
    """Formats a metric: "0.812 (0.75-0.86)", without an interval if it has none."""
    if metric["low"] is None:
        return number_text(metric["value"])
    return f"{number_text(metric['value'])} ({number_text(metric['low'], 2)}-{number_text(metric['high'], 2)})"


def number_text(value: float, digits: int = 3, sign: str = "") -> str:
    """Formats a number: "0.812", or "1.23e+07" from `LARGE` on."""
    return f"{value:{sign}.{digits}f}" if abs(value) < LARGE else f"{value:{sign}.{digits}e}"


def _notes(models: list[dict[str, Any]], task: str) -> list[str]:
    """Returns one note on problems with examples for each model that has any."""
    notes = []
    for model in models:
        summary = model["tasks"][task]
        counts = {
            "truncated": summary["truncated"]["examples"],
            "unreadable": summary["unreadable"]["examples"],
            "answers at the token limit": summary.get("unfinished", 0),
            "empty answers": summary.get("empty", 0),
        }
        for part, count in summary["settings"].get("without_room", {}).items():
            counts[f"questions of {part} too long for the shortest length"] = count
        texts = [f"{count} {what}" for what, count in counts.items() if count]
        notes += [f"{model['name']}: {', '.join(texts)}"] if texts else []
    return notes


def print_wide(table: Table, width: int, console: Console | None = None) -> None:
    """Prints a table; with `width` columns if the output is a file or a pipe, so that nothing wraps."""
    console = console or Console()
    if not console.is_terminal:
        console.width = width
    console.print(table)


def plot(path: str | Path, models: list[dict[str, Any]]) -> None:
    """Plots exact match against filler tokens, on a logarithmic axis, one curve per model, with intervals."""
    figure = Figure(figsize=(7.5, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for number, model in enumerate(models):
        points = [Point(row["filler_tokens"], row["exact_match"], row["low"], row["high"]) for row in model["passkey"]]
        charts.curve(axes, number, Line(model["label"], points))
    trained = max((model.get("trained_filler_tokens") or 0 for model in models), default=0)
    if trained:
        axes.axvline(trained, color="0.5", ls="--", lw=1)
        axes.annotate("gradients reach in training", (trained, 0.5), xytext=(4, 0), textcoords="offset points",
                      fontsize=8, color="0.35", rotation=90, va="center")  # fmt: skip
    axes.set(xscale="log", ylim=(-0.03, 1.03), xlabel="filler (tokens)", ylabel="exact match of the pass key")
    _second_axis(axes, models[0]["passkey"])
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", frameon=False)
    figure.savefig(path)


def _second_axis(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Adds the number of FAM updates of each length along the top."""
    top = axes.secondary_xaxis("top")
    top.set_xscale("log")
    top.set_xticks([row["filler_tokens"] for row in rows], [f"{row['fam_updates']:.0f}" for row in rows], fontsize=8)
    top.minorticks_off()
    top.set_xlabel("updates of FAM between key and question", fontsize=9)
