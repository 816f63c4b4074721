"""Writes results of texts_study.py into docs/texts.md: without memory segments, with them, and trained on joined texts.

    python launch/studies/texts_study.py runs/texts_study runs/texts
    python launch/studies/texts_page.py "900 steps=runs/texts_study/study.json"

docs/texts.json keeps them by name: one of the same name is replaced, and `"900 steps="` removes it. Without arguments
the tables are written again.
"""

import sys
from collections.abc import Callable
from typing import Any

from pages import DOCS, Page, by_name, publish
from texts_study import READ, parsed, table


def section(name: str, found: dict[str, Any]) -> list[str]:
    """Returns the tables of a study as Markdown lines: held-out documents one by one, and joined."""
    seeds = ", ".join(map(str, found["seeds"]))
    said = f"({name}; the mean over seeds {seeds}; of differences also the range over them)"
    lines: list[str] = []
    for read, title in READ.items():
        models = found["bits_per_byte"][read]
        lines += [f"**{title}** {said}", "", *table(parsed(",".join(models)), models), ""]
    return lines[:-1]


def part(found: dict[str, Any]) -> str:
    """Returns the part of the page that a study belongs to."""
    if found.get("join"):
        return "trained_on_joined"
    return "segments" if any(run.segments for run in parsed(",".join(found["bits_per_byte"]["heldout"]))) else "texts"


def tables(name: str) -> Callable[[dict[str, Any]], list[str]]:
    """Returns the function of the tables of one part."""
    return lambda results: by_name(section)({key: found for key, found in results.items() if part(found) == name})


PARTS = ("texts", "segments", "trained_on_joined")
PAGE = Page(DOCS / "texts.md", DOCS / "texts.json", {name: tables(name) for name in PARTS})

if __name__ == "__main__":
    sys.exit(publish(PAGE, __doc__, "bits_per_byte", lambda found: found, "texts_study.py"))
