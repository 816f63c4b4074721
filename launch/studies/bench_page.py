"""Writes measurements of `famjax bench` into docs/bench.md, between its two markers.

    famjax bench --peers --repeats 3 --output runs/bench/peers
    python launch/studies/bench_page.py "Training, beside PyTorch=runs/bench/peers/bench.json"

docs/bench.json keeps them by name: one of the same name is replaced, and `"NAME="` removes it. Without arguments the
tables are written again. Measure on a machine that does nothing else: its load average is in the page.
"""

import sys
from typing import Any

from pages import DOCS, Page, by_name, of_machine, publish
from rich.table import Table

from famjax.bench.machine import summary
from famjax.bench.report import SUITES, tables


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a bench.json that docs/bench.json keeps: the measurements, and the machine without folders.

    Raises:
      KeyError: it has no measurements.
    """
    suites = {name: found[name] for name in SUITES if name in found}
    if not suites:
        raise KeyError("no measurements")
    return {"machine": of_machine(found["machine"])} | suites


def section(name: str, found: dict[str, Any]) -> list[str]:
    """Returns Markdown lines: the name, its tables and the lines below them, and the machine."""
    lines = [f"**{name}**", ""]
    for one in tables(found):
        lines += [*markdown(one), ""] if isinstance(one, Table) else [f"{one[0].upper()}{one[1:]}.", ""]
    return [*lines, f"{summary(found['machine'])}. {found['machine']['time'].split()[0]}."]


def markdown(table: Table) -> list[str]:
    """Returns a table of a terminal as Markdown lines."""
    title = [f"{table.title[0].upper()}{table.title[1:]}:", ""] if isinstance(table.title, str) else []
    cells = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    rows = [f"| {' | '.join(row)} |" for row in zip(*cells, strict=True)]
    return [*title, rows[0], "|---" * len(cells) + "|", *rows[1:]]


PAGE = Page(DOCS / "bench.md", DOCS / "bench.json", {"measurements": by_name(section)})

if __name__ == "__main__":
    sys.exit(publish(PAGE, __doc__, "machine", kept, "famjax bench"))
