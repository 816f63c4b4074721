"""Writes recall of keys by name, first and new values apart, into docs/memory.md.

    famjax eval --model runs/rewritten/fam_seed0 ... --task mqar --gin.MqarConfig.rewritten=0.5 --output DIR
    python launch/studies/rewritten.py "AMD EPYC=DIR/results.json"

docs/rewritten.json keeps the figures by the name of the machine: one of the same name is replaced, and `"AMD EPYC="`
removes it. Without a file the tables are written again.
"""

import sys
from typing import Any

from pages import DOCS, Page, by_name, publish, ranged

BY_VALUE, BY_PAIRS = "new values of a key", "pairs"  # labels of the tables that the page shows
VALUES = {0: "first values", 1: "new values"}


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a results.json that the page keeps: for each table the accuracy by row, length and model.

    Raises:
      KeyError: the models were not evaluated on `mqar` with rewritten keys.
    """
    tables: dict[str, dict[str, dict[str, list[float]]]] = {}
    for model in found["models"]:
        by_label = {table["label"]: table["rows"] for table in model["tasks"]["mqar"]["tables"]}
        for label in (BY_VALUE, BY_PAIRS):
            for row in by_label[label]:
                at = tables.setdefault(label, {}).setdefault(str(row["at"]), {})
                at.setdefault(str(row["length"]), []).append(row["value"])
    return {"seeds": len(found["models"]), "tables": tables}


def section(name: str, found: dict[str, Any]) -> list[str]:
    """Returns the tables of one machine: the mean over seeds and their range, by tokens of a document."""
    values, pairs = found["tables"][BY_VALUE], found["tables"][BY_PAIRS]
    rows = [(title, values[str(at)]) for at, title in VALUES.items()]
    rows += [(f"{count} keys", of_pairs) for count, of_pairs in pairs.items()]
    head = [f"{int(length):,} tokens" for length in rows[0][1]]
    lines = [
        f"**{name}**, {found['seeds']} seeds; accuracy, mean and range over the seeds:",
        "",
        f"| | {' | '.join(head)} |",
        "|---" * (1 + len(head)) + "|",
    ]
    return lines + [f"| {title} | {' | '.join(ranged(seeds) for seeds in row.values())} |" for title, row in rows]


PAGE = Page(DOCS / "memory.md", DOCS / "rewritten.json", {"rewritten": by_name(section)})

if __name__ == "__main__":
    sys.exit(publish(PAGE, __doc__, "models", kept, "famjax eval"))
