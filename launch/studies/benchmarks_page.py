"""Writes results of benchmarks and texts of the published model, before and after training, into docs/smollm2.md.

    python launch/studies/benchmarks_page.py "A window of 32 tokens=runs/real/benchmarks/results.json"
    python launch/studies/benchmarks_page.py "A book=runs/real/book/results.json,runs/real/book_4/results.json"

docs/smollm2_benchmarks.json keeps them by name: one of the same name is replaced, and `"NAME="` removes it.
Without arguments the tables are written again.
"""

import sys
from typing import Any

from pages import DOCS, Page, by_name, publish, with_interval

SHOWN = {
    "piqa": {"acc": "PIQA, accuracy", "acc_norm": "PIQA, normalised by bytes"},
    "lambada": {"acc": "LAMBADA, accuracy", "perplexity": "LAMBADA, perplexity of the last word"},
    "wikitext": {"bits_per_byte": "WikiText, bits per byte"},
}
# Of `babi`, which has no metric but the share of right answers: by where the facts that answer a question are.
SIDES = {"inside": "bAbI qa1 in a book, the fact in the window", "outside": "the fact outside of it"}
# Of `mqar`: by the number of blocks between a pair and its question.
AWAY = {"0": "words by name, pair and question in one block", "1": "the pair in the block before"}
TITLES = SHOWN | {"babi": SIDES, "mqar": AWAY}


def kept(*found: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of one or more results.json that the page keeps: value, interval and examples by task, metric
    and model; of the task `text` the bits per byte by position, of `babi` the right answers by reach, of `mqar` by
    blocks between pair and question.

    Raises:
      KeyError: they have none of these tasks.
    """
    models = [model for one in found for model in one["models"]]
    if all("text" in model["tasks"] for model in models):
        named = lambda model: f"{model['name']}, {model['model']['memory']['memory_segments']} segments"
        return {"text": {named(model): [positions(row) for row in model["text"]] for model in models}}
    if all("babi" in model["tasks"] for model in models):
        sides = {model["name"]: by_side(model) for model in models}
        return {"babi": {side: {name: of[side] for name, of in sides.items()}
                         for side in SIDES if all(side in of for of in sides.values())}}  # fmt: skip
    if all("mqar" in model["tasks"] for model in models):
        return {"mqar": {away: {model["name"]: at_distance(model, int(away)) for model in models} for away in AWAY}}
    tasks = [name for name in SHOWN if all(name in model["tasks"] for model in models)]
    if not tasks:
        raise KeyError("no benchmarks")
    return {
        task: {
            metric: {model["name"]: model["tasks"][task]["metrics"][metric] for model in models}
            for metric in SHOWN[task]
        }
        for task in tasks
    }


def by_side(model: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the shares of right answers to questions whose facts are all inside, or all outside, of the window; of
    long texts, all can be outside."""
    return {row["side"]: row["metrics"]["word_match"] for row in model["tasks"]["babi"]["by_reach"]}


def at_distance(model: dict[str, Any], away: int) -> dict[str, Any]:
    """Returns the share of right answers `away` blocks after a pair, at the shortest length."""
    rows = model["tasks"]["mqar"]["tables"][0]["rows"]
    return next({name: row[name] for name in ("value", "low", "high", "n")} for row in rows if row["at"] == away)


def positions(row: dict[str, Any]) -> dict[str, Any]:
    """Returns what the page keeps of a row of bits per byte; `to` is None in the row of all positions."""
    names = ("from", "to", "tokens", "bits_per_byte", "bits_per_byte_low", "bits_per_byte_high")
    return {name: row[name] for name in names}


def by_position(name: str, models: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Returns the table of a text: a row for each range of positions, a column for each model."""
    lines = [
        f"**{name}**, bits per byte:",
        "",
        f"| tokens | N | {' | '.join(models)} |",
        "|---" * (2 + len(models)) + "|",
    ]
    for rows in zip(*models.values(), strict=True):
        where = "all" if rows[0]["to"] is None else f"{rows[0]['from']:,} to {rows[0]['to'] - 1:,}"
        names = ("bits_per_byte", "bits_per_byte_low", "bits_per_byte_high")
        cells = [with_interval(*(one[name] for name in names), ".3f", ".2f") for one in rows]
        lines.append(f"| {where} | {rows[0]['tokens']:,} | {' | '.join(cells)} |")
    return lines


def section(name: str, found: dict[str, Any]) -> list[str]:
    """Returns the table of one evaluation: a row for each metric, a column for each model."""
    if "text" in found:
        return by_position(name, found["text"])
    first = next(iter(next(iter(found.values())).values()))
    lines = [f"**{name}**:", "", f"| | N | {' | '.join(first)} |", "|---" * (2 + len(first)) + "|"]
    for task, metrics in found.items():
        for metric, models in metrics.items():
            form = ".1f" if metric == "perplexity" else ".3f"
            cells = [with_interval(one["value"], one["low"], one["high"], form) for one in models.values()]
            examples = {one["n"] for one in models.values()}
            lines.append(f"| {TITLES[task][metric]} | {' or '.join(map(str, examples))} | {' | '.join(cells)} |")
    return lines


PAGE = Page(DOCS / "smollm2.md", DOCS / "smollm2_benchmarks.json", {"benchmarks": by_name(section)})

if __name__ == "__main__":
    sys.exit(publish(PAGE, __doc__, "models", kept, "famjax eval"))
