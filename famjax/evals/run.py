"""An evaluation from model directories to files: load, read, print, write."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from famjax.config import ConfigError, EvalConfig, ModelConfig
from famjax.data.passkey_text import Writer
from famjax.data.vocabulary import vocabulary_of
from famjax.evals import language, language_report, passkey, report
from famjax.infer.load import load
from famjax.nn.model import Transformer
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
    models: list[dict[str, Any]] = [
        {
            "name": name, "model_dir": str(path), "label": f"{name} ({describe(model.config)})",
            "model": dataclasses.asdict(model.config),
        }
        for path, name, model in zip(config.model_dirs, names, loaded, strict=True)
    ]  # fmt: skip
    output = Path(config.output_dir or split_step(config.model_dirs[0])[0])
    if config.task == "text":
        plot_to = output / language_report.LANGUAGE_PNG
        _read_texts(config, loaded, models)
        language_report.print_table(models)
    else:
        plot_to = output / report.PLOT_PNG
        _ask_for_keys(config, loaded, models, trained_filler_tokens)
        report.print_table(models)
    results = {"task": config.task, "seed": config.seed, "keys": config.keys, "models": models}
    output.mkdir(parents=True, exist_ok=True)
    report.write_results(output / report.RESULTS_JSON, results)
    (language_report if config.task == "text" else report).plot(plot_to, models)
    print(f"wrote {output / report.RESULTS_JSON} and {plot_to}")
    return results


def _ask_for_keys(config: EvalConfig, loaded: list[Transformer], models: list[dict[str, Any]], trained: int) -> None:
    """Adds `passkey` to every model's results."""
    with _progress_bar() as bar:
        for entry, model in zip(models, loaded, strict=True):
            writer = Writer(vocabulary_of(split_step(entry["model_dir"])[0]))
            total = passkey.tokens_to_read(model.config.memory.block_size, config, writer)
            task = bar.add_task(entry["name"], total=total)
            on_tokens = lambda blocks, n, task=task, name=entry["name"]: bar.update(
                task, advance=n, description=f"{name}: {blocks} blocks"
            )
            entry |= {"trained_filler_tokens": trained, "passkey": passkey.evaluate(model, config, writer, on_tokens)}


def _read_texts(config: EvalConfig, loaded: list[Transformer], models: list[dict[str, Any]]) -> None:
    """Adds `text` to every model's results: a row for each bucket of positions, the same for all models.

    Models may have other vocabularies; their positions are then others too, and only the last row, of all
    that was read, says the same of both.
    """
    sums: list[language.Sums] = []
    edges: tuple[int, ...] = ()
    with _progress_bar() as bar:
        for entry, model in zip(models, loaded, strict=True):
            vocabulary = vocabulary_of(split_step(entry["model_dir"])[0])
            if vocabulary.size > model.config.vocab_size:
                raise ConfigError(f"{entry['model_dir']} keeps a vocabulary of {vocabulary.size} tokens, but has "
                                  f"{model.config.vocab_size} embeddings")  # fmt: skip
            documents = language.documents(config, vocabulary)
            longest = max(len(document.tokens) for document in documents)
            edges = edges or language.position_edges(model.config.memory.block_size, longest)
            edges = (*edges[:-1], max(edges[-1], longest))
            task = bar.add_task(entry["name"], total=sum(len(document.tokens) for document in documents))
            on_tokens = lambda n, task=task: bar.update(task, advance=n)
            sums.append(language.score(model, documents, edges, config.batch_size, on_tokens))
    for entry, one in zip(models, sums, strict=True):
        entry["text"] = language.summary(one, edges, sums[0], config.seed)


def _progress_bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(file=sys.stderr), transient=True)
