"""Writes an evaluation of the quickstart's model, trained with several seeds, into docs/quickstart.md.

    for seed in 0 1 2; do
      famjax train --gin_file gin/experiments/tiny_fam.gin --gin.RANDOM_SEED=$seed --gin.MODEL_DIR="'runs/quick_$seed'"
    done
    famjax eval --model runs/quick_0 --model runs/quick_1 --model runs/quick_2 --output runs/quick \\
        --filler-blocks 1,4,16,64,256,1024
    python launch/studies/quickstart_page.py "AMD EPYC=runs/quick/results.json"

docs/quickstart.json keeps evaluations by the name of the machine: one of the same name is replaced, and `"AMD EPYC="`
removes it. Without arguments the tables are written again.
"""

import sys
from typing import Any

from pages import DOCS, Page, by_name, publish, ranged

OF_LENGTH = ("filler_blocks", "filler_tokens", "documents", "exact_match", "low", "high")


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a results.json that docs/quickstart.json keeps: exact match by model and length."""
    models = found["models"]
    return {"models": [[{name: row[name] for name in OF_LENGTH} for row in model["passkey"]] for model in models]}


def section(name: str, found: dict[str, Any]) -> list[str]:
    """Returns the table of one machine: exact match of each training, their mean and their range."""
    models = found["models"]
    lines = [
        f"**{name}**, {models[0][0]['documents']} documents at each length:",
        "",
        "| filler blocks | filler tokens | "
        + " | ".join(f"training {number}" for number, _ in enumerate(models, 1)) + " | mean (range) |",
        "|---" * (3 + len(models)) + "|",
    ]  # fmt: skip
    for rows in zip(*models, strict=True):
        each = [f"{row['exact_match']:.2f} ({row['low']:.2f}-{row['high']:.2f})" for row in rows]
        length = [f"{rows[0]['filler_blocks']:,}", f"{rows[0]['filler_tokens']:,.0f}"]
        lines.append(f"| {' | '.join([*length, *each, ranged([row['exact_match'] for row in rows])])} |")
    return lines


PAGE = Page(DOCS / "quickstart.md", DOCS / "quickstart.json", "quickstart", by_name(section))

if __name__ == "__main__":
    sys.exit(publish(PAGE, __doc__, "models", kept, "famjax eval"))
