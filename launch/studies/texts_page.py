"""Writes results of texts_study.py into docs/texts.md: tables by position without memory segments, with one, and
trained on joined texts; and a summary by number of segments and of training steps.

    python launch/studies/texts_study.py runs/texts_study runs/texts
    python launch/studies/texts_page.py "900 steps=runs/texts_study/study.json"

docs/texts.json keeps them by name: one of the same name is replaced, and `"900 steps="` removes it. Without arguments
the tables are written again.
"""

import sys
from collections.abc import Callable
from typing import Any

from pages import DOCS, Page, by_name, publish
from texts_study import BLOCK, READ, difference, mean, parsed, table


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
    """Returns the part of the page with a study's tables by position; empty if only the summary shows it: with several
    segments, with other blocks, or trained longer than the others or in two parts."""
    runs = parsed(",".join(found["bits_per_byte"]["heldout"]))
    most = max(run.segments for run in runs)
    if most > 1 or found["steps"] > STEPS or block_size(found) != BLOCK or any(run.first for run in runs):
        return ""
    return "trained_on_joined" if found.get("join") else "segments" if most else "texts"


def block_size(found: dict[str, Any]) -> int:
    """Returns the tokens of a block in a study."""
    return found.get("block_size", BLOCK)


def summary(results: dict[str, Any]) -> list[str]:
    """Returns a table with a row per kind of training text, training steps and number of memory segments: bits per byte
    over all positions of BSWA and gated FAM."""
    lines = [
        "| trained on | steps | block | M "
        "| BSWA, documents | gated FAM | difference | BSWA, joined | gated FAM | difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for found in sorted(results.values(), key=lambda found: (found.get("join") is not None, found["steps"])):
        runs = parsed(",".join(found["bits_per_byte"]["heldout"]))
        for run in sorted({run.training: run for run in runs}.values(), key=lambda run: run.segments):
            cells = [f"texts of 1 to {found['join']} documents" if found.get("join") else "documents"]
            steps = f"{found['steps']:,}"
            cells += [f"{found.get('first_steps') or steps} + {steps}" if run.first else steps]
            cells += [str(block_size(found)), run.about.removeprefix("M = ")]
            for read in READ:
                bswa, gated = (
                    [row[-1]["bits_per_byte"] for row in found["bits_per_byte"][read].get(one.name, [])]
                    for one in (run._replace(kind="bswa"), run._replace(kind="gated"))
                )
                cells += [f"{mean(bits):.3f}" if bits else "-" for bits in (bswa, gated)]
                cells.append(difference(gated, bswa) if bswa and gated else "-")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def tables(name: str) -> Callable[[dict[str, Any]], list[str]]:
    """Returns the function of the tables of one part."""
    return lambda results: by_name(section)({key: found for key, found in results.items() if part(found) == name})


STEPS = 900  # of the studies with tables by position
PARTS = ("texts", "segments", "trained_on_joined")
PAGE = Page(DOCS / "texts.md", DOCS / "texts.json", {name: tables(name) for name in PARTS} | {"by_segments": summary})

if __name__ == "__main__":
    sys.exit(publish(PAGE, __doc__, "bits_per_byte", lambda found: found, "texts_study.py"))
