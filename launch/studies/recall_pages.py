"""Writes recall of the pass key by length of the filler, over seeds, into docs/quickstart.md, story.md, smollm2.md or
ablations.md, which has two tables.

    python launch/studies/recall_pages.py quickstart "AMD EPYC=runs/quick/eval/results.json" (docs/quickstart.md)
    python launch/studies/recall_pages.py story "AMD EPYC=runs/story/shown/results.json"     pretrained_story.py
    python launch/studies/recall_pages.py smollm2 "AMD EPYC=runs/real/shown/results.json"    real_model_story.py
    python launch/studies/recall_pages.py ablations "AMD EPYC=runs/memory/study.json"        memory_study.py
    python launch/studies/recall_pages.py segments "AMD EPYC=runs/memory/study.json"         its part `segments`

The JSON file beside the page keeps the figures by the name of the machine: one of the same name is replaced, and
`"AMD EPYC="` removes it. Without a file the table is written again. `quickstart` also draws docs/passkey.png.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pages import DOCS, FOUND, Page, add, by_name, ranged, without_seed

# Pages by name; the key that their result files have, and the command that writes these.
WRITTEN_BY = {
    "quickstart": ("models", "famjax eval"),
    "story": ("models", "famjax eval"),
    "smollm2": ("models", "famjax eval"),
    "ablations": ("runs", "memory_study.py"),
    "segments": ("runs", "memory_study.py"),
}
# Rows of docs/quickstart.json in its plot; of those with one name the last.
DRAWN = {
    "gated": "FAM with gated updates, 1,200 steps",
    "fam": "FAM with the paper's update, 2,400 steps",
    "bswa": "BSWA, the same without memory",
}


def kept(part: str, found: dict[str, Any]) -> dict[str, Any]:
    """Returns what a page keeps of a results.json, or of a study.json's `part`: exact match by model, length and seed.

    Raises:
      ValueError: there is nothing, or not all of it was evaluated alike.
    """
    if "models" in found:
        runs = [(model["name"], model["passkey"]) for model in found["models"]]
    else:
        runs = [(run["about"], run["recall"]) for run in found["runs"] if run["part"] == part]
    rows: dict[str, list[list[float]]] = {}
    for name, recall in runs:
        rows.setdefault(without_seed(name), []).append([one["exact_match"] for one in recall])
    lengths = {tuple(one["filler_blocks"] for one in recall) for _, recall in runs}
    documents = {one["documents"] for _, recall in runs for one in recall}
    if len(lengths) != 1 or len(documents) != 1:
        raise ValueError(f"there are {len(runs)} runs, with lengths {lengths} and numbers of documents {documents}")
    return {"blocks": list(*lengths), "documents": documents.pop(), "rows": rows}


def section(name: str, found: dict[str, Any]) -> list[str]:
    """Returns the table of one machine: the mean over seeds and their range, by length of the filler."""
    lines = [
        f"**{name}**, {found['documents']} documents at each length; mean and range over the seeds:",
        "",
        f"| | seeds | {' | '.join(length(number) for number in found['blocks'])} |",
        "|---" * (2 + len(found["blocks"])) + "|",
    ]
    for row, seeds in found["rows"].items():
        cells = [ranged(list(values)) for values in zip(*seeds, strict=True)]
        lines.append(f"| {row} | {len(seeds)} | {' | '.join(cells)} |")
    return lines


def length(blocks: int) -> str:
    """Returns a length of filler in words."""
    return f"{blocks:,} block{'s' * (blocks != 1)}"


def draw(path: Path, results: dict[str, Any]) -> None:
    """Draws the rows of `DRAWN`, the mean over seeds and a band for their range, in the plot of `famjax eval`."""
    from famjax.cli.gin_config import load_train_config
    from famjax.evals.reports.report import plot

    config, _ = load_train_config(["gin/experiments/tiny_fam.gin"], (), ["MODEL_DIR='none'"])
    rows = {name: (found["blocks"], seeds) for found in results.values() for name, seeds in found["rows"].items()}
    models = []
    for name, label in DRAWN.items():
        blocks, seeds = rows[name]
        points = zip(blocks, zip(*seeds, strict=True), strict=True)
        models.append({
            "label": f"{label}, {len(seeds)} seeds", "trained_filler_tokens": config.longest_filler,
            "passkey": [of_length(count, values, config.model.memory.block_size) for count, values in points],
        })  # fmt: skip
    plot(path, models)


def of_length(blocks: int, values: Sequence[float], block_size: int) -> dict[str, float]:
    """Returns a row as in results.json. Over all offsets of the filler to the block boundaries, there are on average
    half a block more tokens than asked for, and two FAM updates more than blocks."""
    of_seeds = {"exact_match": sum(values) / len(values), "low": min(values), "high": max(values)}
    return {"filler_tokens": blocks * block_size + block_size / 2, "fam_updates": blocks + 2} | of_seeds


PAGES = {
    name: Page(
        DOCS / f"{'ablations' if name == 'segments' else name}.md", DOCS / f"{name}.json", {name: by_name(section)}
    )
    for name in WRITTEN_BY
}


def main() -> int:
    """Adds results to one page. Returns the exit code (`pages.add`)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", choices=PAGES)
    parser.add_argument("found", nargs="*", metavar=FOUND, help="a machine, and the file of its results")
    args = parser.parse_args()
    part, verb = WRITTEN_BY[args.page]
    failed = add(PAGES[args.page], args.found, part, functools.partial(kept, args.page), verb)
    if args.page == "quickstart" and not failed:
        draw(DOCS / "passkey.png", PAGES[args.page].read())
    return failed


if __name__ == "__main__":
    sys.exit(main())
