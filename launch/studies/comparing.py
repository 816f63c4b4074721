"""Writes results of `famjax compare` into docs/compare.md, between its two markers.

    famjax compare --memories fam,infini,deltanet --seeds 0,1,2 --output runs/compare
    python launch/studies/comparing.py "Pass key=runs/compare/comparison.json"

docs/compare.json keeps them by name: one of the same name is replaced, and `"Pass key="` removes it. Several files,
separated by commas, become one table, which has each memory once. Without arguments the tables are written again.
"""

import sys
from typing import Any

from pages import DOCS, Page, by_name, publish, ranged, with_interval

OF_MEMORY = (
    "name", "added_weights", "weights", "state_bytes", "learning_rate", "learning_rates", "steps", "tokens",
    "training_flops", "lengths", "tables", "diverged",
)  # fmt: skip


def kept(*found: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of comparisons that docs/compare.json keeps, without curves and folders. Of several, each memory
    is kept once.

    Raises:
      ValueError: they differ in task, budget or seeds, or in the results of a memory.
    """
    shared = [{name: value for name, value in one.items() if name != "memories"} for one in found]
    if any(one != shared[0] for one in shared):
        raise ValueError("these comparisons differ in more than their memories")
    memories: dict[str, Any] = {}
    for memory in (memory for one in found for memory in one["memories"]):
        one = {name: memory[name] for name in OF_MEMORY}
        one["diverged"] = [training["seed"] for training in memory["diverged"]]
        if memories.setdefault(memory["name"], one) != one:
            raise ValueError(f"{memory['name']} has several results")
    return shared[0] | {"memories": list(memories.values())}


def section(name: str, found: dict[str, Any]) -> list[str]:
    """Returns Markdown lines: the settings of a comparison, its table, and the tables of its longest documents."""
    memories, seeds = found["memories"], found["seeds"]
    first = memories[0]
    said = [
        f"**{name}** ({found['task']}): {found['metric']}, chance {found['chance']:.2g}; blocks of "
        f"{found['block_size']}; {budget(found['budget'])} for each training; the mean over {len(seeds)} "
        f"seed{'s' * (len(seeds) > 1)}, and the range over them.",
        "",
        "| memory | weights, of which its own | state, KiB a row | TFLOPs | "
        + " | ".join(blocks(row["blocks"]) for row in first["lengths"]) + " |",
        "|---" * (4 + len(first["lengths"])) + "|",
    ]  # fmt: skip
    said += [f"| {' | '.join(cells(memory))} |" for memory in memories]
    said += rates(memories)
    over = "seeds" if len(seeds) > 1 else "documents"
    for number, table in enumerate(first["tables"]):
        last = max(row["length"] for row in table["rows"])
        places = few([row["at"] for row in table["rows"] if row["length"] == last])
        said += ["", f"By {table['label']}, in documents of {last:,} tokens, with 95% intervals over {over}:", "",
                 f"| memory | {' | '.join(map(str, places))} |", "|---" * (1 + len(places)) + "|"]  # fmt: skip
        for memory in memories:
            rows = [row for row in memory["tables"][number]["rows"] if row["length"] == last and row["at"] in places]
            values = [with_interval(row["value"], row["low"], row["high"], ".2f") for row in rows]
            said.append(f"| `{memory['name']}` | {' | '.join(values)} |")
    return said


def rates(memories: list[dict[str, Any]]) -> list[str]:
    """Returns the table of training losses by learning rate; empty if no others than the reported ones were tried."""
    tried = {memory["name"]: memory.get("learning_rates", []) for memory in memories}
    columns = sorted({one["rate"] for row in tried.values() for one in row})
    if not columns:
        return []
    said = [
        "",
        "Training loss by learning rate, the mean over the seeds; the results above are those of the best, in bold:",
        "",
        f"| memory | {' | '.join(f'{rate:g}' for rate in columns)} |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for name, row in tried.items():
        losses = {one["rate"]: "diverged" if one["loss"] is None else f"{one['loss']:.3f}" for one in row}
        best = {one["rate"] for one in row if one["best"]}
        shown = (f"**{losses[rate]}**" if rate in best else losses.get(rate, "") for rate in columns)
        said.append(f"| `{name}` | {' | '.join(shown)} |")
    return said


def few(places: list[int]) -> list[int]:
    """Returns the columns of a table: all places, or of more than eight only 0 and the powers of two."""
    return places if len(places) <= 8 else [place for place in places if not place & (place - 1)]


def budget(found: dict[str, Any]) -> str:
    """Returns a comparison's budget in words."""
    if "flops" in found:
        return f"{found['flops']:.3g} FLOPs"
    return f"{found['steps']:,} steps of {found['tokens'] / found['steps']:,.0f} tokens"


def blocks(number: int) -> str:
    """Returns a length in words."""
    return f"{number:,} block{'s' * (number > 1)}"


def cells(memory: dict[str, Any]) -> list[str]:
    """Returns the cells of one memory: costs, and the mean and the range over seeds for each length."""
    lost = f" ({len(memory['diverged'])} diverged)" if memory["diverged"] else ""
    costs = [f"`{memory['name']}`{lost}", f"{memory['weights']:,}, {memory['added_weights']:,}",
             f"{memory['state_bytes'] / 1024:.1f}", f"{memory['training_flops'] / 1e12:.2g}"]  # fmt: skip
    return costs + [ranged(list(row["by_seed"].values())) for row in memory["lengths"]]


PAGE = Page(DOCS / "compare.md", DOCS / "compare.json", {"comparisons": by_name(section)})

if __name__ == "__main__":
    sys.exit(publish(PAGE, __doc__, "memories", kept, "famjax compare"))
