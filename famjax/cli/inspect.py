"""`famjax inspect`: why a memory works, or fails, on a document."""

import argparse
from pathlib import Path

from famjax.cli.flags import add_memory_arguments, memory_overrides
from famjax.config import ConfigError

NAME = "inspect"
HELP = """Look at what a model's feedback memory (FAM) does with a document.

  famjax inspect --model runs/fam --passkey 1 4 16 64 --output runs/inspect
  famjax inspect --model runs/fam --input book.txt --other another.txt --output runs/inspect
  famjax inspect --model runs/fam --input book.txt --answer " Who did it? The butler" --output runs/inspect

Attention of input queries to FAM, and of FAM to the block and to its previous self, by layer and head; FAM's
norm and how far each update moves it; what happens to the answer and to the rest when FAM is as before any
text, zero, or another document's; what is left after how many compressions; and all of it in plain words.
Writes inspect.html (one file, no network needed), inspect.json and inspect.png. Texts of any length are read
block by block.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax inspect`."""
    parser.add_argument("--model", required=True, metavar="DIR", help="a model directory")
    parser.add_argument("--output", required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--input", default="", metavar="FILE", help="a text")
    parser.add_argument("--answer", default="", metavar="TEXT", help="put behind the text, and looked at by itself")
    parser.add_argument("--other", default="", metavar="FILE", help="a text whose FAM is put in the input's place")
    parser.add_argument(
        "--passkey", type=int, nargs="+", default=(), metavar="N",
        help="instead of a text, the pass key task behind N blocks of filler, for each N; one of the last is traced",
    )  # fmt: skip
    parser.add_argument("--documents", type=int, default=16, metavar="N", help="pass key documents of each length (16)")
    parser.add_argument("--places", type=int, default=8, metavar="N", help="block edges where a text loses its FAM (8)")
    parser.add_argument(
        "--longest", type=int, default=0, metavar="N", help="tokens that are read of a text at most (all)"
    )
    parser.add_argument("--batch-size", type=int, default=16, metavar="B", help="texts read side by side, at most (16)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the keys (1)")
    add_memory_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Inspects; settings, files and the model directory are checked before jax is loaded."""
    from famjax.config.inspection import InspectConfig
    from famjax.storage.model_dir import read_config

    config = InspectConfig(
        args.model, args.output, args.input, args.answer, args.other, tuple(args.passkey), args.documents,
        places=args.places, longest=args.longest, batch_size=args.batch_size, seed=args.seed,
    )  # fmt: skip
    config.validate()
    for flag, path in (("--input", config.input), ("--other", config.other)):
        if path and not Path(path).is_file():
            raise ConfigError(f"{flag} {path} is no file; name a text")
    if Path(config.output_dir).is_file():
        raise ConfigError(f"--output {config.output_dir} is a file; name a directory")
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
