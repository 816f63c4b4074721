"""Tables in the terminal, and the plot of the paper's Fig. 3a."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from famjax.evals import reach
from famjax.evals.reports import charts
from famjax.evals.reports.charts import Line, Point
from famjax.evals.tasks.language import FRAMED
from famjax.process.shown import wide_console

RESULTS_JSON, PLOT_PNG = "results.json", "passkey.png"
# Numbers from here on are printed in scientific notation.
LARGE = 1e5
# Maximum number of bins of a table that the terminal shows; of more, see `legible`.
MOST_BINS = 12


def table_of(title: str, columns: Iterable[str], caption: str = "") -> Table:
    """Returns an empty table, whose cells are aligned to the right."""
    table = Table(title=title, caption=caption or None)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def print_table(models: list[dict[str, Any]]) -> None:
    """Prints the exact match of every model at every length, with 95% intervals."""
    found = [model.get("tasks", {}).get("passkey", {}) for model in models]
    columns = ("filler blocks", "filler tokens", "FAM updates", "documents", *(model["name"] for model in models))
    caption = " | ".join([*notes(models, "passkey"), *_reach_notes(models, found)])
    table = table_of("pass key: exact match (95% interval)", columns, caption)
    for rows in zip(*(model["passkey"] for model in models), strict=True):
        cells = [f"{row['exact_match']:.3f} ({row['low']:.2f}-{row['high']:.2f})" for row in rows]
        # Models may differ in their block size.
        counts = (all_of(f"{row[name]:,.0f}" for row in rows) for name in ("filler_tokens", "fam_updates", "documents"))
        table.add_row(str(rows[0]["filler_blocks"]), *counts, *cells)
    _add_reach(table, found, "exact_match", 4)
    wide_console(40 + 24 * (len(models) + 2)).print(table)


def print_task(models: list[dict[str, Any]], task: str, console: Console | None = None) -> None:
    """Prints a task's metrics of every model, the first one also by length, and notes on problems with examples."""
    summaries = [model["tasks"][task] for model in models]
    metric = next(iter(summaries[0]["metrics"]))
    caption = " | ".join([*notes(models, task), *_reach_notes(models, summaries)])
    columns = ("length", "FAM updates", "examples", *(model["name"] for model in models))
    table = table_of(f"{task}: {metric.replace('_', ' ')} (95% interval)", columns, caption)
    _add_rows(table, summaries, "by_length", metric)
    _add_tables(table, summaries)
    if any("by_source" in one for one in summaries):
        table.add_section()
    _add_rows(table, summaries, "by_source", metric)
    _add_reach(table, summaries, metric, 3)
    if any(one.get("by_length") or one.get("by_source") for one in summaries):
        table.add_section()
    for i, name in enumerate(summaries[0]["metrics"]):
        if i or len({row["length"] for one in summaries for row in one.get("by_length", [])}) != 1:
            label = "all" if not i else name.replace("_", " ")
            cells = [value_text(one["metrics"][name]) if name in one["metrics"] else "" for one in summaries]
            table.add_row(label, "", all_of(str(one["n"]) for one in summaries), *cells)
    wide_console(40 + 24 * (len(models) + 2), console).print(table)


def _add_rows(table: Table, summaries: list[dict[str, Any]], name: str, metric: str) -> None:
    """Adds rows of a metric by length, or by part of the data set, such as `qa1`, and length or position. Models may
    have been evaluated at other lengths: where one has no result, its cell is empty."""
    place = lambda row: tuple(row[key] for key in ("source", "length", "position") if key in row)
    by_place = [{place(row): row for row in one.get(name, [])} for one in summaries]
    for at in sorted({at for rows in by_place for at in rows}):
        found = [rows[at] for rows in by_place if at in rows]
        cells = [value_text(rows[at]["metrics"][metric]) if at in rows else "" for rows in by_place]
        updates = all_of(f"{row['fam_updates']:.0f}" for row in found)
        table.add_row(part_text(found[0]), updates, all_of(str(row["n"]) for row in found), *cells)


def all_of(texts: Iterable[str]) -> str:
    """Returns the texts of several models in one cell, equal ones once: "31", or "31 / 15"."""
    return " / ".join(dict.fromkeys(texts))


def _add_tables(table: Table, summaries: list[dict[str, Any]]) -> None:
    """Adds the `legible` rows of `tables`."""
    for label, length, by_model in tables_of(summaries):
        table.add_section()
        for at in legible(sorted({at for rows in by_model for at in rows})):
            cells = [value_text(rows[at]) if at in rows else "" for rows in by_model]
            n = all_of(str(rows[at]["n"]) for rows in by_model if at in rows)
            table.add_row(f"{length:,}, {label} {at}", "", n, *cells)


def tables_of(summaries: Sequence[dict[str, Any]]) -> Iterator[tuple[str, int, list[dict[int, dict[str, Any]]]]]:
    """Yields (label, length, each model's rows by the number `at`) of the models' tables (`tasks/labelled.py`), at the
    longest length that all models have; if none is common to all, at the longest."""
    tables = [{table["label"]: table["rows"] for table in one.get("tables", [])} for one in summaries]
    for label in dict.fromkeys(label for of_model in tables for label in of_model):
        lengths = [{row["length"] for row in of_model[label]} for of_model in tables if label in of_model]
        length = max(set.intersection(*lengths) or set.union(*lengths))
        yield (
            label,
            length,
            [{row["at"]: row for row in of_model.get(label, []) if row["length"] == length} for of_model in tables],
        )


def legible(places: Sequence[int]) -> list[int]:
    """Returns the bins of a table to show: all up to `MOST_BINS`; of more, 0, powers of two and the last."""
    if len(places) <= MOST_BINS:
        return list(places)
    return [at for at in places if at & (at - 1) == 0 or at == places[-1]]


def part_text(row: dict[str, Any]) -> str:
    """Formats the name of a row: "4,096", "qa1, 4,096" or "75 keys, position 18"."""
    parts = [row["source"]] if "source" in row else []
    parts += [f"{row['length']:,}"] if "length" in row else []
    parts += [f"position {row['position']}"] if "position" in row else []
    return ", ".join(parts)


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


def notes(models: list[dict[str, Any]], task: str) -> list[str]:
    """Returns one note on problems with examples for each model that has any."""
    found = []
    for model in models:
        summary = model["tasks"].get(task, {})
        counts = {
            "truncated": summary.get("truncated", {}).get("examples", 0),
            "unreadable": summary.get("unreadable", {}).get("examples", 0),
            "answers at the token limit": summary.get("unfinished", 0),
            "empty answers": summary.get("empty", 0),
            "with header and licence of Project Gutenberg in the text": summary.get(FRAMED, 0),
        }
        for part, count in summary.get("settings", {}).get("without_room", {}).items():
            counts[f"questions of {part} too long for the shortest length"] = count
        texts = [f"{count} {what}" for what, count in counts.items() if count]
        found += [f"{model['name']}: {', '.join(texts)}"] if texts else []
    return found


def plot(path: str | Path, models: list[dict[str, Any]]) -> None:
    """Plots exact match against filler tokens, on a logarithmic axis, one curve per model, with intervals."""
    figure = Figure(figsize=(7.5, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for number, model in enumerate(models):
        points = [Point(row["filler_tokens"], row["exact_match"], row["low"], row["high"]) for row in model["passkey"]]
        charts.curve(axes, Line(number, model["label"], points))
    trained = max((model.get("trained_filler_tokens") or 0 for model in models), default=0)
    if trained:
        axes.axvline(trained, color="0.5", ls="--", lw=1)
        axes.annotate("gradients reach in training", (trained, 0.2), xytext=(4, 0), textcoords="offset points",
                      fontsize=7, color="0.35", rotation=90, va="center")  # fmt: skip
    axes.set(xscale="log", ylim=(-0.03, 1.03), xlabel="filler (tokens)", ylabel="exact match of the pass key")
    rows, top = models[0]["passkey"], axes.secondary_xaxis("top")
    top.set_xscale("log")
    top.set_xticks([row["filler_tokens"] for row in rows], [f"{row['fam_updates']:.0f}" for row in rows], fontsize=8)
    top.minorticks_off()
    top.set_xlabel("updates of FAM between key and question", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", frameon=False)
    figure.savefig(path)
