"""`famjax plan`: compiles a job for a TPU slice on a machine without TPUs."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from famjax.cli.flags import add_gin_arguments, check_folder, gin_words, lengths, refuse
from famjax.config import ConfigError, PassKeyConfig, TrainConfig, check_mesh
from famjax.config.checks import at_least, check_types
from famjax.config.curriculum import CurriculumConfig
from famjax.process.progress import Progress

NAME = "plan"
HELP = """Compile a training step, or serving, for a TPU slice on a machine that has none.

  famjax plan --topology v5p:4x4x4 --gin_file gin/experiments/finetune_24b.gin
  famjax plan --topology v5e:2x2 --gin_file gin/models/fam_1b.gin --program decode --gin.MESH="{'data': 4}"

reports whether it fits into HBM, its FLOPs and collectives, and an estimate of its time. It is the real program,
compiled by the real compiler (libtpu), but never run. This takes one to three minutes on one core and up to 4 GB for
the largest models. Data, checkpoints and MODEL_DIR need not exist. A program that does not fit is also a result
(exit code 0, "fits": false), with its largest buffers and the settings that would help.

  --quick                  memory and collectives only, in a tenth of the time
  --lengths 8k,32k,128k    compare sequence lengths, with the tokens per step as near to equal as rows allow
  --search                 rank other meshes, microbatches and remat policies

docs/plans.md explains every number and has the figures of the shipped configurations.
"""
PROGRAMS = ("train", "prefill", "decode", "eval")
TRIES = 8
# Defaults that the given gin files override.
DEFAULTS = "gin/runs/pretrain.gin"
STAND_INS = {
    "MODEL_DIR": "'plan'", "INITIAL_CHECKPOINT_PATH": "''", "SOURCES": "('plan',)", "MIXTURE_OR_TASK_NAME": "'text'",
}  # fmt: skip

# Printed with a plan of the task `babi`, whose stories and books need not exist.
BABI = (
    "the task 'babi' is planned with the pass key's rows, since its files are not read: as many tokens, but the number "
    "of loss positions of a row, which follows from the stories' answers, may differ"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax plan`."""
    parser.add_argument("--topology", metavar="NAME", help="TPU version and topology of a slice: v5e:4x4, v5p:4x4x4")
    parser.add_argument("--num-slices", type=int, default=1, metavar="N", help="number of slices (default: 1)")
    parser.add_argument("--program", choices=PROGRAMS, default="train", help="program to compile (default: train)")
    parser.add_argument("--json", metavar="FILE", help="write all numbers to this file")
    parser.add_argument("--lengths", type=lengths, metavar="N,N", help="sequence lengths to compare: 8k,32k,1m")
    parser.add_argument("--search", action="store_true", help="rank meshes, microbatches and remat policies")
    parser.add_argument(
        "--tries", type=int, metavar="N", help=f"maximum programs that --search compiles (default: {TRIES})"
    )
    parser.add_argument("--quick", action="store_true", help="skip cycles and the time estimate, ten times faster")
    parser.add_argument("--dump", metavar="DIR", help="keep the compiler's dump in this directory")
    parser.add_argument("--compile-into", help=argparse.SUPPRESS)  # internal: compile in this process
    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Compiles and reports. Topology, mesh and settings are checked before jax is imported."""
    from famjax.plan import topology as topologies

    if not args.topology:
        raise ConfigError(f"no topology: add --topology NAME. Known: {topologies.known()}")
    if not args.gin_files:
        raise ConfigError("no settings: add --gin_file FILE, for example gin/experiments/finetune_1b.gin")
    topology = topologies.planned(args.topology, args.num_slices)
    given, text = _loaded(args, args.gin_bindings)
    config = _without_data(given)
    check_types(config)
    check_mesh(config.mesh)
    # The mesh is left to the next check, which names one that fits, or to --search.
    dataclasses.replace(config, mesh={}, microbatches=1 if args.search else config.microbatches).validate()
    if not args.search:
        topologies.check_mesh(config.mesh, topology, config.batch_size, config.microbatches)
        config.validate()
    if args.compile_into:
        from famjax.plan.compile import compile_into

        compile_into(Path(args.compile_into), config, args.program, topology)
        return 0
    from famjax.plan import child, report, search

    _check_output(args)
    child.library()
    # The model is that of a checkpoint, or these files describe it.
    remat = f"{'model_of_checkpoint' if 'model_of_checkpoint.path' in text else 'ModelConfig'}.remat"
    job = search.Job(args.program, topology, lambda bindings: _config(args, [*args.gin_bindings, *bindings]),
                     lambda bindings, folder: _child(args, bindings, folder), remat)  # fmt: skip
    with Progress("compiling") as progress:
        tell = lambda what: progress.stage(f"compiling {what}")
        if args.lengths:
            plans = search.lengths(job, config, args.lengths, tell, args.quick)
        elif args.search:
            plans = search.search(job, config, args.tries or TRIES, tell, args.quick)
        else:
            plans = [job.plan((), Path(args.dump) if args.dump else None, args.quick)]
    several = args.lengths or args.search
    notes = [BABI] if given.task == "babi" and args.program == "train" else []
    plans = [plan | {"notes": notes} for plan in plans]
    print(report.comparison(plans) if several else report.text(plans[0]))
    written: Any = {"plans": plans} if several else plans[0]
    if args.json:
        from famjax.storage.model_dir import write_text

        write_text(Path(args.json), json.dumps(written, indent=1) + "\n")
    return 0


def _check_output(args: argparse.Namespace) -> None:
    """Raises `ConfigError` if the result could not be written, before minutes of compilation."""
    if args.json:
        path = Path(args.json).absolute()
        there = next(folder for folder in path.parents if folder.exists())
        if path.is_dir() or not there.is_dir() or not os.access(there, os.W_OK):
            raise ConfigError(f"--json {args.json} cannot be written; name a file in a writable directory")
    if args.dump:
        check_folder("--dump", args.dump)
    if not args.search:
        refuse(args, ("tries",), "without --search; leave it out")
    if args.lengths or args.search:
        refuse(args, ("dump",), "with --lengths or --search, which compile several programs; plan one of them with it")
    at_least("--tries", TRIES if args.tries is None else args.tries, 1)
    if args.lengths and args.search:
        raise ConfigError("--lengths and --search are both given; choose one")
    if (args.lengths or args.search) and args.program != "train":
        raise ConfigError(f"--lengths and --search are for training steps, not for --program {args.program}")
    for name in (binding.partition("=")[0].strip() for binding in args.gin_bindings if args.search):
        if name in ("MESH", "MICROBATCHES", "ModelConfig.remat", "model_of_checkpoint.remat"):
            raise ConfigError(f"--gin.{name} has no effect with --search, which tries several; leave it out")


def _config(args: argparse.Namespace, bindings: Sequence[str]) -> TrainConfig:
    """Returns the configuration to plan, which needs neither data nor directories."""
    return _without_data(_loaded(args, bindings)[0])


def _loaded(args: argparse.Namespace, bindings: Sequence[str]) -> tuple[TrainConfig, str]:
    """Returns the training configuration of the gin files, with placeholders for required macros, and as gin text."""
    from famjax.cli.gin_config import load_train_config

    return load_train_config([DEFAULTS, *args.gin_files], args.gin_search_paths, bindings, stand_ins=STAND_INS)


def _without_data(config: TrainConfig) -> TrainConfig:
    """Returns a configuration with placeholders for data and directories."""
    some = ("plan",) if config.generated is None or config.data.text_share else ()
    data = dataclasses.replace(config.data, sources=config.data.sources or some, modules=())
    if config.task == "babi":  # see `BABI`
        same = {field.name: getattr(config.babi, field.name) for field in dataclasses.fields(CurriculumConfig)}
        rows = PassKeyConfig(**same, stream_share=config.babi.stream_share)
        config = dataclasses.replace(config, task="passkey", passkey=rows)
    return dataclasses.replace(
        config,
        model_dir=config.model_dir or "plan",
        initial_checkpoint="",
        task="text" if config.generated is None else config.task,
        data=data,
    )


def _child(args: argparse.Namespace, bindings: Sequence[str], folder: Path) -> list[str]:
    """Returns the command of the child process that compiles these settings into `folder`."""
    words = ["-m", "famjax", NAME, "--topology", args.topology, "--num-slices", str(args.num_slices)]
    words += ["--program", args.program, "--compile-into", str(folder)]
    words += gin_words(args.gin_files, args.gin_search_paths, [*args.gin_bindings, *bindings])
    return [sys.executable, *words]
