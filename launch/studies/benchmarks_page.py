"""Writes results of benchmarks of the published model, before and after training, into docs/smollm2.md.

    python launch/studies/benchmarks_page.py "A window of 32 tokens=runs/real/benchmarks/results.json"

docs/smollm2_benchmarks.json keeps them by name: one of the same name is replaced, and `"NAME="` removes it.
Without arguments the tables are written again.
"""

import sys
from typing import Any

from pages import DOCS, Page, by_name, publish

SHOWN = {
    "piqa": {"acc": "PIQA, accuracy", "acc_norm": "PIQA, normalised by bytes"},
    "lambada": {"acc": "LAMBADA, accuracy", "perplexity": "LAMBADA, perplexity of the last word"},
    "wikitext": {"bits_per_byte": "WikiText, bits per byte"},
}


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a results.json that the page keeps: value, interval and examples by task, metric and model.

    Raises:
      KeyError: it has none of these tasks.
    """
    tasks = [name for name in SHOWN if all(name in model["tasks"] for model in found["models"])]
    if not tasks:
        raise KeyError("no benchmarks")
    return {
        task: {
            metric: {model["name"]: model["tasks"][task]["metrics"][metric] for model in found["models"]}
            for metric in SHOWN[task]
        }
        for task in tasks
    }


def section(name: str, found: dict[str, Any]) -> list[str]:
    """Returns the table of one evaluation: a row for each metric, a column for each model."""
    first = next(iter(next(iter(found.values())).values()))
    lines = [f"**{name}**:", "", f"| | N | {' | '.join(first)} |", "|---" * (2 + len(first)) + "|"]
    for task, metrics in found.items():
        for metric, models in metrics.items():
            form = ".1f" if metric == "perplexity" else ".3f"
            cells = [
                f"{one['value']:{form}} ({one['low']:{form}}-{one['high']:{form}})" for one in models.values()
            ]  # fmt: skip
            examples = {one["n"] for one in models.values()}
            lines.append(f"| {SHOWN[task][metric]} | {' or '.join(map(str, examples))} | {' | '.join(cells)} |")
    return lines


PAGE = Page(DOCS / "smollm2.md", DOCS / "smollm2_benchmarks.json", "benchmarks", by_name(section))

if __name__ == "__main__":
    sys.exit(publish(PAGE, __doc__, "models", kept, "famjax eval"))
