"""Flags that several verbs share, and the settings they become."""

import argparse
import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from famjax.config import DTYPES, ConfigError, InferConfig, ModelConfig, check_mesh, memory_overrides
from famjax.config.checks import check_types, flag_of, one_of
from famjax.infer.settings import RECENT, Sampling

if TYPE_CHECKING:
    from famjax.infer.session import Session
    from famjax.nn.model import Transformer


def add_gin_arguments(parser: argparse.ArgumentParser, default_files: tuple[str, ...] = ()) -> None:
    """Adds `--gin_file`, `--gin_search_paths` and `--gin.NAME=VALUE`, as in T5X."""
    group = parser.add_argument_group("gin settings; the last one given wins")
    group.add_argument(
        "--gin_file", action="append", default=None, metavar="FILE", dest="gin_files", help="gin file; repeatable"
    )
    group.add_argument(
        "--gin_search_paths", type=lambda text: tuple(filter(None, text.split(","))), default=(), metavar="DIR,DIR",
        help="search path of gin files, after the current directory and before famjax's own files",
    )  # fmt: skip
    # Read by main.parse before argparse, which cannot take open-ended names; declared here for the help page.
    group.add_argument(
        "--gin.NAME", metavar="VALUE", default=argparse.SUPPRESS,
        help="set a macro or parameter, VALUE as in a gin file: --gin.TRAIN_STEPS=100, --gin.MODEL_DIR=\"'runs/a'\"",
    )  # fmt: skip
    parser.set_defaults(gin_files=list(default_files), gin_bindings=[])


def gin_words(files: Iterable[str], search_paths: Sequence[str], bindings: Iterable[str]) -> list[str]:
    """Returns the words of `add_gin_arguments`, with which another process of famjax gets the same settings."""
    words = [f"--gin_file={file}" for file in files]
    words += [f"--gin_search_paths={','.join(search_paths)}"] if search_paths else []
    return words + [f"--gin.{binding}" for binding in bindings]


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--block-size`, `--memory-segments` and `--fam-length`, which override the model's memory settings."""
    group = parser.add_argument_group("memory settings (default: those of model.json)")
    group.add_argument("--block-size", type=int, metavar="S", help="tokens per block")
    group.add_argument("--memory-segments", type=int, metavar="M", help="previous blocks to keep (keys, values)")
    group.add_argument("--fam-length", type=int, metavar="F", help="feedback activations per layer; 0 switches FAM off")


def add_infer_arguments(parser: argparse.ArgumentParser, batch_help: str = "") -> None:
    """Adds the flags of verbs that run a model: `--model`, `--mesh`, `--dtype`, the memory's and gin's; see `settle`.

    `--batch-size` is added if `batch_help` is given.
    """
    parser.add_argument("--model", metavar="DIR", help="model directory")
    if batch_help:
        parser.add_argument(
            "--batch-size", type=int, metavar="B", help=f"{batch_help} (default: {InferConfig.batch_size})"
        )
    add_mesh_argument(parser)
    add_dtype_argument(parser)
    add_memory_arguments(parser)
    add_gin_arguments(parser)


def add_sampling_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds the sampling flags of `generate` and `chat`; see `settle`."""
    parser.add_argument(
        "--temperature", type=float, metavar="X",
        help="sampling temperature; 0 is greedy (default: 0, or 1 with --top-k, --top-p or several samples)",
    )  # fmt: skip
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from the K most likely tokens (default: 0, all)")
    parser.add_argument(
        "--top-p", type=float, metavar="P",
        help="nucleus sampling: smallest set of tokens with total probability P (default: 1, all)",
    )  # fmt: skip
    parser.add_argument(
        "--repetition-penalty", type=float, metavar="X",
        help=f"penalty for the last {RECENT} tokens, greedy ones too; above 1 discourages repetition (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, metavar="N", help="sampling seed; needs a flag that samples, as --temperature (default: 0)"
    )


def utf8(value: str) -> str:
    """Returns a flag's text. An argparse type, which rejects arguments that are not UTF-8, as of a Latin-1 script."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{ascii(value)} is not UTF-8 text") from None
    return value


def numbers(text: str) -> tuple[int, ...]:
    """Parses a flag's list of integers: 1,4,16. An argparse type."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers; write for example 1,4,16,64") from None


def distinct_numbers(text: str) -> tuple[int, ...]:
    """Parses a flag's list of distinct integers from 0: 0,1,2. An argparse type."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise argparse.ArgumentTypeError(f"{text!r}: write numbers, each once, such as 0,1,2")
    return tuple(map(int, words))


def length(text: str) -> int:
    """Parses a number of tokens: 4096, 4k or 1m. An argparse type."""
    units = {"k": 2**10, "m": 2**20}
    unit = units.get(text[-1:].lower(), 1)
    try:
        return int(float(text[:-1]) * unit) if unit > 1 else int(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a length; write for example 4096, 4k or 1m") from None


def lengths(text: str) -> tuple[int, ...]:
    """Parses a flag's list of lengths, each once: 1k,4k,1m. An argparse type."""
    return tuple(dict.fromkeys(length(part) for part in text.split(",")))


def rates(text: str) -> tuple[float, ...]:
    """Parses a flag's list of distinct positive numbers: 1e-3,3e-3. An argparse type."""
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or len(set(found)) < len(found) or not all(0 < rate < math.inf for rate in found):
        raise argparse.ArgumentTypeError(f"{text!r}: write positive numbers, each once, such as 1e-3,3e-3,1e-2")
    return found


def add_mesh_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--mesh`, the flag for gin's `MESH`."""
    parser.add_argument(
        "--mesh", type=_mesh, metavar="AXIS=N,AXIS=N",
        help="devices along data, fsdp and tensor, for example tensor=4 (default: one device)",
    )  # fmt: skip


def add_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--dtype`, the flag for gin's `DTYPE`; see `infer/load.py`."""
    parser.add_argument(
        "--dtype", choices=DTYPES, help="compute dtype (default: the model's own; float32 on a CPU, where it is faster)"
    )


def _mesh(text: str) -> dict[str, int]:
    try:
        mesh = {axis: int(size) for axis, size in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a mesh; write for example fsdp=4,tensor=2") from None
    if len(mesh) < text.count("="):
        raise argparse.ArgumentTypeError(f"{text!r} has an axis twice; write each once, for example fsdp=4,tensor=2")
    check_mesh(mesh)
    return mesh


def check_folder(flag: str, path: str | Path) -> None:
    """Raises `ConfigError` if a directory that is to be written is a file, or may not be written. Empty: there is none
    yet."""
    if not str(path) or "://" in str(path):
        return
    if Path(path).exists() and not Path(path).is_dir():
        raise ConfigError(f"{flag} {path} is a file; name a directory")
    there = (folder for folder in (Path(path), *Path(path).absolute().parents) if folder.exists())
    _check_writable(flag, path, next(there))


def check_file(flag: str, path: str | Path, source: str | Path | None = None) -> None:
    """Raises `ConfigError` if a file that is to be written is a directory, a device or the file `source`, which is
    read, or its directory is missing or may not be written."""
    folder = Path(path).resolve().parent  # a link stays, and its file is written
    if Path(path).is_dir() or not folder.is_dir():
        raise ConfigError(f"{flag} {path}: {'is a directory' if Path(path).is_dir() else 'its directory is missing'}")
    # A file would take the place of a device or a pipe, such as /dev/null, or of a link there, such as /dev/stdout.
    if Path(path).exists() and not Path(path).is_file() or Path(path).absolute().parent == Path("/dev"):
        raise ConfigError(f"{flag} {path} is not a regular file; name a file")
    if source and Path(path).exists() and Path(source).exists() and Path(path).samefile(source):
        raise ConfigError(f"{flag} {path} is the file that is read, and would replace it; name another")
    _check_writable(flag, path, folder)


def _check_writable(flag: str, path: str | Path, folder: Path) -> None:
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise ConfigError(f"{flag} {path}: nothing may be written in {folder}; name another place")


def refuse(args: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Raises `ConfigError` for the first of these flags, as in `args`, that is given: it has no effect `why`."""
    called = {"gin_bindings": "--gin settings", "gin_files": "--gin_file", "gin_search_paths": "--gin_search_paths"}
    for name in names:
        value = getattr(args, name)
        if value is not None and value is not False and value not in ("", [], ()):
            raise ConfigError(f"{called.get(name, flag_of(name))} has no effect {why}")


def settle(args: argparse.Namespace) -> None:
    """Sets the flags that were not given, in place: from gin (`InferConfig`), or to their defaults. Raises
    `ConfigError` if a gin setting is wrong, or no model is given."""
    config = InferConfig()
    if args.gin_files or args.gin_bindings:
        from famjax.cli.gin_config import load

        files = args.gin_files or ["gin/runs/infer.gin"]
        config, _ = load(InferConfig, files, args.gin_search_paths, args.gin_bindings)
        check_types(config)
        plain, _ = load(InferConfig, files, args.gin_search_paths)
        names = [field.name for field in dataclasses.fields(config)]
        changed = [name for name in names if getattr(config, name) != getattr(plain, name)]
        for name in changed:
            if name not in ("model_dir", *vars(args)):
                raise ConfigError(f"--gin settings of InferConfig.{name} have no effect here; leave them out")
    if args.model is None and not config.model_dir:
        raise ConfigError("no model; add --model DIR, a directory written by `famjax train` or `famjax import-hf`")
    for field in dataclasses.fields(config):
        name = "model" if field.name == "model_dir" else field.name
        if getattr(args, name, "") is None:
            setattr(args, name, getattr(config, field.name))
    check_mesh(args.mesh)
    if args.dtype is not None:
        one_of("dtype", args.dtype, DTYPES)


def sampling_of(args: argparse.Namespace, samples: int = 1) -> Sampling:
    """Returns the sampling settings after `settle`. Without a temperature decoding is greedy, unless top-k, top-p or
    several `samples` need sampling. Raises `ConfigError` if one is invalid, or a seed is given and no other setting
    samples. With a temperature of 0 a seed is accepted, as by `famjax serve`: the caller knows that it is greedy."""
    temperature = args.temperature
    if temperature is None:
        temperature = 1.0 if args.top_k or args.top_p != 1.0 or samples > 1 else 0.0
        if temperature == 0 and args.seed != InferConfig.seed:
            raise ConfigError(f"--seed {args.seed} has no effect in greedy decoding, the default; add --temperature 1 "
                              f"to sample, or leave it out")  # fmt: skip
    sampling = Sampling(temperature, args.top_k, args.top_p, args.repetition_penalty)
    sampling.validate()
    return sampling


def opened(args: argparse.Namespace, config: ModelConfig, session: str | Path | None) -> "tuple[Transformer, Session]":
    """Loads the model of `args`, whose configuration is `config`, and the session in a file, or an empty one (None).
    Raises `ConfigError` if the session cannot be read, or the model cannot continue it; before the weights are read, if
    its memory settings differ."""
    from famjax.infer import session as sessions
    from famjax.infer.load import load
    from famjax.process.compilation_cache import enable
    from famjax.process.progress import Progress
    from famjax.storage.checkpoint import override_memory

    file = sessions.read_file(session) if session else None
    if file:
        sessions.check_memory(file, override_memory(config, **memory_overrides(args)))
    enable()
    with Progress(f"loading {args.model}"):
        model = load(args.model, args.mesh, args.dtype or (file and file.dtype), **memory_overrides(args))
    return model, sessions.restore(file, model) if file else sessions.start(model)
