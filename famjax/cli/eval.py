"""`famjax eval`: what models remember, side by side."""

import argparse
import dataclasses
from pathlib import Path

from famjax.cli.flags import add_gin_arguments, add_memory_arguments, memory_overrides
from famjax.config import ConfigError

NAME = "eval"
HELP = """Evaluate model directories side by side, on the pass key task or on texts of yours.

  famjax eval --model runs/tiny_fam --model runs/tiny_bswa --output runs/compare
  famjax eval --model runs/fam --model runs/bswa --texts 'heldout/*.txt' --output runs/texts

The pass key: exact match against the length of the filler (passkey.png). Texts: bits per byte and
next-token accuracy against the position in the document (language.png), and by how much the models
differ on the same documents. Everything has 95% intervals. Documents are read by streaming, so memory
does not grow with their length. Prints a table, writes results.json and the plot.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax eval`."""
    parser.add_argument("--model", action="append", default=[], metavar="DIR", help="may be given several times")
    parser.add_argument("--output", metavar="DIR", help="where results go (the first model's directory)")
    parser.add_argument(
        "--texts", action="append", default=[], metavar="FILES",
        help="text or JSON lines files, for example 'heldout/*.txt'; may be given several times",
    )  # fmt: skip
    parser.add_argument("--longest", type=int, metavar="N", help="tokens that are read of a text at most (all)")
    parser.add_argument("--filler-blocks", type=_numbers, metavar="N,N", help="lengths of the filler, in blocks")
    parser.add_argument("--keys", type=int, metavar="N", help="keys for each alignment of filler and block (1)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the keys (1)")
    add_memory_arguments(parser)
    add_gin_arguments(parser, default_files=("gin/runs/eval.gin",))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers; write for example 1,4,16,64") from None


def run(args: argparse.Namespace) -> int:
    """Evaluates; settings and model directories are checked before jax is loaded."""
    from famjax.cli.gin_config import load
    from famjax.config import EvalConfig
    from famjax.runtime.model_dir import read_config

    config, _ = load(EvalConfig, args.gin_files, args.gin_search_paths, args.gin_bindings)
    named = {
        "output_dir": args.output,
        "filler_blocks": args.filler_blocks,
        "keys": args.keys,
        "seed": args.seed,
        "longest": args.longest,
    }
    named |= {"task": "text", "sources": tuple(args.texts)} if args.texts else {}
    given = {name: value for name, value in named.items() if value is not None} | memory_overrides(args)
    dirs = tuple(args.model) or tuple(path for path in config.model_dirs if path)
    config = dataclasses.replace(config, model_dirs=dirs, **given)
    config.validate()
    for path in config.model_dirs:
        read_config(path)
    if config.output_dir and Path(config.output_dir).is_file():
        raise ConfigError(f"--output {config.output_dir} is a file; name a directory")

    from famjax.evals.run import run as evaluate
    from famjax.runtime.compilation_cache import enable

    enable()
    evaluate(config)
    return 0
