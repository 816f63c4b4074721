"""Writes tables and a plot of the results of launch/studies/memory_study.py."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pages import ranged, with_interval, without_seed

if TYPE_CHECKING:
    from memory_study import Run

RESULTS_JSON, SAMPLES_JSONL = "results.json", "samples.jsonl"
NEAR = 3  # maximum tokens between a block boundary and the start of an answer that counts as near
# Tasks with a key at any depth, and their titles.
DEPTH_TASKS = {"passkey_depth": "key at any depth", "passkey_newest": "the newest of four keys, by its depth"}
# Runs that the plot shows in addition to the recipe.
PLOTTED = ("bswa_m0", "bswa_m1", "as_carried_seed0", "paper_seed0")


def evaluations(run: "Run", folder: Path) -> list[Path]:
    """Returns the output directories of a run's evaluations."""
    return [folder / f"{run.name}-eval{number or ''}" for number in range(len(run.asked))]


def depths(run: "Run", folder: Path) -> Path:
    """Returns the output directory of a run's evaluation with the key at other depths."""
    return folder / f"{run.name}-depths"


def write(folder: Path, study: dict[str, list["Run"]]) -> None:
    """Writes study.json, study.md and study.png of all runs whose evaluations are finished."""
    runs = {run.name: run for part in study.values() for run in part}
    done = [run for run in runs.values() if all((one / RESULTS_JSON).exists() for one in evaluations(run, folder))]
    found = {run.name: figures(run, folder) for run in done}
    (folder / "study.json").write_text(json.dumps({"runs": list(found.values())}, indent=1) + "\n", encoding="utf-8")
    parts = []
    for title, part in study.items():
        rows = [found[run.name] for run in part if run.name in found]
        parts += [f"## {title}", "", *table(rows), ""] if rows else []
        parts += [*where_it_fails(rows), ""] if rows and title == "recipe" else []
    for task, title in DEPTH_TASKS.items():
        lines = depth_table(task, list(found.values()))
        parts += [f"## {title}", "", *lines, ""] if lines else []
    (folder / "study.md").write_text("\n".join(parts), encoding="utf-8")
    plot(folder / "study.png", [row for row in found.values() if row["part"] == "recipe" or row["name"] in PLOTTED])
    print("\n".join(parts))


def figures(run: "Run", folder: Path) -> dict[str, Any]:
    """Returns the entry of study.json for one run: its cost, its recall, and where it fails."""
    from famjax.cli.gin_config import load_train_config
    from famjax.train.start import targets_of_row
    from famjax.train.watching.flops import flops_per_token

    config, _ = load_train_config([run.experiment], (), ["MODEL_DIR='none'", *run.bindings])
    last = last_line(folder / run.name / "metrics.jsonl")
    tokens = last["step"] * config.batch_size * config.sequence_length
    results = [json.loads((one / RESULTS_JSON).read_text(encoding="utf-8")) for one in evaluations(run, folder)]
    recall = [row for one in results for row in one["models"][0]["passkey"]]
    return {
        "name": run.name, "part": run.part, "about": run.about, "steps": last["step"], "tokens": tokens,
        "flops": tokens * flops_per_token(config, targets_of_row(config)),
        "minutes": minutes(folder / run.name / "metrics.jsonl"),
        "block_size": config.model.memory.block_size, "recall": recall,
        "misses": misses(run, folder, config.model.memory.block_size), "depths": by_depth(run, folder),
    }  # fmt: skip


def by_depth(run: "Run", folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns by task the exact match at each length and depth; {} if the run was not evaluated at depths."""
    path = depths(run, folder) / RESULTS_JSON
    tasks = json.loads(path.read_text(encoding="utf-8"))["models"][0]["tasks"] if path.exists() else {}
    return {
        name: [
            {"length": one["length"], "depth": one["depth"], "value": one["metrics"]["exact_match"]["value"]}
            for one in found["by_depth"]
        ]
        for name, found in tasks.items()
    }


def misses(run: "Run", folder: Path, block_size: int) -> list[int]:
    """Returns for each wrong answer the offset of its start from the nearest block boundary, in tokens."""
    lines = [line for one in evaluations(run, folder) for line in (one / SAMPLES_JSONL).read_text().splitlines()]
    wrong = [sample for sample in map(json.loads, lines) if sample["values"]["exact_match"] < 1]
    half = block_size // 2
    return sorted((sample["tokens"] + half) % block_size - half for sample in wrong)


def where_it_fails(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a line on the number of wrong answers, and of those that start near a block boundary."""
    asked = sum(one["documents"] for row in rows for one in row["recall"])
    found = [place for row in rows for place in row["misses"]]
    near = sum(abs(place) <= NEAR for place in found)
    return [f"Of {asked:,} answers {len(found)} are wrong; {near} of these start within {NEAR} tokens of a boundary."]


def last_line(metrics: Path) -> dict[str, Any]:
    """Returns the last line of a training's metrics.jsonl."""
    last: dict[str, Any] = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
    return last


def minutes(metrics: Path) -> float:
    """Returns the duration of a training from its metrics.jsonl: of all its processes, if it was resumed."""
    seconds = [json.loads(line)["seconds"] for line in metrics.read_text(encoding="utf-8").splitlines()]
    ends = [now for now, then in zip(seconds, [*seconds[1:], 0.0], strict=True) if then <= now]
    return float(sum(ends)) / 60


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a Markdown table of the lengths at which all rows were evaluated."""
    asked = [{one["filler_blocks"] for one in row["recall"]} for row in rows]
    blocks = sorted(set.intersection(*asked))
    head = ["", *(f"{n} block{'s' * (n > 1)}" for n in blocks), "steps", "tokens", "TFLOPs", "minutes"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        recall = [
            with_interval(one["exact_match"], one["low"], one["high"], ".2f")
            for one in row["recall"]
            if one["filler_blocks"] in blocks
        ]
        cost = [
            f"{row['steps']:,}",
            f"{row['tokens'] / 1e6:.1f}M",
            f"{row['flops'] / 1e12:.0f}",
            f"{row['minutes']:.1f}",
        ]
        lines.append("| " + " | ".join([row["about"], *recall, *cost]) + " |")
    return lines


def depth_table(task: str, rows: list[dict[str, Any]]) -> list[str]:
    """Returns a Markdown table with a row per kind of run and length, and a column per depth: mean and range over the
    seeds; [] if no run has results."""
    cells: dict[tuple[str, int], dict[float, list[float]]] = {}
    for row in rows:
        for one in row["depths"].get(task, []):
            at_length = cells.setdefault((without_seed(row["about"]), one["length"]), {})
            at_length.setdefault(one["depth"], []).append(one["value"])
    if not cells:
        return []
    columns = sorted(next(iter(cells.values())))
    lines = ["| | tokens | " + " | ".join(f"depth {depth:g}" for depth in columns) + " |"]
    lines += ["|" + "---|" * (len(columns) + 2)]
    for (kind, length), found in cells.items():
        lines.append(f"| {kind} | {length:,} | " + " | ".join(ranged(found[depth]) for depth in columns) + " |")
    return lines


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Plots exact match against the number of FAM updates, which is that of blocks of filler."""
    if not rows:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.4), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(rows):
        x = [one["filler_tokens"] / row["block_size"] for one in row["recall"]]
        y, low, high = ([one[name] for one in row["recall"]] for name in ("exact_match", "low", "high"))
        style = {"marker": "os^Dv<>P*X"[number % 10], "markersize": 4.5, "linewidth": 1.3}
        axes.plot(x, y, label=row["about"], **style, linestyle="-" if row["part"] == "recipe" else "--")
        axes.fill_between(x, low, high, alpha=0.12, linewidth=0)
    axes.set(xscale="log", xlabel="blocks of filler, each an update of FAM", ylabel="exact match of the pass key")
    axes.set_ylim(-0.03, 1.03)
    axes.axvline(7, color="gray", linewidth=0.8)
    axes.text(7, 0.5, " backpropagation of the recipe", fontsize=8, color="gray")
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=150)
