"""`famjax train`: pretrain or fine-tune from gin."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from famjax.cli.flags import add_gin_arguments
from famjax.config import ConfigError, TrainConfig

if TYPE_CHECKING:
    from famjax.train.loop import Evaluate

NAME = "train"
HELP = """Train a model from gin files.

  famjax train --gin_file gin/experiments/tiny_fam.gin --gin.MODEL_DIR="'runs/fam'"

MODEL_DIR receives model.json, the weights, config.gin (the settings as they were used), summary.txt
(the weights, and what a device holds), metrics.jsonl (one object a logged step) and tensorboard/ (the
same). A training that was stopped continues from there. docs/training.md explains the numbers.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax train`."""
    parser.add_argument(
        "--dry-run", action="store_true",
        help="check everything (settings, data, the first batch, shapes, memory of a device) without training",
    )  # fmt: skip
    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Trains; every setting is checked before jax is loaded."""
    from famjax.cli.gin_config import load_train_config

    if not args.gin_files:
        raise ConfigError("no settings: add --gin_file FILE, for example gin/experiments/tiny_fam.gin")
    config, text = load_train_config(args.gin_files, args.gin_search_paths, args.gin_bindings)
    config.validate()
    _check_directories(config)
    _check_data(config)

    from famjax.runtime import cpu

    cpu.keep_freed_memory()
    from famjax.runtime.compilation_cache import enable

    enable()
    if args.dry_run:
        from famjax.train.dry_run import dry_run

        dry_run(config)
    else:
        from famjax.train.loop import train

        train(config, text, _evaluation(config))
    return 0


def _check_data(config: TrainConfig) -> None:
    """Raises `ConfigError` on files that are not there or cannot be read, found without reading all of them."""
    if config.task != "passkey":
        from famjax.data.text_task import check_text_task

        check_text_task(config)


def _evaluation(config: TrainConfig) -> "Evaluate | None":
    """What is evaluated while it trains. Raises `ConfigError` in a job of many processes."""
    if not config.eval_period:
        return None
    import jax

    from famjax.data.text_task import vocabulary_and_files
    from famjax.data.vocabulary import ByteVocabulary
    from famjax.evals.during_training import evaluation

    vocabulary = ByteVocabulary() if config.task == "passkey" else vocabulary_and_files(config)[0]
    if jax.process_count() > 1:
        raise ConfigError("EVAL_PERIOD evaluates in jobs of one process only; set it to 0 and run famjax eval")
    return evaluation(config.evaluation, vocabulary)


def _check_directories(config: TrainConfig) -> None:
    """Raises `ConfigError` on a MODEL_DIR that is none or holds another model, or on nothing to start from."""
    from famjax.runtime.model_dir import check_same_model, read_config

    path = Path(config.model_dir)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"MODEL_DIR {path} is a file; name a directory")
    check_same_model(path, config.model)
    if config.initial_checkpoint:
        read_config(config.initial_checkpoint)
