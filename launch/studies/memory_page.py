"""Writes results of memory_study.py into docs/memory.md, the runs of each part between markers of its own.

    python launch/studies/memory_study.py runs/memory --part recipe --part any_depth --part block1024
    python launch/studies/memory_page.py runs/memory/study.json

docs/memory.json keeps the runs by name; one of the same name is replaced. Without a file the tables are written again.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import memory_results
from pages import DOCS, Page

DEPTHS = {
    "passkey_depth": "Exact match by the depth of the key, mean and range over the seeds, 20 documents for each:",
    "passkey_newest": "Four keys in one text, each of which replaces the one before, evenly spaced up to the depth; "
    "the newest is asked for (`passkey_newest`):",
}
Runs: TypeAlias = list[dict[str, Any]]


def recall_and_misses(runs: Runs) -> list[str]:
    """Returns the table of recall by length, and a line on the places of wrong answers."""
    return [*memory_results.table(runs), "", *memory_results.where_it_fails(runs)]


def recall_and_depths(runs: Runs) -> list[str]:
    """Returns the tables of recall by length, and by the depth of the key."""
    lines = ["Keys at the beginning, as in the first table:", "", *memory_results.table(runs)]
    for task, title in DEPTHS.items():
        lines += ["", title, "", *memory_results.depth_table(task, runs)]
    return lines


PARTS: dict[str, Callable[[Runs], list[str]]] = {
    "recipe": recall_and_misses,
    "any_depth": recall_and_depths,
    "block1024": memory_results.table,
}


def lines_of(part: str, results: dict[str, Any]) -> list[str]:
    """Returns the Markdown lines of one part."""
    runs = [run for run in results.values() if run["part"] == part]
    return PARTS[part](runs) if runs else []


PAGE = Page(
    DOCS / "memory.md", DOCS / "memory.json", {part: functools.partial(lines_of, part) for part in PARTS}
)  # fmt: skip


def main() -> int:
    """Adds the runs of a study, and writes the page. Returns 0, or 2 if the file is no study's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", type=Path, help="study.json of memory_study.py")
    study = parser.parse_args().study
    results = PAGE.read()
    if study:
        try:
            runs = json.loads(study.read_text(encoding="utf-8"))["runs"]
        except (OSError, ValueError, KeyError, TypeError):
            print(f"{study} is not a file that `memory_study.py` has written", file=sys.stderr)
            return 2
        results |= {run["name"]: run for run in runs if run["part"] in PARTS}
    PAGE.write(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
