"""Writes results of `memory_study.py --part any_depth` into docs/memory.md, between its two markers.

    python launch/studies/memory_study.py runs/memory --part any_depth
    python launch/studies/memory_page.py any_depth=runs/memory/study.json

docs/memory.json keeps them. Without arguments the tables are written again.
"""

import sys
from typing import Any

import memory_results
from pages import DOCS, Page, publish

TITLES = {
    "passkey_depth": "Exact match by the depth of the key, 20 documents per cell:",
    "passkey_newest": "Four keys in one text, each of which replaces the one before, evenly spaced up to the depth; "
    "the newest is asked for (`passkey_newest`):",
}


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a study.json that docs/memory.json keeps: the runs of `any_depth`."""
    return {"runs": [run for run in found["runs"] if run["part"] == "any_depth"]}


def lines(results: dict[str, Any]) -> list[str]:
    """Returns the tables of the page as Markdown lines."""
    said: list[str] = []
    for found in results.values():
        said += ["Keys at the beginning, as in the first table:", "", *memory_results.table(found["runs"])]
        for task, title in TITLES.items():
            said += ["", title, "", *memory_results.depth_table(task, found["runs"])]
    return said


PAGE = Page(DOCS / "memory.md", DOCS / "memory.json", "any depth", lines)

if __name__ == "__main__":
    sys.exit(publish(PAGE, __doc__, "runs", kept, "memory_study.py"))
