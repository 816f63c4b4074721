"""Flags that several verbs share, and what they mean to the rest of famjax."""

import argparse


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


def memory_overrides(args: argparse.Namespace) -> dict[str, int]:
    """The memory settings that were given, by their names in `MemoryConfig`."""
    names = ("block_size", "memory_segments", "fam_length")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}
