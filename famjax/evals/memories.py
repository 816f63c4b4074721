"""What `famjax compare` found: memories beside each other, as JSON and as one page.

An interval of a single seed is over its documents (Wilson's); of several seeds it is over seeds, whose documents stand
or fall together.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import famjax
from famjax.config import TrainConfig
from famjax.config.optimizer import MEMORY
from famjax.evals.reports import charts, html
from famjax.evals.reports.charts import Line, Point
from famjax.evals.statistics import mean_interval, wilson_interval
from famjax.nn.weights import parameter_shapes
from famjax.storage import arrays
from famjax.storage.model_dir import METRICS_JSONL, write_text
from famjax.train.watching.flops import flops_per_token
from famjax.train.watching.summary import row_bytes

COMPARISON_JSON, COMPARISON_HTML = "comparison.json", "comparison.html"
# Points of a training's curve in the report.
MOST_POINTS = 40


class Run(NamedTuple):
    """One training of the comparison.

    Attributes:
      memory, gin_file, seed: what it was.
      config: its settings.
      rows: results of the pass key by length (`evals/tasks/passkey.py`); [] if it diverged.
      diverged: with which words; empty if it did not.
    """

    memory: str
    gin_file: str
    seed: int
    config: TrainConfig
    rows: list[dict[str, Any]]
    diverged: str = ""


def summarize(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that the report says: `memories`, in the order in which they were named, and the common settings."""
    names = list(dict.fromkeys(run.memory for run in runs))
    config = runs[0].config
    tokens = config.batch_size * config.sequence_length
    return {
        "version": famjax.__version__,
        "task": config.task, "seeds": sorted({run.seed for run in runs}),
        "budget": {"steps": config.steps, "tokens": config.steps * tokens},
        "block_size": config.model.memory.block_size,
        "memories": [_memory([run for run in runs if run.memory == name], tokens) for name in names],
    }  # fmt: skip


def _memory(runs: list[Run], tokens_of_step: int) -> dict[str, Any]:
    config = runs[0].config
    lengths = [row["filler_blocks"] for row in next((run.rows for run in runs if run.rows), [])]
    weights, added = _weights(config)
    return {
        "name": runs[0].memory, "gin_file": runs[0].gin_file, "memory": dataclasses.asdict(config.model.memory),
        "weights": weights, "added_weights": added, "state_bytes": row_bytes(config.model),
        "flops_per_token": flops_per_token(config, config.sequence_length),
        "lengths": [_length(runs, blocks) for blocks in lengths],
        "curves": [{"seed": run.seed, "points": curve(run.config.model_dir, tokens_of_step)} for run in runs],
        "diverged": [{"seed": run.seed, "said": run.diverged} for run in runs if run.diverged],
    }  # fmt: skip


def _weights(config: TrainConfig) -> tuple[int, int]:
    """All weights, and those of them that the memory adds."""
    sizes = {path: math.prod(shape) for path, shape in arrays.shapes(parameter_shapes(config.model)).items()}
    return sum(sizes.values()), sum(size for path, size in sizes.items() if path.startswith(MEMORY))


def _length(runs: list[Run], blocks: int) -> dict[str, Any]:
    """Exact match after N blocks of filler, over all seeds that did not diverge."""
    rows = {run.seed: next(row for row in run.rows if row["filler_blocks"] == blocks) for run in runs if run.rows}
    hits = {seed: round(row["exact_match"] * row["documents"]) for seed, row in rows.items()}
    documents, total = sum(row["documents"] for row in rows.values()), sum(hits.values())
    interval: tuple[float, float] | None = wilson_interval(total, documents)
    if len(rows) > 1:
        values = np.concatenate([np.arange(row["documents"]) < hits[seed] for seed, row in rows.items()])
        units = [str(seed) for seed, row in rows.items() for _ in range(row["documents"])]
        interval = mean_interval(values.astype(float).tolist(), units)
    first = next(iter(rows.values()))
    return {
        "filler_blocks": blocks, "filler_tokens": first["filler_tokens"], "updates": first["fam_updates"],
        "documents": documents, "exact_match": total / documents,
        "low": interval[0] if interval else None, "high": interval[1] if interval else None,
        "by_seed": {str(seed): row["exact_match"] for seed, row in rows.items()},
    }  # fmt: skip


def curve(model_dir: str, tokens_of_step: int) -> list[dict[str, float]]:
    """(tokens, loss, exact match of recent documents) of a training, thinned out."""
    path = Path(model_dir) / METRICS_JSONL
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    logged = [line for line in map(json.loads, lines) if "loss" in line]
    every = max(1, -(-len(logged) // MOST_POINTS))
    chosen = logged[::-1][::every][::-1]
    return [
        {"tokens": line["step"] * tokens_of_step, "loss": line["loss"], "exact_match": line.get("exact_match", 0.0)}
        for line in chosen
    ]


# --- the page -------------------------------------------------------------------------------------


def write(folder: str | Path, found: dict[str, Any]) -> tuple[Path, Path]:
    """`comparison.json` and the page of it; where they are."""
    data, shown = Path(folder) / COMPARISON_JSON, Path(folder) / COMPARISON_HTML
    write_text(data, json.dumps(found, indent=2, default=str) + "\n")
    write_text(shown, page(found))
    return data, shown


def page(found: dict[str, Any]) -> str:
    """The whole document, from `comparison.json` alone."""
    memories, budget, seeds = found["memories"], found["budget"], found["seeds"]
    trained = [one for one in memories if one["lengths"]]
    over = "documents" if len(seeds) == 1 else "seeds"
    about = (
        f"{budget['tokens']:,} tokens ({budget['steps']:,} steps) each, {len(seeds)} seed{'s' * (len(seeds) > 1)}, "
        f"blocks of {found['block_size']} tokens. All models of a seed begin with the same weights, but for those that "
        f"a memory adds, and read the same batches. Intervals are 95%, over {over}."
    )
    drawn = [
        ("Exact match against length", charts.lines(_against_length(trained), "tokens of filler", "exact match")),
        *(
            (f"Exact match at {blocks} blocks against bytes of state",
             charts.lines(_against_bytes(trained, blocks), "bytes of state", "exact match"))
            for blocks in _some_lengths(trained)
        ),
        ("Loss against tokens", charts.lines(_losses(memories), "tokens of training", "loss", from_zero_to_one=False)),
    ]  # fmt: skip
    return html.page(
        f"{len(memories)} memories compared",
        [
            html.paragraph(about),
            html.section("What each memory is and costs", _costs(memories)),
            html.section("Exact match by blocks of filler", _table(trained)),
            html.section("Charts", html.charts(drawn)),
            html.section("What diverged", _diverged(memories)),
            html.paragraph(f"famjax {found['version']}; every number is in {COMPARISON_JSON}."),
        ],
    )


def _key(number: int, name: str) -> html.Html:
    return html.Html(f'<span class="key" style="background:{charts.color(number)}"></span>{html.escaped(name)}')


def _costs(memories: Sequence[dict[str, Any]]) -> str:
    head = ("memory", "kind", "bytes of state a row", "weights", "added by the memory", "training FLOPs a token")
    rows = [
        (_key(i, one["name"]), one["memory"]["kind"] if one["memory"]["fam_length"] or one["memory"]["kind"] != "fam"
         else "none", one["state_bytes"], one["weights"], one["added_weights"], round(one["flops_per_token"]))
        for i, one in enumerate(memories)
    ]  # fmt: skip
    return html.table(head, rows)


def _table(memories: Sequence[dict[str, Any]]) -> str:
    lengths = [row["filler_blocks"] for row in memories[0]["lengths"]]
    shown = lambda row: f"{row['exact_match']:.2f} ({_bounds(row)})"
    rows = [(one["name"], *map(shown, one["lengths"])) for one in memories]
    return html.table(("memory", *map(str, lengths)), rows)


def _bounds(row: dict[str, Any]) -> str:
    return "no interval" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"


def _diverged(memories: Sequence[dict[str, Any]]) -> str:
    told = [f"{one['name']}, seed {bad['seed']}: {bad['said']}" for one in memories for bad in one["diverged"]]
    return html.said(told) if told else html.paragraph("Nothing.")


def _point(x: float, row: dict[str, Any]) -> Point:
    told = f"{row['exact_match']:.3f} ({_bounds(row)}), {row['documents']} documents"
    return Point(x, row["exact_match"], row["low"], row["high"], told)


def _against_length(memories: Sequence[dict[str, Any]]) -> list[Line]:
    return [Line(one["name"], [_point(row["filler_tokens"], row) for row in one["lengths"]]) for one in memories]


def _some_lengths(memories: Sequence[dict[str, Any]]) -> list[int]:
    """The shortest and the longest filler."""
    lengths = [row["filler_blocks"] for row in memories[0]["lengths"]]
    return list(dict.fromkeys((lengths[0], lengths[-1])))


def _against_bytes(memories: Sequence[dict[str, Any]], blocks: int) -> list[Line]:
    row_of = lambda one: next(row for row in one["lengths"] if row["filler_blocks"] == blocks)
    return [Line(one["name"], [_point(one["state_bytes"], row_of(one))]) for one in memories]


def _losses(memories: Sequence[dict[str, Any]]) -> list[Line]:
    """One curve a memory, the mean over its seeds where all of them have a value."""
    curves = []
    for one in memories:
        by_tokens: dict[float, list[float]] = {}
        for run in one["curves"]:
            for point in run["points"]:
                by_tokens.setdefault(point["tokens"], []).append(point["loss"])
        means = {tokens: float(np.mean(losses)) for tokens, losses in sorted(by_tokens.items())
                 if len(losses) == len(one["curves"])}  # fmt: skip
        curves.append(Line(one["name"], [Point(x, y, None, None, f"{y:.3f}") for x, y in means.items()]))
    return [line for line in curves if line.points]
