"""Writes results of memory_study.py into docs/memory.md, each part between markers of its own.

    python launch/studies/memory_study.py runs/memory --part recipe --part any_depth
    python launch/studies/memory_page.py recipe=runs/memory/study.json any_depth=runs/memory/study.json

docs/memory.json keeps them. Without arguments the tables are written again.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import memory_results
from pages import DOCS, FOUND, Page, add

DEPTHS = {
    "passkey_depth": "Exact match by the depth of the key, 20 documents per cell:",
    "passkey_newest": "Four keys in one text, each of which replaces the one before, evenly spaced up to the depth; "
    "the newest is asked for (`passkey_newest`):",
}
Runs: TypeAlias = list[dict[str, Any]]


def kept(part: str, found: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a study.json that docs/memory.json keeps: the runs of one part of the study.

    Raises:
      ValueError: there are none.
    """
    runs = [run for run in found["runs"] if run["part"] == part]
    if not runs:
        raise ValueError(f"no run of {part}")
    return {"runs": runs}


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
}


def lines_of(part: str, results: dict[str, Any]) -> list[str]:
    """Returns the Markdown lines of one part."""
    return PARTS[part](results[part]["runs"]) if part in results else []


PAGES = {
    part: Page(DOCS / "memory.md", DOCS / "memory.json", part, functools.partial(lines_of, part)) for part in PARTS
}


def main() -> int:
    """Adds results of some parts, and writes the page. Returns the exit code (`pages.add`)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", nargs="*", metavar=FOUND, help=f"one of {', '.join(PARTS)}, and a study.json")
    given = {one.partition("=")[0]: one for one in parser.parse_args().found}
    if unknown := given.keys() - PAGES:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
    return max(
        add(page, [given[part]] if part in given else [], "runs", functools.partial(kept, part), "memory_study.py")
        for part, page in PAGES.items()
    )


if __name__ == "__main__":
    sys.exit(main())
