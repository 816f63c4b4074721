"""`famjax launch`: starts a training job on many devices."""

import argparse
import dataclasses
import importlib
import re
import sys
from typing import Any

from famjax.cli.flags import add_gin_arguments, gin_words, refuse
from famjax.config import ConfigError
from famjax.config.checks import flag_of
from famjax.process import interrupts

NAME = "launch"
HELP = """Start a training job on many devices: on this machine, on Cloud TPU VMs, on GKE, under Slurm.

  famjax launch --target local --processes 4 --gin_file F --gin.MESH='{"data": 4}'
  famjax launch --target tpu-vm --name fam-1b --zone us-east5-a --topology v5p:4x2x2 --bucket B --gin_file F ...
  famjax launch --target gke --name fam-1b --topology v5e:16x16 --image IMAGE --bucket B --gin_file F ...
  famjax launch --target slurm --name fam-1b --nodes 2 --gpus-per-node 8 --gin_file F ...

Settings are checked before anything starts, including the mesh against the target's devices. --dry-run prints every
command and file, and runs nothing. A training job that is stopped or fails is restarted from its last checkpoint:
set CHECKPOINT_PERIOD or CHECKPOINT_MINUTES. docs/launch.md describes each target step by step.
"""

# The modules of the targets, each with a class `Options`.
TARGETS = {target: f"famjax.launch.{target.replace('-', '_')}" for target in ("local", "tpu-vm", "gke", "slurm")}
# Flags of each group: name, type (bool: a switch), metavar, help.
FLAGS: dict[str, list[tuple[str, type, str, str]]] = {
    "any target but local": [
        ("name", str, "NAME", "name of the job: a-z, 0-9 and -"),
        ("do", str, "WHAT", "one action of docs/launch.md: for example status, logs, delete (default: run the job)"),
    ],
    "restarts (always with tpu-vm, gke and slurm; local with --supervise)": [
        ("supervise", bool, "", "local: restart after a failure, a preemption or a hang"),
        ("restarts", int, "N", "maximum restarts without progress (default: 10)"),
        ("hang_seconds", float, "S", "save stacks and restart after S s without a step (default: 1800; 0: never)"),
        ("start_seconds", float, "S", "the same until the first step, which compiles (default: 3600; 0: never)"),
        ("backoff_seconds", float, "S", "before the first restart; doubles without progress up to 300 (default: 10)"),
    ],
    "target local": [
        ("processes", int, "N", "number of processes, one device each (default: 1)"),
        ("port", int, "P", "port of the coordinator (default: a free one)"),
    ],
    "targets tpu-vm and gke": [
        ("topology", str, "T", "topology of a slice, as for `famjax plan`: v5p:4x4x4, v5e:16x16"),
        ("num_slices", int, "N", "number of slices (default: 1)"),
        ("spot", bool, "", "use spot capacity: cheaper, may be preempted"),
        ("bucket", str, "NAME", "bucket to mount at /gcs/NAME on every host"),
        ("service_account", str, "NAME", "service account of the VMs or pods, for example to write to the bucket"),
    ],
    "target tpu-vm": [
        ("zone", str, "ZONE", "zone, for example us-east5-a"),
        ("project", str, "P", "Google Cloud project (default: gcloud's)"),
        ("accelerator_type", str, "TYPE", "instead of --topology: v5p-128"),
        ("runtime_version", str, "V", "software version of the VM (default: by TPU version)"),
        ("reserved", bool, "", "use a reservation"),
        ("network", str, "NET", "network of the VMs (default: default)"),
        ("subnetwork", str, "NET", "subnetwork of the VMs"),
        ("requirements", str, "FILE", "requirements to install on the workers besides famjax's, for example seqio's"),
        ("wait_minutes", float, "M", "how long to queue for capacity (default: 1440)"),
        ("delete_after", str, "WHEN", "delete the TPU, which is billed until then: never, success, always "
                                      "(default: never)"),
    ],
    "target gke": [
        ("image", str, "IMAGE", "container image with famjax (launch/gke/Dockerfile)"),
        ("namespace", str, "NS", "Kubernetes namespace (default: default)"),
        ("context", str, "C", "kubectl context, that is the cluster (default: the current one)"),
        ("chips_per_host", int, "N", "chips per host of the node pool; 4 or 8 for a slice of 2x4"),
        ("grace_seconds", int, "S", "time from SIGTERM to SIGKILL, in which a checkpoint is written (default: 120)"),
        ("template", str, "FILE", "JobSet template to fill in (default: launch/gke/jobset.yaml)"),
        ("queue", str, "Q", "Kueue queue"),
    ],
    "target slurm": [
        ("nodes", int, "N", "number of nodes (default: 1)"),
        ("gpus_per_node", int, "N", "GPUs per node (default: 8)"),
        ("time", str, "T", "time limit of one run, for example 24:00:00; a run that reaches it is requeued"),
        ("partition", str, "P", "Slurm partition"),
        ("account", str, "A", "Slurm account"),
        ("qos", str, "Q", "Slurm QOS"),
        ("cpus_per_task", int, "N", "CPU cores per GPU process"),
        ("setup", str, "FILE", "shell script to source before srun (modules, an environment)"),
        ("sbatch", str, "FLAG", "another #SBATCH line, for example --sbatch=--constraint=h100; repeatable"),
    ],
}  # fmt: skip
REPEATED = ("sbatch",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax launch`."""
    parser.add_argument("--target", choices=list(TARGETS), help="where to run the job")
    parser.add_argument("--dry-run", action="store_true", help="check, and print all commands and files")
    add_gin_arguments(parser)
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for name, kind, value, text in flags:
            if kind is bool:
                group.add_argument(flag_of(name), action="store_true", default=None, help=text)
            else:
                action = "append" if name in REPEATED else "store"
                group.add_argument(flag_of(name), type=kind, metavar=value, action=action, help=text)


def run(args: argparse.Namespace) -> int:
    """Checks all settings, then prints (`--dry-run`) or runs the job."""
    from famjax.launch.commands import Failed
    from famjax.launch.supervisor import Supervision

    if args.target is None:
        raise ConfigError(f"no target; add --target {', '.join(TARGETS)}")
    module = importlib.import_module(TARGETS[args.target])
    options = _options(args, module.Options, Supervision)
    training = None
    if getattr(options, "needs_training", True):
        training = _training(args)
    else:
        settings = ("gin_files", "gin_search_paths", "gin_bindings")
        others = [name for flags in FLAGS.values() for name, *_ in flags if name not in ("name", "do")]
        unread = [name for name in others if name not in options.read_later]
        refuse(args, (*settings, *unread), f"with --do {options.do}; leave it out")
    options.validate(training)
    if args.dry_run:
        print(module.show(training, options))
        print("\n# dry run: nothing was started", file=sys.stderr)
        return 0
    try:
        with interrupts.raised():  # Ctrl-C also reaches the programs that it waits for
            return int(module.run(training, options))
    except Failed as error:
        print(f"famjax launch: {error}", file=sys.stderr)
        return 1


def _options(args: argparse.Namespace, options: type, supervision: type) -> Any:
    """Returns the target's options from the given flags. Raises `ConfigError` for a flag of another target."""
    from famjax.launch.names import normalised

    nested = {field.name for field in dataclasses.fields(supervision)}
    known = {field.name for field in dataclasses.fields(options)} - {"supervision"} | nested
    given = {name: getattr(args, name) for flags in FLAGS.values() for name, *_ in flags}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{flag_of(name)} is not a flag of target {args.target}; famjax launch --help lists its flags"
            )
    given = {name: normalised(name, value) for name, value in given.items()}
    when = {name: given.pop(name) for name in nested & given.keys()}
    if when and "supervise" in known:
        given["supervise"] = True
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return options(**given, supervision=supervision(**when))


def _training(args: argparse.Namespace) -> Any:
    """Returns the training to launch, whose settings are validated as in `famjax train`."""
    from famjax.cli import train
    from famjax.launch.job import Training

    config, text = train.settings(args)
    if args.target == "local":
        train.check(config)
    elif args.target != "slurm" and (home := re.search(r"""^.*['"]~\w*/.*$""", text, re.MULTILINE)):
        raise ConfigError(f"~ is another folder on the target; write the whole path: {home[0].strip()}")
    words = ("train", *gin_words(args.gin_files, args.gin_search_paths, args.gin_bindings))
    return Training(words, config, _one_file(config, text))


def _one_file(config: Any, text: str) -> str:
    """Returns the settings as the text of one gin file. Raises `ConfigError` if that text would load differently."""
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
        raise ConfigError(f"these settings cannot be written as one gin file: {different} would differ")
    return text
