"""Results of `famjax compare`: memories side by side, on any task (`yardsticks.py`). `memories_page.py` renders them.

With a single seed, intervals are over its documents. With several seeds, they are over seeds, because the documents of
one model are not independent.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import famjax
from famjax.config import TrainConfig
from famjax.config.optimizer import MEMORY
from famjax.evals.statistics import ratio_interval, wilson_interval
from famjax.evals.yardsticks import Yardstick
from famjax.nn.weights import parameter_shapes
from famjax.storage import arrays
from famjax.storage.model_dir import METRICS_JSONL
from famjax.train.start import targets_of_row
from famjax.train.watching.flops import flops_per_token
from famjax.train.watching.summary import row_bytes

# Maximum number of points of a training curve in the report.
MOST_POINTS = 40


class Run(NamedTuple):
    """One training of the comparison.

    Attributes:
      memory, gin_file, seed: name and gin file of the memory, and the seed.
      config: settings of the training.
      rows: results by length (`yardsticks.py`); [] if it diverged.
      diverged: the error with which it diverged; empty if it did not.
      tables: further results (`tasks/labelled.py`).
    """

    memory: str
    gin_file: str
    seed: int
    config: TrainConfig
    rows: list[dict[str, Any]]
    diverged: str = ""
    tables: Sequence[Mapping[str, Any]] = ()


def summarize(
    runs: Sequence[Run], task: Yardstick, flops: int = 0, rates: Mapping[str, list[dict[str, Any]]] | None = None,
    also_diverged: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Returns the content of the report: the common settings, and `memories` in the order in which they were named.

    Args:
      runs, task: the trainings that are reported, and the task on which they were evaluated.
      flops: budget of each training in model FLOPs; 0: all have the same number of steps.
      rates: for each memory the learning rates that were tried: `rate`, `loss` (None if a seed diverged), and `best`,
        whether it is the reported one.
      also_diverged: diverged trainings with other learning rates: `memory`, `seed`, `learning_rate`, `said` (error).
    """
    names = list(dict.fromkeys(run.memory for run in runs))
    config = runs[0].config
    budget = {"flops": flops} if flops else {"steps": config.steps, "tokens": config.steps * tokens_of_step(config)}
    return {
        "version": famjax.__version__,
        "task": config.task, "metric": task.metric, "length": task.length, "chance": task.chance,
        "seeds": sorted({run.seed for run in runs}), "budget": budget,
        "block_size": config.model.memory.block_size,
        "memories": [
            _memory([run for run in runs if run.memory == name]) | {
                "learning_rates": (rates or {}).get(name, []),
                "also_diverged": [dict(one) for one in also_diverged if one["memory"] == name],
            }
            for name in names
        ],
    }  # fmt: skip


def _memory(runs: list[Run]) -> dict[str, Any]:
    config = runs[0].config
    evaluated = next((run for run in runs if run.rows), None)
    weights, added = _weights(config)
    flops, read = training_flops(config), config.steps * tokens_of_step(config)
    tables = evaluated.tables if evaluated is not None else ()
    return {
        "name": runs[0].memory, "gin_file": runs[0].gin_file, "memory": dataclasses.asdict(config.model.memory),
        "weights": weights, "added_weights": added, "state_bytes": row_bytes(config.model),
        "learning_rate": config.optimizer.learning_rate, "steps": config.steps,
        "tokens": read, "training_flops": flops, "flops_per_token": flops / read,
        "lengths": [_length(runs, i) for i in range(len(evaluated.rows))] if evaluated is not None else [],
        "tables": [_table(runs, i) for i in range(len(tables))],
        "curves": [{"seed": run.seed, "points": curve(run.config.model_dir, tokens_of_step(config))} for run in runs],
        "diverged": [{"seed": run.seed, "said": run.diverged} for run in runs if run.diverged],
    }  # fmt: skip


def tokens_of_step(config: TrainConfig) -> int:
    """Returns the number of tokens of a training step, padding included."""
    return config.batch_size * config.sequence_length


def training_flops(config: TrainConfig) -> float:
    """Returns the model FLOPs of a whole training (`watching/flops.py`)."""
    return flops_per_token(config, targets_of_row(config)) * config.steps * tokens_of_step(config)


def _weights(config: TrainConfig) -> tuple[int, int]:
    """Returns the number of all weights, and of those that the memory adds."""
    sizes = {path: math.prod(shape) for path, shape in arrays.shapes(parameter_shapes(config.model)).items()}
    return sum(sizes.values()), sum(size for path, size in sizes.items() if path.startswith(MEMORY))


def _length(runs: list[Run], number: int) -> dict[str, Any]:
    """Returns the result at one length, over all seeds that did not diverge."""
    rows = {run.seed: run.rows[number] for run in runs if run.rows}
    first = next(iter(rows.values()))
    return {name: first[name] for name in ("blocks", "tokens", "updates")} | {
        "documents": sum(row["documents"] for row in rows.values()),
        **_pooled(list(rows.values()), "documents"),
        "by_seed": {str(seed): row["value"] for seed, row in rows.items()},
    }


def _table(runs: list[Run], number: int) -> dict[str, Any]:
    """Returns one of the further tables, pooled over all seeds that did not diverge; rows as in `labelled.tables`."""
    tables = [run.tables[number] for run in runs if run.tables]
    pooled = []
    for row in tables[0]["rows"]:
        place = {name: row[name] for name in ("length", "at")}
        same = [one for table in tables for one in table["rows"] if place.items() <= one.items()]
        pooled.append(place | {"n": sum(one["n"] for one in same)} | _pooled(same, "n"))
    return {"label": tables[0]["label"], "rows": pooled}


def _pooled(rows: Sequence[Mapping[str, Any]], trials: str) -> dict[str, Any]:
    """Returns `value`, the mean over the trials of all seeds, and `low`, `high`, its 95% interval over seeds.

    There is one row per seed, with an entry `trials`. A single row keeps its own interval.
    """
    if len(rows) == 1:
        return {name: rows[0][name] for name in ("value", "low", "high")}
    counts = np.array([row[trials] for row in rows], float)
    hits = counts * [row["value"] for row in rows]
    value = float(hits.sum() / counts.sum())
    same = value in (0.0, 1.0)
    low, high = wilson_interval(round(value * len(rows)), len(rows)) if same else ratio_interval(hits, counts)
    return {"value": value, "low": low, "high": high}


def _logged(model_dir: str) -> list[dict[str, Any]]:
    """Returns the lines of a training's log that have a loss; it is null if the steps were skipped."""
    path = Path(model_dir) / METRICS_JSONL
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line for line in map(json.loads, lines) if line.get("loss") is not None]


def final_loss(model_dir: str, share: float) -> float:
    """Returns the mean of a training's last logged losses, `share` (0..1) of them; infinity if there are none."""
    losses = [line["loss"] for line in _logged(model_dir)]
    last = losses[-max(1, round(share * len(losses))) :]
    return sum(last) / len(last) if last else math.inf


def curve(model_dir: str, tokens_of_step: int) -> list[dict[str, float]]:
    """Returns up to `MOST_POINTS` evenly spaced points of a training's log.

    A point has `tokens` so far, `loss`, and `right`, the logged exact match or accuracy (0 if neither is logged).
    """
    logged = _logged(model_dir)
    every = max(1, -(-len(logged) // MOST_POINTS))
    right = lambda line: line.get("exact_match", line.get("accuracy")) or 0.0
    return [
        {"tokens": line["step"] * tokens_of_step, "loss": line["loss"], "right": right(line)}
        for line in logged[::-1][::every][::-1]
    ]
