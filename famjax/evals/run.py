"""An evaluation from model directories to files: load, read, print, write."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from famjax.config import EvalConfig, ModelConfig
from famjax.evals import passkey, report
from famjax.infer.load import load
from famjax.runtime.model_dir import split_step


def describe(config: ModelConfig) -> str:
    """A model's memory in a few words, for a legend."""
    memory = config.memory
    fam = f"FAM {memory.fam_length}" if memory.fam_length else "BSWA"
    return f"{fam}, {memory.memory_segments} memory segments, block {memory.block_size}"


def run(config: EvalConfig, trained_filler_tokens: int = 0) -> dict[str, Any]:
    """Evaluates every model, prints the table, writes `results.json` and the plot; returns the results.

    Args:
      config: the evaluation.
      trained_filler_tokens: longest filler in training, marked in the plot; 0 where unknown.

    Raises:
      ConfigError: a setting or a model directory that cannot be used, before anything is evaluated.
    """
    config.validate()
    overrides = {name: getattr(config, name) for name in ("block_size", "memory_segments", "fam_length")}
    loaded = [load(path, **overrides) for path in config.model_dirs]
    names = [Path(path).resolve().name for path in config.model_dirs]
    if len(set(names)) < len(names):
        names = list(config.model_dirs)
    models: list[dict[str, Any]] = []
    with _progress_bar() as bar:
        for path, name, model in zip(config.model_dirs, names, loaded, strict=True):
            task = bar.add_task(name, total=passkey.tokens_to_read(model.config.memory.block_size, config))
            on_tokens = lambda blocks, n, task=task, name=name: bar.update(
                task, advance=n, description=f"{name}: {blocks} blocks"
            )
            rows = passkey.evaluate(model, config, on_tokens)
            models.append({
                "name": name, "model_dir": str(path), "label": f"{name} ({describe(model.config)})",
                "model": dataclasses.asdict(model.config), "trained_filler_tokens": trained_filler_tokens,
                "passkey": rows,
            })  # fmt: skip
    results = {"task": config.task, "seed": config.seed, "keys": config.keys, "models": models}
    output = Path(config.output_dir or split_step(config.model_dirs[0])[0])
    output.mkdir(parents=True, exist_ok=True)
    report.print_table(models)
    report.write_results(output / report.RESULTS_JSON, results)
    report.plot(output / report.PLOT_PNG, models)
    print(f"wrote {output / report.RESULTS_JSON} and {output / report.PLOT_PNG}")
    return results


def _progress_bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(file=sys.stderr), transient=True)
