"""The table of two pages: recall of the pass key by length of the filler, over several seeds."""

import re
from typing import Any

from pages import ranged


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the part that a page keeps of a results.json or study.json: exact match by model, length and seed.

    Raises:
      ValueError: there is nothing, or not all of it was evaluated alike.
    """
    if "models" in found:
        runs = [(model["name"], model["passkey"]) for model in found["models"]]
    else:
        runs = [(run["about"], run["recall"]) for run in found["runs"] if run["part"] == "ablations"]
    rows: dict[str, list[list[float]]] = {}
    for name, recall in runs:
        rows.setdefault(without_seed(name), []).append([one["exact_match"] for one in recall])
    lengths = {tuple(one["filler_blocks"] for one in recall) for _, recall in runs}
    documents = {one["documents"] for _, recall in runs for one in recall}
    if len(lengths) != 1 or len(documents) != 1:
        raise ValueError(f"there are {len(runs)} runs, with lengths {lengths} and numbers of documents {documents}")
    return {"blocks": list(*lengths), "documents": documents.pop(), "rows": rows}


def without_seed(name: str) -> str:
    """Returns a run's name or title without its seed at the end."""
    return re.sub(r"(_seed|, seed )\d+$", "", name)


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
