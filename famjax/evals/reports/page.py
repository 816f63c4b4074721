"""`report.html`: the report of an evaluation, one self-contained file without scripts.

Its content comes from `results.json`. Text from data (paths, prompts, answers) is escaped.
"""

import json
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, TypeAlias

from famjax.config.text import BadText, json_of
from famjax.evals import reach
from famjax.evals.reports import charts, html, language_report, report
from famjax.evals.reports.charts import Line, Point
from famjax.evals.tasks.language import FRAMED
from famjax.storage.model_dir import write_text

REPORT_HTML = "report.html"
# Begins the task of results of lm-evaluation-harness.
HARNESS = "lm-eval:"
# Metrics that are not in [0, 1]: their charts choose their own range.
UNBOUNDED = ("bits_per_byte",)
# The models that were evaluated on a task: (number among all models, entry in the results, its summary of the task).
Evaluated: TypeAlias = Sequence[tuple[int, dict[str, Any], dict[str, Any]]]


def report_replaced(folder: str | Path, task: str) -> None:
    """Prints that the results in a folder will be replaced, if they are of a task that is not in `task`.

    `task` is that of `results.json`: names, separated by commas, after `lm-eval:` if they are the harness's.
    """
    path = Path(folder) / report.RESULTS_JSON
    before, now = _tasks(task_of(folder)), _tasks(task)
    if lost := [name for name in before if name not in now]:
        every = ",".join(dict.fromkeys(before + now))
        both = "" if HARNESS in every else f"; for both in one, evaluate --task {every}, which reuses the answers"
        print(f"replaces the results of {', '.join(lost)} in {path}, unless you name another directory with --output"
              f"{both}", file=sys.stderr)  # fmt: skip


def task_of(folder: str | Path) -> str:
    """Returns the task of the evaluation whose results are in a folder; "" without one, or for a comparison."""
    path = Path(folder) / report.RESULTS_JSON
    try:
        found = json_of(path.read_bytes(), str(path)) if path.exists() else {}
    except BadText:  # there is no result to lose
        found = {}
    return str(found.get("task", "")) if isinstance(found, dict) else ""


def _tasks(task: str) -> list[str]:
    """Returns the names in `task` of `results.json`, each with its prefix."""
    prefix = HARNESS if task.startswith(HARNESS) else ""
    return [prefix + name.strip() for name in task.removeprefix(prefix).split(",") if name.strip()]


def write(folder: str | Path, results: dict[str, Any]) -> tuple[Path, Path]:
    """Writes `results.json` and its page. Returns their paths."""
    data, shown = Path(folder) / report.RESULTS_JSON, Path(folder) / REPORT_HTML
    write_text(data, json.dumps(results, indent=2) + "\n")
    write_text(shown, page(results))
    return data, shown


def page(results: dict[str, Any]) -> str:
    """Returns the HTML of the page. `results` is the content of `results.json`."""
    models = results["models"]
    # Models may have been evaluated on different tasks.
    names = list(dict.fromkeys(name for model in models for name in model["tasks"]))
    sections = [
        _section(name, [(i, model) for i, model in enumerate(models) if name in model["tasks"]]) for name in names
    ]
    settings = html.details("of this evaluation", html.pre(json.dumps(results.get("settings", {}), indent=2)))
    about = (
        f"famjax {results.get('version', '')}. Bands and brackets are 95% intervals: Wilson's for proportions, "
        f"bootstrapped over documents otherwise. Tooltips of points and cells have the number of examples n."
    )
    title = f"Evaluation of {html.count(len(models), 'model')} on {html.count(len(names), 'task')}"
    return html.page(title, [_models(models), *sections, html.section("Settings", settings, html.paragraph(about))])


def _models(models: Sequence[dict[str, Any]]) -> str:
    rows = [
        (html.key(i, model["name"]), model["label"].rpartition("(")[2].rstrip(")"), model["fingerprint"][:12],
         model["model_dir"])
        for i, model in enumerate(models)
    ]  # fmt: skip
    return html.table(("model", "memory", "fingerprint", "directory"), rows)


# --- one task -------------------------------------------------------------------------------------


def _section(name: str, models: Sequence[tuple[int, dict[str, Any]]]) -> str:
    tasks = [(i, model, model["tasks"][name]) for i, model in models]
    first = tasks[0][2]
    examples, documents = html.count(first["n"], "example"), html.count(first["documents"], "document")
    size = f"{examples} from {documents}, {first['tokens']:,} tokens"
    drawn = [*_by_length(name, tasks), *_by_position(tasks), *_by_depth(tasks), *_tables(tasks)]
    legend = " &nbsp; ".join(html.key(i, model["name"]) for i, model, _ in tasks)
    return html.section(
        name.replace("_", " "), f"<small>{size}</small>", _metrics(tasks), _warnings(tasks), _by_reach(tasks),
        _by_source(tasks),
        f"<p>{legend}</p>" if drawn else "", html.charts(drawn), _misses(tasks),
        html.details(f"settings of {name}", html.pre(json.dumps(first["settings"], indent=2))),
    )  # fmt: skip


def _first_metric(tasks: Evaluated) -> tuple[str, str]:
    """Returns the metric that tables by length, part or depth show, and its name in words."""
    metric = next(iter(tasks[0][2]["metrics"]))
    return metric, metric.replace("_", " ")


def _number(metric: dict[str, Any], sign: str = "") -> str:
    value = metric.get("value", metric.get("mean"))
    text, *ends = (
        report.number_text(one, sign=sign) for one in (value, metric["low"], metric["high"]) if one is not None
    )
    return f"{text} [{ends[0]}, {ends[1]}]" if ends else text


def _gap(gap: dict[str, Any] | None) -> str:
    """Formats a paired difference; if no example differs, the interval is [0, 0] and only "the same" is shown."""
    if gap is None:
        return ""
    return "the same" if gap["low"] == gap["high"] == 0 else _number(gap, "+")


def _metrics(tasks: Evaluated) -> str:
    """Returns the table of each metric of each model, with paired differences from the first model."""
    rows = []
    compared = any("against_first" in summary for _, _, summary in tasks)
    for metric in tasks[0][2]["metrics"]:
        for i, model, summary in tasks:
            if metric not in summary["metrics"]:
                continue
            gap = summary.get("against_first", {}).get(metric)
            cells = [html.key(i, model["name"]), metric.replace("_", " "), _number(summary["metrics"][metric])]
            cells += [_gap(gap)] if compared else []
            rows.append([*cells, summary["metrics"][metric]["n"]])
    head = ["model", "metric", "value [95%]", *(["paired difference from the first"] if compared else []), "n"]
    return html.table(head, rows) + _gaps_by_length(tasks)


def _by_reach(tasks: Evaluated) -> str:
    """Returns the table of the first metric by the needle's place relative to the model's reach."""
    metric, what = _first_metric(tasks)
    rows, notes = [], []
    for i, model, summary in tasks:
        for row in summary.get("by_reach", []):
            within = f"{row['distance'][0]:,} to {row['distance'][1]:,}"
            side = report.SIDES[row["side"]]
            rows.append((html.key(i, model["name"]), side, within, _number(row["metrics"][metric]), row["n"]))
        if "reach" in summary:
            notes.append(html.paragraph(f"{model['name']}: {reach.note(summary['reach'])}."))
    if not rows:
        return ""
    head = ("model", "the needle lies", "tokens from its start to the question's end", f"{what} [95%]", "n")
    return html.table(head, rows) + "".join(notes)


def _by_source(tasks: Evaluated) -> str:
    """Returns the table of the first metric by part of the data set, and length or position."""
    metric, what = _first_metric(tasks)
    rows = [
        (html.key(i, model["name"]), report.part_text(row), _number(row["metrics"][metric]), row["n"])
        for i, model, summary in tasks for row in summary.get("by_source", [])
    ]  # fmt: skip
    head = ("model", "part", f"{what} [95%]", "n")
    return html.details("by part of the data set", html.table(head, rows)) if rows else ""


def _gaps_by_length(tasks: Evaluated) -> str:
    """Returns the table of paired differences from the first model in the first metric, by length."""
    metric, what = _first_metric(tasks)
    rows = []
    for i, model, summary in tasks:
        for row in summary.get("against_first_by_length", []):
            gap = row["metrics"].get(metric)
            if gap is None:
                continue
            length = f"{row['length']:,} tokens" if "length" in row else f"{row['filler_blocks']:,} blocks of filler"
            rows.append((html.key(i, model["name"]), length, _gap(gap), gap["n"]))
    if not rows:
        return ""
    head = ("model", "length", f"{what}: paired difference from the first", "n")
    return html.details("paired differences by length", html.table(head, rows))


def _warnings(tasks: Evaluated) -> str:
    parts = []
    for _, model, summary in tasks:
        cut, bad = summary["truncated"], summary["unreadable"]
        counts = (
            (cut["examples"], "example", f"truncated by {cut['tokens']:,} tokens"),
            (bad["examples"], "example", "could not be read"),
            (summary.get("unfinished"), "answer", "at the token limit"),
            (summary.get("empty"), "answer", "empty"),
            (summary.get(FRAMED), "text", "with header and licence of Project Gutenberg"),
            *((number, "question", f"of {part} too long for the shortest length")
              for part, number in summary["settings"].get("without_room", {}).items()),
        )  # fmt: skip
        notes = [f"{html.count(number, what)} {how}" for number, what, how in counts if number]
        if summary.get("against_first") == {}:
            notes.append("not compared with the first model: no common example, or texts of other lengths")
        reasons = "".join(html.paragraph(f"{one['place']}: {one['reason']}") for one in bad["first"])
        if notes:
            parts.append(f'<p class="warn">{escape(model["name"])}: {"; ".join(notes)}</p>')
            parts.append(
                f"<details><summary>unreadable examples</summary><ul>{reasons}</ul></details>" if reasons else ""
            )
    return "".join(parts)


def _rows_by_length(name: str, model: dict[str, Any], summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns `by_length`; for the pass key, rows by tokens of filler."""
    if name != "passkey" or "passkey" not in model:
        return list(summary.get("by_length", []))
    return [
        {"length": row["filler_tokens"], "fam_updates": row["fam_updates"], "n": row["documents"],
         "metrics": {"exact_match": {"value": row["exact_match"], "low": row["low"], "high": row["high"],
                                     "n": row["documents"]}}}
        for row in model["passkey"]
    ]  # fmt: skip


def _by_length(name: str, tasks: Evaluated) -> list[tuple[str, str]]:
    metric, what = _first_metric(tasks)
    by_length = [(i, model["name"], _rows_by_length(name, model, summary)) for i, model, summary in tasks]
    if not by_length[0][2]:
        return []
    drawn = []
    unit = "filler (tokens)" if name == "passkey" else "length (tokens)"
    updates = "updates of FAM between needle and question"
    x_of_updates = [
        (i, model, [row | {"x": row["fam_updates"]} for row in rows] if name == "passkey"
         else [row | {"x": row["updates_from"]} for row in summary.get("by_updates", [])])
        for (i, model, rows), (_, _, summary) in zip(by_length, tasks, strict=True)
    ]  # fmt: skip
    for title, label, curves in (
        (
            f"{what} by length",
            unit,
            [(i, model, [row | {"x": row["length"]} for row in rows]) for i, model, rows in by_length],
        ),
        (f"{what} by updates of FAM", updates, x_of_updates),
    ):
        lines = [
            Line(i, model, [_point(row["x"], row["metrics"][metric], label) for row in rows])
            for i, model, rows in curves
        ]
        drawn.append((title, charts.lines(lines, label, what, metric not in UNBOUNDED)))
    return drawn


def _point(x: float, metric: dict[str, Any], label: str) -> Point:
    tooltip = f"{x:,.0f} {label}: {_number(metric)}, n {metric['n']}"
    return Point(x, metric["value"], metric["low"], metric["high"], tooltip)


def _by_depth(tasks: Evaluated) -> list[tuple[str, str]]:
    """Returns a heat map for each model: depth of the needle against length of the text."""
    metric, what = _first_metric(tasks)
    drawn = []
    for _, model, summary in tasks:
        rows = summary.get("by_depth", [])
        of = "length" if rows and "length" in rows[0] else "source"  # a part of the data set instead
        depths, lengths = (sorted({row[name] for row in rows}) for name in ("depth", of))
        if len(depths) < 2:
            continue
        found = {(row["depth"], row[of]): row["metrics"][metric] for row in rows}
        named = (lambda length: f"{length:,} tokens") if of == "length" else str
        values = [[found[depth, length]["value"] if (depth, length) in found else None for length in lengths]
                  for depth in depths]  # fmt: skip
        notes = [[f"{named(length)}, depth {depth:.0%}: {_number(one)}, n {one['n']}" if one else ""
                  for length in lengths for one in (found.get((depth, length)),)] for depth in depths]  # fmt: skip
        svg = charts.heat_map(
            [f"{depth:.0%}" for depth in depths],
            [charts.in_units(length) if of == "length" else length for length in lengths], values, notes,
            "length (tokens)" if of == "length" else "", "depth of the needle",
        )  # fmt: skip
        drawn.append((f"{model['name']}: {what} by depth of the needle", svg))
    return drawn


def _by_position(tasks: Evaluated) -> list[tuple[str, str]]:
    drawn = []
    for metric, what in (("accuracy", "next-token accuracy"), ("bits_per_byte", "bits per byte")):
        lines = []
        for i, model, summary in tasks:
            rows = [row for row in summary.get("by_position", []) if row["to"] is not None]
            points = []
            for row in rows:
                place = f"positions {row['from']:,} to {row['to'] - 1:,}"
                low, high = row[f"{metric}_low"], row[f"{metric}_high"]
                between = "" if low is None else f" [{low:.4f}, {high:.4f}]"
                tooltip = f"{place}: {row[metric]:.4f}{between}, {html.count(row['documents'], 'document')}"
                points.append(Point(language_report.middle(row), row[metric], low, high, tooltip))
            lines += [Line(i, model["name"], points)] if points else []
        if lines:
            label = "position in the document (tokens)"
            drawn.append((f"{what} by position", charts.lines(lines, label, what, from_zero_to_one=False)))
    return drawn


def _tables(tasks: Evaluated) -> list[tuple[str, str]]:
    """Returns a chart of each of the task's tables (`report.tables_of`)."""
    drawn = []
    for label, length, by_model in report.tables_of([summary for _, _, summary in tasks]):
        lines = [
            Line(i, model["name"], [_point(at, row, label) for at, row in rows.items()])
            for (i, model, _), rows in zip(tasks, by_model, strict=True)
        ]
        drawn.append((f"accuracy by {label}, {length:,} tokens", charts.lines(lines, label, "accuracy")))
    return drawn


def _misses(tasks: Evaluated) -> str:
    shown = []
    for i, model, summary in tasks:
        for miss in summary.get("misses", []):
            what = "log probability" if summary["kind"] in ("score", "label") else "answer"
            answer = f"{what}: {miss['answer']}\n"
            expected = f"{answer}expected: {', '.join(miss['targets'])}"
            shown.append(f"<h3>{html.key(i, model['name'])}, {escape(miss['id'])}</h3>")
            shown.append(html.pre("... " + miss["prompt"]) + html.pre(expected))
    return html.details("examples of misses", *shown) if shown else ""
