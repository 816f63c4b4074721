"""`famjax train`: pretrain or fine-tune from gin."""

import argparse
from pathlib import Path

from famjax.cli.flags import add_gin_arguments
from famjax.config import ConfigError

NAME = "train"
HELP = """Train a model from gin files.

  famjax train --gin_file gin/experiments/tiny_fam.gin --gin.MODEL_DIR="'runs/fam'"

MODEL_DIR receives model.json, the weights, config.gin (the settings as they were used) and
metrics.jsonl (one object a logged step). A training that was stopped continues from there.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax train`."""
    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Trains; every setting is checked before jax is loaded."""
    from famjax.cli.gin_config import load_train_config

    if not args.gin_files:
        raise ConfigError("no settings: add --gin_file FILE, for example gin/experiments/tiny_fam.gin")
    config, text = load_train_config(args.gin_files, args.gin_search_paths, args.gin_bindings)
    config.validate()
    if Path(config.model_dir).exists() and not Path(config.model_dir).is_dir():
        raise ConfigError(f"MODEL_DIR {config.model_dir} is a file; name a directory")
    if config.initial_checkpoint:
        from famjax.runtime.model_dir import read_config

        read_config(config.initial_checkpoint)

    from famjax.runtime.compilation_cache import enable
    from famjax.train.loop import train

    enable()
    train(config, text)
    return 0
