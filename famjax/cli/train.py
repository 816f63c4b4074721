"""`famjax train`: pretrains or fine-tunes a model from gin files."""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from famjax.cli.flags import add_gin_arguments, check_folder
from famjax.cli.resumed import changed
from famjax.config import ConfigError, TrainConfig
from famjax.config.checks import positive
from famjax.jobs import distributed, liveness
from famjax.jobs.versions import versions
from famjax.storage.model_dir import MODEL_JSON

if TYPE_CHECKING:
    from famjax.train.loop import Evaluate

NAME = "train"
HELP = """Train a model from gin files.

  famjax train --gin_file gin/experiments/tiny_fam.gin --gin.MODEL_DIR="'runs/fam'"

MODEL_DIR receives model.json, checkpoints, config.gin (the operative settings), summary.txt (the weights,
and the bytes per device), metrics.jsonl (one object per logged step) and tensorboard/ (the same). The same
command resumes an interrupted run. docs/training.md explains the metrics.

For multi-host training, start one process per host and give each the coordinator's address:

  famjax train --gin_file F --coordinator 10.0.0.1:8476 --num-processes 2 --process-id 0
  famjax train --gin_file F --coordinator 10.0.0.1:8476 --num-processes 2 --process-id 1

Under Slurm, on TPU pods, with Open MPI and in Kubernetes jobs it is detected. All processes must share MODEL_DIR.
If one dies, the others report it and stop (docs/sharding.md).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax train`."""
    parser.add_argument(
        "--dry-run", action="store_true",
        help="check settings, data, the first batch, shapes and bytes per device, without training",
    )  # fmt: skip
    add_gin_arguments(parser)
    group = parser.add_argument_group("multi-host training; in brackets the environment variable of each flag")
    group.add_argument(
        "--coordinator", metavar="HOST:PORT",
        help=f"host of process 0, and a free port there ({distributed.COORDINATOR})",
    )  # fmt: skip
    group.add_argument(
        "--num-processes", type=int, metavar="N", help=f"number of processes ({distributed.NUM_PROCESSES})"
    )
    group.add_argument(
        "--process-id", type=int, metavar="I", help=f"index of this process, from 0 ({distributed.PROCESS_ID})"
    )
    group.add_argument(
        "--start-timeout", type=float, default=distributed.START_SECONDS, metavar="SECONDS",
        help="how long the processes wait for each other at the start (default: %(default).0f)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Trains a model. Settings, files and directories are checked before jax is imported."""
    from famjax.cli.main import exit_code

    config, text = settings(args)
    check(config)
    positive("--start-timeout", args.start_timeout)
    given = args.coordinator, args.num_processes, args.process_id
    # A dry run is one process. It checks the job's flags, but detects no job.
    job = distributed.find_job(*given) if not args.dry_run or given != (None,) * 3 else None

    liveness.answer()
    from famjax.process.compilation_cache import enable

    enable()
    if args.dry_run:
        from famjax.train.dry_run import dry_run

        _evaluation(config)  # finds what would stop it
        dry_run(config)
        return 0
    from famjax.train.loop import train

    # Without a model, an earlier start ended before its first checkpoint: nothing is resumed.
    resumes = (Path(config.model_dir) / MODEL_JSON).is_file() and (job is None or not job.process_id)
    if resumes and (differs := changed(config)):
        print(f"{config.model_dir} resumes with other settings: {'; '.join(differs)}", file=sys.stderr)
    same = {"settings": hashlib.sha256(text.encode()).hexdigest()} | versions()
    hint = lambda: _start_again(config.model_dir)
    with distributed.joined(job, same, hint, prog="famjax train", exit_code=exit_code, seconds=args.start_timeout):
        train(config, text, _evaluation(config))
    return 0


def settings(args: argparse.Namespace) -> tuple[TrainConfig, str]:
    """Returns the validated settings of `args`, and the operative configuration as gin text. Raises `ConfigError`."""
    from famjax.cli.gin_config import load_train_config

    if not args.gin_files:
        raise ConfigError("no settings: add --gin_file FILE, for example gin/experiments/tiny_fam.gin")
    config, text = load_train_config(args.gin_files, args.gin_search_paths, args.gin_bindings)
    config.validate()
    return config, text


def check(config: TrainConfig) -> None:
    """Raises `ConfigError` if MODEL_DIR is a file or has another model, if the initial checkpoint is missing, or for
    missing or unreadable data, without reading all of it. Does not import jax."""
    from famjax.data.generated import check_generated_task
    from famjax.data.text_task import check_text_task
    from famjax.storage.model_dir import check_same_model, read_config
    from famjax.storage.steps import latest_step

    check_folder("MODEL_DIR", config.model_dir)
    check_same_model(Path(config.model_dir), config.model)
    if config.initial_checkpoint and latest_step(config.model_dir) is None:  # a resumed training does not read it
        read_config(config.initial_checkpoint)
    if config.generated is None:
        check_text_task(config)
    else:
        check_generated_task(config)


def _start_again(model_dir: str) -> str:
    """Returns advice for the error line of a failed run: restart it, and the step from which it resumes."""
    from famjax.storage.steps import latest_step

    step = latest_step(model_dir)
    where = "it begins at step 0, since there is no checkpoint" if step is None else f"it resumes from step {step}"
    return f"start the job again: {where}"


def _evaluation(config: TrainConfig) -> "Evaluate | None":
    """Returns the evaluation that all processes run during training, or None if `eval_period` is 0."""
    if not config.eval_period:
        return None
    from famjax.data.text_task import vocabulary_and_files, vocabulary_folder
    from famjax.evals.during_training import evaluation

    vocabulary, _ = vocabulary_and_files(config)
    block_size, vocab_size = config.model.memory.block_size, config.model.vocab_size
    return evaluation(config.evaluation, vocabulary, block_size, vocabulary_folder(config), vocab_size)
