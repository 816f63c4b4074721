"""`famjax launch`: a training on many devices, by one command."""

import argparse
import dataclasses
import importlib
import sys
from typing import Any

from famjax.cli.flags import add_gin_arguments
from famjax.config import ConfigError
from famjax.process import interrupts

NAME = "launch"
HELP = """Start a training on many devices: on this machine, on Cloud TPU VMs, on GKE, under Slurm.

  famjax launch --target local --processes 4 --gin_file F --gin.MESH='{"data": 4}'
  famjax launch --target tpu-vm --name fam-1b --zone us-east5-a --topology v5p:4x2x2 --bucket B --gin_file F ...
  famjax launch --target gke --name fam-1b --topology v5e:16x16 --image IMAGE --bucket B --gin_file F ...
  famjax launch --target slurm --name fam-1b --nodes 2 --gpus-per-node 8 --gin_file F ...

Settings are checked before anything starts, the mesh against the devices of the target. --dry-run prints every
command and file, and runs nothing. A training that is stopped or dies is started again and goes on from its last
checkpoint: set CHECKPOINT_PERIOD or CHECKPOINT_MINUTES. docs/launch.md has each target step by step.
"""

# Target: its module, and its settings' class there.
TARGETS = {
    "local": ("famjax.launch.local", "Options"),
    "tpu-vm": ("famjax.launch.tpu_vm", "Options"),
    "gke": ("famjax.launch.gke", "Options"),
    "slurm": ("famjax.launch.slurm", "Options"),
}
# Flags of each group: name, type (bool: a switch), what stands for the value, help.
FLAGS: dict[str, list[tuple[str, type, str, str]]] = {
    "any target but local": [
        ("name", str, "NAME", "of the job: a-z, 0-9 and -"),
        ("do", str, "WHAT", "a part of it, see docs/launch.md: for example status, logs, delete"),
    ],
    "starting again (tpu-vm, gke and slurm do so by default; local with --supervise)": [
        ("supervise", bool, "", "local: start again after a failure, a preemption or a hang"),
        ("restarts", int, "N", "so often without progress (10)"),
        ("hang_seconds", float, "S", "no step for so long: stacks are kept, it starts again (1800; 0: never)"),
        ("start_seconds", float, "S", "the same before the first step, which compiles (3600; 0: never)"),
        ("backoff_seconds", float, "S", "before the first restart; doubles without progress, up to 300 (10)"),
    ],
    "target local": [
        ("processes", int, "N", "how many, with one device each (1)"),
        ("port", int, "P", "where the first one listens (a free one)"),
    ],
    "targets tpu-vm and gke": [
        ("topology", str, "T", "of a slice, as `famjax plan` has it: v5p:4x4x4, v5e:16x16"),
        ("num_slices", int, "N", "slices (1)"),
        ("spot", bool, "", "spot capacity: cheaper, may be taken away"),
        ("bucket", str, "NAME", "a bucket, mounted at /gcs/NAME on every host"),
        ("service_account", str, "NAME", "whose rights the VMs or pods have, for example to write to the bucket"),
    ],
    "target tpu-vm": [
        ("zone", str, "ZONE", "for example us-east5-a"),
        ("project", str, "P", "Google Cloud project (gcloud's own)"),
        ("accelerator_type", str, "TYPE", "in place of --topology: v5p-128"),
        ("runtime_version", str, "V", "software of the VM (that of the TPU version)"),
        ("reserved", bool, "", "from a reservation"),
        ("network", str, "NET", "(default)"),
        ("subnetwork", str, "NET", ""),
        ("requirements", str, "FILE", "packages to install on the workers beside famjax's, for example seqio's"),
        ("wait_minutes", float, "M", "how long to queue for capacity (1440)"),
        ("delete_after", str, "WHEN", "delete the TPU: never, success, always; else it goes on costing (never)"),
    ],
    "target gke": [
        ("image", str, "IMAGE", "a container with famjax in it (launch/gke/Dockerfile)"),
        ("namespace", str, "NS", "(default)"),
        ("context", str, "C", "kubectl's context, that is the cluster (the current one)"),
        ("chips_per_host", int, "N", "of the node pool; 4 or 8 for a slice of 2x4"),
        ("grace_seconds", int, "S", "between SIGTERM and the end, in which a checkpoint is written (120)"),
        ("template", str, "FILE", "another JobSet to fill in (launch/gke/jobset.yaml)"),
        ("queue", str, "Q", "of Kueue"),
    ],
    "target slurm": [
        ("nodes", int, "N", "machines (1)"),
        ("gpus_per_node", int, "N", "of each (8)"),
        ("time", str, "T", "limit of one run; a run that reaches it is queued again: 24:00:00"),
        ("partition", str, "P", ""),
        ("account", str, "A", ""),
        ("qos", str, "Q", ""),
        ("cpus_per_task", int, "N", "cores of each GPU's process"),
        ("setup", str, "FILE", "a shell script that is sourced before srun (modules, an environment)"),
        ("sbatch", str, "FLAG", "another #SBATCH line, for example --sbatch=--constraint=h100; may be repeated"),
    ],
}  # fmt: skip
REPEATED = ("sbatch",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax launch`."""
    parser.add_argument("--target", choices=list(TARGETS), help="where it runs")
    parser.add_argument("--dry-run", action="store_true", help="check, and print what would run, with all files")
    add_gin_arguments(parser)
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for name, kind, value, text in flags:
            flag = f"--{name.replace('_', '-')}"
            if kind is bool:
                group.add_argument(flag, action="store_true", default=None, help=text)
            else:
                action = "append" if name in REPEATED else "store"
                group.add_argument(flag, type=kind, metavar=value, action=action, help=text)


def run(args: argparse.Namespace) -> int:
    """Checks everything, then shows or starts the job."""
    from famjax.launch.commands import Failed
    from famjax.launch.supervisor import Supervision

    if args.target is None:
        raise ConfigError(f"no target; add --target {', '.join(TARGETS)}")
    module_name, class_name = TARGETS[args.target]
    module = importlib.import_module(module_name)
    options = _options(args, getattr(module, class_name), Supervision)
    training = _training(args) if getattr(options, "needs_training", True) else None
    options.validate(training)
    if args.dry_run:
        print(module.show(training, options))
        print("\n# dry run: nothing was started", file=sys.stderr)
        return 0
    try:
        with interrupts.raised():  # it waits for programs that have a Ctrl-C of their own
            return int(module.run(training, options))
    except Failed as error:
        print(f"famjax launch: {error}", file=sys.stderr)
        return 1


def _options(args: argparse.Namespace, options: type, supervision: type) -> Any:
    """A target's settings of the flags that were given. Raises `ConfigError` on one that is another target's."""
    from famjax.launch.names import normalised

    nested = {field.name for field in dataclasses.fields(supervision)}
    known = {field.name for field in dataclasses.fields(options)} - {"supervision"} | nested
    given = {name: getattr(args, name) for flags in FLAGS.values() for name, *_ in flags}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in known:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} means nothing to the target {args.target}; famjax launch --help has each one's")
    given = {name: normalised(name, value) for name, value in given.items()}
    when = {name: given.pop(name) for name in nested & given.keys()}
    if when and "supervise" in known:
        given["supervise"] = True
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return options(**given, supervision=supervision(**when))


def _training(args: argparse.Namespace) -> Any:
    """The training that is launched, its settings checked as `famjax train` checks them."""
    from famjax.cli.gin_config import load_train_config
    from famjax.cli.train import check
    from famjax.launch.job import Training

    if not args.gin_files:
        raise ConfigError("no settings: add --gin_file FILE, for example gin/experiments/tiny_fam.gin")
    config, text = load_train_config(args.gin_files, args.gin_search_paths, args.gin_bindings)
    config.validate()
    if args.target == "local":
        check(config)
    words = ["train"]
    for file in args.gin_files:
        words += ["--gin_file", file]
    if args.gin_search_paths:
        words += ["--gin_search_paths", ",".join(args.gin_search_paths)]
    words += [f"--gin.{binding}" for binding in args.gin_bindings]
    return Training(tuple(words), config, _one_file(config, text))


def _one_file(config: Any, text: str) -> str:
    """The settings as one gin file that means the same. Raises `ConfigError` where gin's own text does not."""
    import tempfile
    from pathlib import Path

    from famjax.cli.gin_config import load_train_config

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.gin"
        path.write_text(text, encoding="utf-8")
        try:
            again, _ = load_train_config([str(path)])
        except ConfigError as error:
            raise ConfigError(f"these settings cannot be written as one gin file: {error}") from error
    if again != config:
        names = [field.name for field in dataclasses.fields(config)]
        different = next(name for name in names if getattr(again, name) != getattr(config, name))
        raise ConfigError(f"these settings cannot be written as one gin file: {different} comes out otherwise")
    return text
