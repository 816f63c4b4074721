"""Flags that several verbs share, and what they mean to the rest of famjax."""

import argparse
import dataclasses
from typing import Any

from famjax.config import DTYPES, ConfigError, InferConfig, check_mesh
from famjax.config.checks import one_of
from famjax.infer.settings import RECENT


def add_gin_arguments(parser: argparse.ArgumentParser, default_files: tuple[str, ...] = ()) -> None:
    """`--gin_file`, `--gin_search_paths` and `--gin.NAME=VALUE`, as T5X has them."""
    group = parser.add_argument_group("gin settings; the last one given wins")
    group.add_argument(
        "--gin_file", action="append", default=None, metavar="FILE", dest="gin_files", help="may be given several times"
    )
    group.add_argument(
        "--gin_search_paths", type=_paths, default=(), metavar="DIR,DIR",
        help="where gin files are sought, after the current directory and before those that come with famjax",
    )  # fmt: skip
    # Read by main.parse before argparse, which cannot take open-ended names; declared here for the help page.
    group.add_argument(
        "--gin.NAME", metavar="VALUE", default=argparse.SUPPRESS,
        help="VALUE as in a gin file: --gin.TRAIN_STEPS=100, --gin.MODEL_DIR=\"'runs/a'\"",
    )  # fmt: skip
    parser.set_defaults(gin_files=list(default_files), gin_bindings=[])


def _paths(text: str) -> tuple[str, ...]:
    return tuple(path for path in text.split(",") if path)


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    """`--block-size`, `--memory-segments` and `--fam-length`: other memory settings than the model's own."""
    group = parser.add_argument_group("the model's memory, other than model.json has it")
    group.add_argument("--block-size", type=int, metavar="S", help="tokens of a block")
    group.add_argument("--memory-segments", type=int, metavar="M", help="previous blocks that are kept")
    group.add_argument(
        "--fam-length", type=int, metavar="F", help="feedback activations of a layer; 0 switches FAM off"
    )


def memory_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The memory settings that were given, by their names in `MemoryConfig`."""
    names = ("block_size", "memory_segments", "fam_length")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def add_infer_arguments(parser: argparse.ArgumentParser, batch_help: str = "") -> None:
    """`--model`, `--batch-size` (with its help), the memory's flags and gin's: what verbs that read and write share;
    see `settle`."""
    parser.add_argument("--model", metavar="DIR", help="a model directory")
    if batch_help:
        parser.add_argument("--batch-size", type=int, metavar="B", help=f"{batch_help} ({InferConfig.batch_size})")
    add_mesh_argument(parser)
    add_dtype_argument(parser)
    add_memory_arguments(parser)
    add_gin_arguments(parser)


def add_sampling_arguments(parser: argparse._ActionsContainer) -> None:
    """How a token is drawn: what `generate` and `chat` share; see `settle`."""
    parser.add_argument(
        "--temperature", type=float, metavar="X",
        help="0 takes the best token (default, or 1 if another flag asks for a choice)",
    )  # fmt: skip
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K best tokens; 0 is all")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the best of probability P")
    parser.add_argument(
        "--repetition-penalty", type=float, metavar="X", help=f"above 1: less of the last {RECENT} tokens"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the draws (0)")


def add_mesh_argument(parser: argparse.ArgumentParser) -> None:
    """`--mesh`, as gin's `MESH`."""
    parser.add_argument(
        "--mesh", type=_mesh, metavar="AXIS=N,AXIS=N",
        help="devices along data, fsdp and tensor, for example tensor=4 (one device)",
    )  # fmt: skip


def add_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """`--dtype`, as gin's `DTYPE`; see `infer/load.py`."""
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="compute dtype (default: the model's own; float32 on a CPU, where it is faster)",
    )


def _mesh(text: str) -> dict[str, int]:
    try:
        mesh = {axis: int(size) for axis, size in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no mesh; write for example fsdp=4,tensor=2") from None
    check_mesh(mesh)
    return mesh


def settle(args: argparse.Namespace) -> None:
    """Gives every flag that was left out its value from gin (`InferConfig`), in place; without gin, its default.

    Raises:
      ConfigError: gin's settings are wrong, or no model is named.
    """
    config = InferConfig()
    if args.gin_files or args.gin_bindings:
        from famjax.cli.gin_config import load

        files = args.gin_files or ["gin/runs/infer.gin"]
        config, _ = load(InferConfig, files, args.gin_search_paths, args.gin_bindings)
    if args.model is None and not config.model_dir:
        raise ConfigError("no model; add --model DIR, a directory that `famjax train` or `famjax import-hf` wrote")
    for field in dataclasses.fields(config):
        name = "model" if field.name == "model_dir" else field.name
        if getattr(args, name, "") is None:
            setattr(args, name, getattr(config, field.name))
    check_mesh(args.mesh)
    if args.dtype is not None:
        one_of("dtype", args.dtype, DTYPES)
