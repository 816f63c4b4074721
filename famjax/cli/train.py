"""`famjax train`: pretrain or fine-tune from gin."""

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from famjax.cli.flags import add_gin_arguments
from famjax.config import ConfigError, TrainConfig
from famjax.jobs import distributed, liveness
from famjax.jobs.versions import versions

if TYPE_CHECKING:
    from famjax.train.loop import Evaluate

NAME = "train"
HELP = """Train a model from gin files.

  famjax train --gin_file gin/experiments/tiny_fam.gin --gin.MODEL_DIR="'runs/fam'"

MODEL_DIR receives model.json, the weights, config.gin (the settings as they were used), summary.txt
(the weights, and what a device holds), metrics.jsonl (one object a logged step) and tensorboard/ (the
same). A training that was stopped continues from there. docs/training.md explains the numbers.

Several processes, usually one a host, make one training when each is told where the first one is:

  famjax train --gin_file F --coordinator 10.0.0.1:8476 --num-processes 2 --process-id 0
  famjax train --gin_file F --coordinator 10.0.0.1:8476 --num-processes 2 --process-id 1

Slurm, TPU pods, Open MPI and Kubernetes jobs tell it themselves. MODEL_DIR must be a directory that all of them
share. If one of them dies, the others name it and stop (docs/sharding.md).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax train`."""
    parser.add_argument(
        "--dry-run", action="store_true",
        help="check everything (settings, data, the first batch, shapes, memory of a device) without training",
    )  # fmt: skip
    add_gin_arguments(parser)
    group = parser.add_argument_group("a training of several processes; each flag also as an environment variable")
    group.add_argument(
        "--coordinator", metavar="HOST:PORT",
        help=f"where process 0 is, and a free port there ({distributed.COORDINATOR})",
    )  # fmt: skip
    group.add_argument("--num-processes", type=int, metavar="N", help=f"how many ({distributed.NUM_PROCESSES})")
    group.add_argument("--process-id", type=int, metavar="I", help=f"this one, from 0 ({distributed.PROCESS_ID})")
    group.add_argument(
        "--start-timeout", type=float, default=distributed.START_SECONDS, metavar="SECONDS",
        help="how long the processes wait for each other at the start (%(default).0f)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Trains; every setting is checked before jax is loaded."""
    from famjax.cli.gin_config import load_train_config
    from famjax.cli.main import exit_code

    if not args.gin_files:
        raise ConfigError("no settings: add --gin_file FILE, for example gin/experiments/tiny_fam.gin")
    config, text = load_train_config(args.gin_files, args.gin_search_paths, args.gin_bindings)
    config.validate()
    check(config)
    if args.start_timeout <= 0:
        raise ConfigError(f"--start-timeout {args.start_timeout:g} leaves no time to start; give seconds, as 300")
    job = None if args.dry_run else distributed.find_job(args.coordinator, args.num_processes, args.process_id)

    liveness.answer()
    from famjax.process.compilation_cache import enable

    enable()
    if args.dry_run:
        from famjax.train.dry_run import dry_run

        dry_run(config)
        return 0
    from famjax.train.loop import train

    same = {"settings": hashlib.sha256(text.encode()).hexdigest()} | versions()
    hint = lambda: _start_again(config.model_dir)
    with distributed.joined(job, same, hint, prog="famjax train", exit_code=exit_code, seconds=args.start_timeout):
        train(config, text, _evaluation(config))
    return 0


def check(config: TrainConfig) -> None:
    """Raises `ConfigError` on files and directories that cannot be as the settings say; jax is not loaded for it."""
    _check_directories(config)
    _check_data(config)


def _start_again(model_dir: str) -> str:
    """What becomes of a training that breaks off."""
    from famjax.storage.steps import latest_step

    step = latest_step(model_dir)
    where = "it begins anew, for no checkpoint was written yet" if step is None else f"it resumes from step {step}"
    return f"start the job again: {where}"


def _check_data(config: TrainConfig) -> None:
    """Raises `ConfigError` on files that are not there or cannot be read, found without reading all of them."""
    from famjax.data.text_task import check_text_task, vocabulary_and_files

    if config.task == "passkey":
        from famjax.data.passkey_text import Writer

        Writer(vocabulary_and_files(config)[0]).check(config.model.vocab_size)
    else:
        check_text_task(config)


def _evaluation(config: TrainConfig) -> "Evaluate | None":
    """What is evaluated while it trains; in a job of many processes by all of them together."""
    if not config.eval_period:
        return None
    from famjax.data.text_task import vocabulary_and_files
    from famjax.evals.during_training import evaluation

    vocabulary, _ = vocabulary_and_files(config)
    return evaluation(config.evaluation, vocabulary, config.model.memory.block_size)


def _check_directories(config: TrainConfig) -> None:
    """Raises `ConfigError` on a MODEL_DIR that is none or holds another model, or on nothing to start from."""
    from famjax.storage.model_dir import check_same_model, read_config

    path = Path(config.model_dir)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"MODEL_DIR {path} is a file; name a directory")
    check_same_model(path, config.model)
    if config.initial_checkpoint:
        read_config(config.initial_checkpoint)
