"""`famjax inspect`: measures what a memory holds of a document, and what depends on it."""

import argparse
from pathlib import Path

from famjax.cli.flags import add_memory_arguments, check_folder, refuse, utf8
from famjax.config import ConfigError, memory_overrides

NAME = "inspect"
# Flags, as in `args`, of one kind of inspection.
OF_PASSKEY, OF_TEXT = ("documents", "seed"), ("places", "longest")
HELP = """Inspect what a model's feedback memory (FAM) does with a document.

  famjax inspect --model runs/fam --passkey 1 4 16 64 --output runs/inspect
  famjax inspect --model runs/fam --input book.txt --other another.txt --output runs/inspect
  famjax inspect --model runs/fam --input book.txt --answer " Who did it? The butler" --output runs/inspect

Reports, by layer and head, the attention mass of tokens on FAM, and of FAM on the block and on the previous
FAM; FAM's norm, the size of its updates and, if they are gated, their gates; the effect on the answer and on
other tokens if FAM is reset, zeroed or replaced by another document's; recall by the number of FAM updates;
and a summary in words. Writes inspect.html (one file, no network needed), inspect.json and inspect.png. Texts
of any length are streamed block by block.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax inspect`."""
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory")
    parser.add_argument("--output", required=True, metavar="DIR", help="output directory")
    parser.add_argument("--input", default="", metavar="FILE", help="text file to inspect")
    parser.add_argument(
        "--answer", type=utf8, default="", metavar="TEXT", help="text to append, which is scored separately"
    )
    parser.add_argument(
        "--other", default="", metavar="FILE", help="text file whose FAM replaces that of the input (default: none)"
    )
    parser.add_argument(
        "--passkey", type=int, nargs="+", default=(), metavar="N",
        help="inspect the pass-key task with N blocks of filler, for each N, instead of a text; traces the longest",
    )  # fmt: skip
    parser.add_argument("--documents", type=int, metavar="N", help="pass-key documents per length (default: 16)")
    parser.add_argument(
        "--places", type=int, metavar="N", help="block boundaries of a text at which FAM is knocked out (default: 8)"
    )
    parser.add_argument(
        "--longest", type=int, metavar="N", help="truncate each text to N tokens (default: 0, no limit)"
    )
    parser.add_argument("--batch-size", type=int, default=16, metavar="B", help="maximum batch size (default: 16)")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the pass keys (default: 1)")
    add_memory_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the inspection. Settings, files and the model directory are checked before jax is imported."""
    from famjax.config.inspection import InspectConfig
    from famjax.storage.model_dir import read_config

    if not args.passkey:
        refuse(args, OF_PASSKEY, "on a text; leave it out, or use --passkey")
    elif not args.input:
        refuse(args, OF_TEXT, "on the pass key; leave it out, or use --input")
    given = {name: value for name in (*OF_PASSKEY, *OF_TEXT) if (value := getattr(args, name)) is not None}
    config = InspectConfig(
        args.model, args.output, args.input, args.answer, args.other, tuple(args.passkey), batch_size=args.batch_size,
        **given,
    )  # fmt: skip
    config.validate()
    for flag, path in (("--input", config.input), ("--other", config.other)):
        if path and not Path(path).is_file():
            raise ConfigError(f"{flag} {path} is not a file; name a text file")
    check_folder("--output", config.output_dir)
    overrides = memory_overrides(args)
    fam_length = overrides.get("fam_length", read_config(args.model).memory.fam_length)
    if not fam_length:
        raise ConfigError(f"{args.model} has no feedback memory (fam_length 0): there is nothing to inspect")

    from famjax.evals.inspect.run import run as inspect
    from famjax.process.compilation_cache import enable
    from famjax.process.progress import Progress

    enable()
    with Progress(f"inspecting {args.model}", unit="tokens") as progress:
        found = inspect(config, overrides, lambda _, tokens: progress(tokens))
    print("\n".join(found["summary"]))
    print(f"written: {Path(config.output_dir) / 'inspect.html'}, inspect.json, inspect.png")
    return 0
