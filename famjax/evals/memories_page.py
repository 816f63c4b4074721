"""`comparison.html`: the page of `famjax compare`, from `comparison.json` alone."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from famjax.evals.reports import charts, html, report
from famjax.evals.reports.charts import Line, Point
from famjax.storage.model_dir import write_text

COMPARISON_JSON, COMPARISON_HTML = "comparison.json", "comparison.html"
GIGA = 1e9
# A memory's summary to its x coordinate.
Against = Callable[[dict[str, Any]], float]


def write(folder: str | Path, found: dict[str, Any]) -> tuple[Path, Path]:
    """Writes `comparison.json` and its page. Returns their paths."""
    data, shown = Path(folder) / COMPARISON_JSON, Path(folder) / COMPARISON_HTML
    write_text(data, json.dumps(found, indent=2, default=str) + "\n")
    write_text(shown, page(found))
    return data, shown


def page(found: dict[str, Any]) -> str:
    """Returns the HTML of the page. `found` is the result of `memories.summarize`."""
    memories, metric = found["memories"], found["metric"]
    trained = [one for one in memories if one["lengths"]]
    budget = found["budget"]
    if "flops" in budget:
        spent = f"{budget['flops']:.4g} model FLOPs of training"
    else:
        spent = f"{budget['tokens']:,} tokens ({budget['steps']:,} steps)"
    about = (
        f"Task {found['task']}. {spent} each, {html.count(len(found['seeds']), 'seed')}, blocks of "
        f"{found['block_size']} tokens. All models of a seed begin with the same weights, but for those that a memory "
        f"adds, and read the same batches. Guessing gives an {metric} of {found['chance']:.2g}. Intervals are 95%, "
        f"over {_units(found, trained)}."
    )
    rates = _rates(memories)
    return html.page(
        f"{len(memories)} memories compared on {found['task']}",
        [
            html.paragraph(about),
            html.section("What each memory is and costs", _costs(memories)),
            *([html.section("Learning rates", rates)] if rates else []),
            html.section(f"{metric.capitalize()} by blocks", _by_length(trained)),
            *(html.section(f"{metric.capitalize()} by {label}", part) for label, part in _tables(trained)),
            html.section("Charts", html.charts(_drawn(found, memories, trained))),
            html.section("What diverged", _diverged(memories)),
            html.paragraph(f"famjax {found['version']}; every number is in {COMPARISON_JSON}."),
        ],
    )


def _units(found: dict[str, Any], trained: Sequence[dict[str, Any]]) -> str:
    """Returns what intervals are over: seeds, or documents where all seeds but one diverged, or there is only one."""
    if len(found["seeds"]) == 1:
        return "documents"
    single = [one["name"] for one in trained if len(one["lengths"][0]["by_seed"]) == 1]
    return f"seeds; of {' and '.join(single)}, of which one seed is left, over its documents" if single else "seeds"


# --- tables ---------------------------------------------------------------------------------------


def _costs(memories: Sequence[dict[str, Any]]) -> str:
    head = ("memory", "kind", "bytes of state a row", "weights", "added by the memory", "training FLOPs a token",
            "training FLOPs", "tokens")  # fmt: skip
    rows = [
        (html.key(i, one["name"]), _kind(one["memory"]), one["state_bytes"], one["weights"], one["added_weights"],
         round(one["flops_per_token"]), f"{one['training_flops']:.3g}", one["tokens"])
        for i, one in enumerate(memories)
    ]  # fmt: skip
    return html.table(head, rows)


def _kind(memory: dict[str, Any]) -> str:
    """Returns the kind of a memory in words, from its settings."""
    if memory["kind"] != "fam":
        return str(memory["kind"])
    if memory["fam_length"]:
        return "fam" if memory["fam_update"] == "feedback" else f"fam, {memory['fam_update']}"
    return "feedback segments" if memory["segments_hold"] == "outputs" else "none"


def _rates(memories: Sequence[dict[str, Any]]) -> str:
    """Returns the table of the learning rates that were tried; empty if only the task's was used."""
    rows = [
        (html.key(i, one["name"]), f"{tried['rate']:g}",
         "diverged" if tried["loss"] is None else f"{tried['loss']:.4f}", "reported" if tried["best"] else "")
        for i, one in enumerate(memories) for tried in one["learning_rates"]
    ]  # fmt: skip
    return html.table(("memory", "learning rate", "training loss at the end", ""), rows) if rows else ""


def _by_length(memories: Sequence[dict[str, Any]]) -> str:
    if not memories:
        return html.paragraph("Every training diverged.")
    head = ("memory", *(f"{row['blocks']:,}" for row in memories[0]["lengths"]))
    return html.table(head, [(one["name"], *map(_value, one["lengths"])) for one in memories])


def _tables(memories: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Returns (label, HTML table) of each further table, at the longest length; columns as in `report.legible`."""
    found = []
    for label, length, of in report.tables_of(memories):
        places = report.legible(list(of[0]))
        rows = [(one["name"], *(_value(rows[at]) for at in places)) for one, rows in zip(memories, of, strict=True)]
        found.append((f"{label}, {length:,} tokens", html.table(("memory", *map(str, places)), rows)))
    return found


def _value(row: dict[str, Any]) -> str:
    return f"{row['value']:.2f} ({_bounds(row)})"


def _bounds(row: dict[str, Any]) -> str:
    return "no interval" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"


def _diverged(memories: Sequence[dict[str, Any]]) -> str:
    told = [f"{one['name']}, seed {bad['seed']}: {bad['said']}" for one in memories for bad in one["diverged"]]
    told += [
        f"{one['name']}, learning rate {bad['learning_rate']:g}, seed {bad['seed']}: {bad['said']}"
        for one in memories for bad in one["also_diverged"]
    ]  # fmt: skip
    return html.said(told) if told else html.paragraph("Nothing.")


# --- charts ---------------------------------------------------------------------------------------


def _drawn(
    found: dict[str, Any], memories: Sequence[dict[str, Any]], trained: Sequence[dict[str, Any]]
) -> list[tuple[str, str]]:
    """Returns (title, SVG) of all charts."""
    metric, number = found["metric"], {one["name"]: i for i, one in enumerate(memories)}
    drawn = []
    lines_of = lambda points: [Line(number[one["name"]], one["name"], points(one)) for one in trained]
    if trained:
        lines = lines_of(lambda one: [_point(row["tokens"], row) for row in one["lengths"]])
        drawn.append((f"{metric} against length", charts.lines(lines, found["length"], metric)))
        last = len(trained[0]["lengths"]) - 1
        axes: tuple[tuple[str, int, Against], ...] = (
            ("bytes of state", 2**10, lambda one: one["state_bytes"]),
            ("GFLOPs of training", 1000, lambda one: one["training_flops"] / GIGA),
        )
        for what, thousand, against in axes:
            for i in dict.fromkeys((0, last)):
                lines = lines_of(lambda one, i=i, against=against: [_point(against(one), one["lengths"][i])])
                title = f"{metric} at {html.count(trained[0]['lengths'][i]['blocks'], 'block')} against {what}"
                drawn.append((title, charts.lines(lines, what, metric, thousand=thousand)))
        for label, _, by_memory in report.tables_of(trained):
            rows_of = {one["name"]: rows for one, rows in zip(trained, by_memory, strict=True)}
            lines = lines_of(lambda one, rows_of=rows_of: [_point(at, row) for at, row in rows_of[one["name"]].items()])
            drawn.append((f"{metric} by {label}", charts.lines(lines, label, metric)))
    for name, cost in (("tokens", lambda one: 1.0), ("GFLOPs", lambda one: one["flops_per_token"] / GIGA)):
        if curves := _losses(memories, cost):
            title, label = f"loss against {name}", f"{name} of training"
            drawn.append((title, charts.lines(curves, label, "loss", from_zero_to_one=False, thousand=1000)))
    return drawn


def _point(x: float, row: dict[str, Any]) -> Point:
    trials = f"{row['documents']} documents" if "documents" in row else f"{row['n']} predictions"
    return Point(x, row["value"], row["low"], row["high"], f"{row['value']:.3f} ({_bounds(row)}), {trials}")


def _losses(memories: Sequence[dict[str, Any]], cost: Against) -> list[Line]:
    """Returns the loss curve of each memory, averaged over its seeds at points that all of them have.

    x is the number of tokens times `cost`. Memories without a point are left out.
    """
    curves = []
    for number, one in enumerate(memories):
        by_tokens: dict[float, list[float]] = {}
        for run in one["curves"]:
            for point in run["points"]:
                by_tokens.setdefault(point["tokens"], []).append(point["loss"])
        means = {tokens: float(np.mean(losses)) for tokens, losses in sorted(by_tokens.items())
                 if len(losses) == len(one["curves"])}  # fmt: skip
        points = [Point(x * cost(one), y, None, None, f"{y:.3f}") for x, y in means.items()]
        curves.append(Line(number, one["name"], points))
    return [line for line in curves if line.points]
