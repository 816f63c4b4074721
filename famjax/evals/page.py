"""`report.html`: what an evaluation says, in one file that needs nothing else: no network, no script.

Everything in it comes from `results.json`. Whatever came from data (paths, prompts, answers) is escaped.
"""

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from famjax.evals import charts
from famjax.evals.charts import Line, Point

REPORT_HTML = "report.html"
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #5b6570; --rule: #d7dce1; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --paper: #14171a; --soft: #9aa4ae; --rule: #343a40; --card: #1d2125; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 16px; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .2em 0; } h2 { font-size: 1.2rem; margin: 2em 0 .3em; border-top: 1px solid var(--rule);
  padding-top: .8em; } h3 { font-size: 1rem; margin: .4em 0; }
p, li, td, th, summary { color: inherit; } .soft, caption { color: var(--soft); font-size: .9rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 16px; }
figure { margin: 0; background: var(--card); border-radius: 8px; padding: 10px; min-width: 0; }
figcaption { font-weight: 600; margin-bottom: 4px; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 14px; fill: var(--ink); }
.axis { stroke: var(--soft); } .grid { stroke: var(--rule); }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: .6em 0; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } caption { text-align: left; }
@media (max-width: 600px) { table { font-size: .82rem; } th, td { padding: 3px 5px; white-space: normal; } }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 6px; margin-right: 6px; }
details { margin: .6em 0; } summary { cursor: pointer; } pre { white-space: pre-wrap; background: var(--card);
  padding: 8px; border-radius: 6px; font-size: .85rem; margin: .4em 0; } .warn { color: #b3541e; }
"""
# Metrics that are no share of 1: their charts find their own range.
UNBOUNDED = ("bits_per_byte",)


def page(results: dict[str, Any]) -> str:
    """The whole document."""
    models = results["models"]
    # A task that a model was not asked is told for the others.
    names = list(dict.fromkeys(name for model in models for name in model["tasks"]))
    sections = [
        _section(name, [(i, model) for i, model in enumerate(models) if name in model["tasks"]]) for name in names
    ]
    settings = json.dumps(results.get("settings", {}), indent=2)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>famjax eval: {_text(', '.join(model['name'] for model in models))}</title>"
        f"<style>{STYLE}</style></head>"
        f"<body><h1>What {_count(len(models), 'model')} made of {_count(len(names), 'task')}</h1>"
        f"{_models(models)}{''.join(sections)}"
        f"<h2>Settings</h2><details><summary>of this evaluation</summary><pre>{_text(settings)}</pre></details>"
        f'<p class="soft">famjax {_text(results.get("version", ""))}. Bands and brackets are 95% intervals: of counted '
        "successes Wilson's, of other means by drawing documents anew. Values under a pointer have their number "
        "of examples.</p></body></html>\n"
    )


def _text(value: Any) -> str:
    return html.escape(str(value))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Cells are HTML already."""
    line = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"
    body = "".join(line(row, "td") for row in rows)
    told = f"<caption>{caption}</caption>" if caption else ""
    return f'<div class="wide"><table>{told}<thead>{line(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def _key(number: int, name: str) -> str:
    return f'<span class="key" style="background:{charts.color(number)}"></span>{_text(name)}'


def _models(models: Sequence[dict[str, Any]]) -> str:
    rows = [
        (_key(i, model["name"]), _text(model["label"].split("(", 1)[-1].rstrip(")")), _text(model["fingerprint"][:12]),
         _text(model["model_dir"]))
        for i, model in enumerate(models)
    ]  # fmt: skip
    return _table(("model", "memory", "fingerprint", "directory"), rows)


# --- one task -------------------------------------------------------------------------------------


def _section(name: str, models: Sequence[tuple[int, dict[str, Any]]]) -> str:
    tasks = [(i, model, model["tasks"][name]) for i, model in models]
    first = tasks[0][2]
    asked = (
        f"{_count(first['n'], 'example')} about {_count(first['documents'], 'document')}, {first['tokens']:,} tokens"
    )
    parts = [f'<h2>{_text(name.replace("_", " "))}</h2><p class="soft">{asked}</p>', _metrics(tasks), _warnings(tasks)]
    drawn = [*_by_length(name, tasks), *_by_position(tasks), *_by_depth(tasks)]
    legend = " &nbsp; ".join(_key(i, model["name"]) for i, model, _ in tasks)
    parts.append(f'<p>{legend}</p><div class="charts">{"".join(drawn)}</div>' if drawn else "")
    parts.append(_misses(tasks))
    settings = json.dumps(first["settings"], indent=2)
    parts.append(f"<details><summary>settings of {_text(name)}</summary><pre>{_text(settings)}</pre></details>")
    return "".join(parts)


def _number(metric: dict[str, Any], sign: str = "") -> str:
    value = metric.get("value", metric.get("mean"))
    told = f"{value:{sign}.3f}"
    return told if metric["low"] is None else f"{told} [{metric['low']:{sign}.3f}, {metric['high']:{sign}.3f}]"


def _gap(gap: dict[str, Any] | None) -> str:
    """A difference in pairs. Where no example differs there is nothing to be drawn anew, and so no interval."""
    if gap is None:
        return ""
    return "the same" if gap["low"] == gap["high"] == 0 else _number(gap, "+")


def _metrics(tasks: Sequence[tuple[int, dict[str, Any], dict[str, Any]]]) -> str:
    """Each metric of each model, and how much more the others have than the first on the same examples."""
    rows = []
    compared = any("against_first" in told for _, _, told in tasks)
    for metric in tasks[0][2]["metrics"]:
        for i, model, told in tasks:
            if metric not in told["metrics"]:
                continue
            gap = told.get("against_first", {}).get(metric)
            cells = [_key(i, model["name"]), _text(metric.replace("_", " ")), _number(told["metrics"][metric])]
            cells += [_gap(gap)] if compared else []
            rows.append([*cells, str(told["metrics"][metric]["n"])])
    head = ["model", "metric", "value [95%]", *(["more than the first, in pairs"] if compared else []), "n"]
    return _table(head, rows)


def _warnings(tasks: Sequence[tuple[int, dict[str, Any], dict[str, Any]]]) -> str:
    said = []
    for _, model, told in tasks:
        cut, bad = told["truncated"], told["unreadable"]
        notes = [
            f"{_count(cut['examples'], 'example')} truncated by {cut['tokens']:,} tokens" if cut["examples"] else "",
            f"{_count(bad['examples'], 'example')} could not be read" if bad["examples"] else "",
            f"{_count(told['unfinished'], 'answer')} did not end by themselves" if told.get("unfinished") else "",
            f"{_count(told['empty'], 'answer')} empty" if told.get("empty") else "",
        ]
        notes = [note for note in notes if note]
        reasons = "".join(f"<li>{_text(one['place'])}: {_text(one['reason'])}</li>" for one in bad["first"])
        if notes:
            said.append(f'<p class="warn">{_text(model["name"])}: {"; ".join(notes)}</p>')
            said.append(
                f"<details><summary>what could not be read</summary><ul>{reasons}</ul></details>" if reasons else ""
            )
    return "".join(said)


def _figure(title: str, svg: str) -> str:
    return f"<figure><figcaption>{title}</figcaption>{svg}</figure>"


def _rows_by_length(name: str, model: dict[str, Any], told: dict[str, Any]) -> list[dict[str, Any]]:
    """`by_length`, also of the pass key, which tells filler instead."""
    if name != "passkey" or "passkey" not in model:
        return list(told.get("by_length", []))
    return [
        {"length": row["filler_tokens"], "fam_updates": row["fam_updates"], "n": row["documents"],
         "metrics": {"exact_match": {"value": row["exact_match"], "low": row["low"], "high": row["high"],
                                     "n": row["documents"]}}}
        for row in model["passkey"]
    ]  # fmt: skip


def _by_length(name: str, tasks: Sequence[tuple[int, dict[str, Any], dict[str, Any]]]) -> list[str]:
    metric = next(iter(tasks[0][2]["metrics"]))
    what = metric.replace("_", " ")
    by_length = [(model["name"], _rows_by_length(name, model, told)) for _, model, told in tasks]
    if not by_length[0][1]:
        return []
    drawn = []
    unit = "filler (tokens)" if name == "passkey" else "length (tokens)"
    updates = "updates of FAM between needle and question"
    x_of_updates = [
        (model, [row | {"x": row["fam_updates"]} for row in rows] if name == "passkey"
         else [row | {"x": row["updates_from"]} for row in told.get("by_updates", [])])
        for (model, rows), (_, _, told) in zip(by_length, tasks, strict=True)
    ]  # fmt: skip
    for title, label, curves in (
        (
            f"{what} by length",
            unit,
            [(model, [row | {"x": row["length"]} for row in rows]) for model, rows in by_length],
        ),
        (f"{what} by updates of FAM", updates, x_of_updates),
    ):
        lines = [
            Line(model, [_point(row["x"], row["metrics"][metric], label) for row in rows]) for model, rows in curves
        ]
        drawn.append(_figure(title, charts.lines(lines, label, what, metric not in UNBOUNDED)))
    return drawn


def _point(x: float, metric: dict[str, Any], label: str) -> Point:
    told = f"{x:,.0f} {label}: {_number(metric)}, n {metric['n']}"
    return Point(x, metric["value"], metric["low"], metric["high"], told)


def _by_depth(tasks: Sequence[tuple[int, dict[str, Any], dict[str, Any]]]) -> list[str]:
    """A heat map for each model: where in the text the needle was, and how long the text."""
    metric = next(iter(tasks[0][2]["metrics"]))
    drawn = []
    for _, model, told in tasks:
        rows = told.get("by_depth", [])
        depths, lengths = (sorted({row[name] for row in rows}) for name in ("depth", "length"))
        if len(depths) < 2:
            continue
        found = {(row["depth"], row["length"]): row["metrics"][metric] for row in rows}
        values = [[found[depth, length]["value"] if (depth, length) in found else None for length in lengths]
                  for depth in depths]  # fmt: skip
        notes = [[f"{length:,} tokens, depth {depth:.0%}: {_number(one)}, n {one['n']}" if one else ""
                  for length in lengths for one in (found.get((depth, length)),)] for depth in depths]  # fmt: skip
        svg = charts.heat_map(
            [f"{depth:.0%}" for depth in depths], [charts.in_units(length) for length in lengths], values, notes,
            "length (tokens)", "depth of the needle",
        )  # fmt: skip
        drawn.append(_figure(f"{_text(model['name'])}: {metric.replace('_', ' ')} by place of the needle", svg))
    return drawn


def _by_position(tasks: Sequence[tuple[int, dict[str, Any], dict[str, Any]]]) -> list[str]:
    drawn = []
    for metric, what in (("accuracy", "next-token accuracy"), ("bits_per_byte", "bits per byte")):
        lines = []
        for _, model, told in tasks:
            rows = [row for row in told.get("by_position", []) if row["to"] is not None]
            points = []
            for row in rows:
                middle = (max(row["from"], row["to"] / 4) * row["to"]) ** 0.5
                place = f"positions {row['from']:,} to {row['to'] - 1:,}"
                low, high = row[f"{metric}_low"], row[f"{metric}_high"]
                told_here = f"{place}: {row[metric]:.4f} [{low:.4f}, {high:.4f}], {row['documents']} documents"
                points.append(Point(middle, row[metric], low, high, told_here))
            lines += [Line(model["name"], points)] if points else []
        if lines:
            label = "position in the document (tokens)"
            drawn.append(_figure(f"{what} by position", charts.lines(lines, label, what, from_zero_to_one=False)))
    return drawn


def _misses(tasks: Sequence[tuple[int, dict[str, Any], dict[str, Any]]]) -> str:
    shown = []
    for i, model, told in tasks:
        for miss in told.get("misses", []):
            what = "log probability" if told["kind"] == "score" else "answer"
            answer = f"{what}: {miss['answer']}\n"
            wanted = f"{answer}wanted: {', '.join(miss['targets'])}"
            shown.append(f"<h3>{_key(i, model['name'])}, {_text(miss['id'])}</h3>")
            shown.append(f"<pre>{_text('... ' + miss['prompt'])}</pre><pre>{_text(wanted)}</pre>")
    return f"<details><summary>some that were missed</summary>{''.join(shown)}</details>" if shown else ""
