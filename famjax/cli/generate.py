"""`famjax generate`: continues a prompt of any length; the memory can be saved to a session file."""

import argparse
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from famjax.cli.flags import (
    add_infer_arguments,
    add_sampling_arguments,
    check_file,
    opened,
    refuse,
    sampling_of,
    settle,
)
from famjax.config import ConfigError
from famjax.config.checks import flag_of, seed
from famjax.config.text import without_mark
from famjax.infer.settings import MOST_TOKENS, Sampling, check_whole

if TYPE_CHECKING:
    import numpy as np

    from famjax.infer.codec import Codec

NAME = "generate"
HELP = """Generate from a prompt of any length, in constant memory; only the generated text is streamed to stdout.

  famjax generate --model runs/fam --prompt "The pass key is"
  cat book.txt | famjax generate --model runs/fam - --state-out book.session --max-tokens 0
  famjax generate --model runs/fam --state-in book.session --prompt "Who did it?" --temperature 0.8
  famjax generate --model runs/fam --input prompts.jsonl --output answers.jsonl

Prompts are used verbatim, including a trailing newline; only a byte order mark is removed. If the model
directory has a tokenizer, prompts must be UTF-8, a new text gets the special tokens of its configuration, and
the model's end-of-text tokens end generation; otherwise tokens are bytes. The same prompt, settings and seed
give the same text, alone or in a batch. JSON lines: {"prompt": TEXT} gives {"prompt", "text", "tokens" (ids of the
text), "finish" ("stop" or "length")}, in the same order.
"""

CHUNK_BYTES = 2**16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax generate`."""
    prompt = parser.add_argument_group("prompt and session")
    prompt.add_argument("stdin", nargs="?", metavar="-", help="read the prompt from stdin, incrementally")
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt")
    prompt.add_argument("--prompt-file", metavar="FILE", help="read the prompt from a file; - is stdin")
    prompt.add_argument("--input", metavar="FILE", help="many prompts, JSON lines; needs --output")
    prompt.add_argument("--output", metavar="FILE", help="generated texts, JSON lines; written when all are done")
    prompt.add_argument("--state-in", metavar="FILE", help="resume from a session file written by --state-out")
    prompt.add_argument("--state-out", metavar="FILE", help="save the session to this file at the end")
    make = parser.add_argument_group("generation")
    make.add_argument(
        "--max-tokens", type=int, metavar="N", help="maximum tokens to generate (default: 256; 0: prefill only)"
    )
    make.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop before this text; repeatable")
    make.add_argument(
        "--samples", type=int, default=1, metavar="N", help="samples per prompt, separated by newlines (default: 1)"
    )
    add_sampling_arguments(make)
    add_infer_arguments(parser, "maximum batch size")


def run(args: argparse.Namespace) -> int:
    """Generates text. Everything that can be checked is checked before the model is loaded."""
    from famjax.infer.codec import Codec
    from famjax.storage.model_dir import read_config

    if not args.input:
        refuse(args, ("batch_size",), "without --input: one prompt is read at a time; leave it out")
    settle(args)
    sampling = check_arguments(args)
    config = read_config(args.model)
    codec = Codec(args.model, config.vocab_size)
    codec.token_stops(args.stop)
    with PromptSource(args) as source:
        model, session = opened(args, config, args.state_in)
        if args.input:
            from famjax.cli.generate_batch import answer_all

            answer_all(model, session, source.prompts, sampling, codec, args)
        else:
            chunks = codec.chunks(source.pieces(), fresh=not args.state_in)
            session = _answer(model, session, chunks, sampling, codec, args)
    if args.state_out:
        from famjax.infer import session as sessions

        sessions.save(args.state_out, session, model)
    return 0


# --- checks ---------------------------------------------------------------------------------------


def check_arguments(args: argparse.Namespace) -> Sampling:
    """Returns the sampling settings. Raises `ConfigError` for invalid or conflicting flags."""
    if args.stdin not in (None, "-"):
        raise ConfigError(f"{args.stdin!r} is not a flag; write --prompt TEXT, --prompt-file FILE, or - to read a pipe")
    if args.stdin:
        if args.prompt_file is not None:
            raise ConfigError("both --prompt-file and - are given; choose one")
        args.prompt_file = "-"
    given = [name for name in ("prompt", "prompt_file", "input") if getattr(args, name) is not None]
    if len(given) > 1:
        names = " and ".join(map(flag_of, given))
        raise ConfigError(f"both {names} are given; choose one")
    if not given and not args.state_in:
        raise ConfigError("no prompt: add --prompt TEXT, --prompt-file FILE, - to read a pipe, or --state-in FILE")
    if bool(args.input) != bool(args.output):
        raise ConfigError("--input and --output go together; add the missing one")
    for name, least in (("max_tokens", 0), ("samples", 1), ("batch_size", 1)):
        check_whole(flag_of(name), getattr(args, name), least, MOST_TOKENS)
    seed("--seed", args.seed)
    if args.max_tokens == 0 and not args.state_out:
        raise ConfigError("--max-tokens 0 generates nothing: raise it, or add --state-out FILE to save the session")
    for name in ("output", "state_out"):
        if value := getattr(args, name):
            check_file(flag_of(name), value, args.input or args.prompt_file)
    if args.state_out and (args.input or args.samples > 1):
        raise ConfigError("--state-out saves the session of one text; leave out --input and --samples")
    sampling = sampling_of(args, args.samples)
    if args.samples > 1 and sampling.temperature == 0:
        raise ConfigError(f"--samples {args.samples} with --temperature 0 would all be the same; raise the temperature")
    return sampling


def _open(path: str) -> BinaryIO:
    if Path(path).is_dir():
        raise ConfigError(f"--prompt-file {path} is a directory; name a file")
    return open(path, "rb")


class PromptSource:
    """Reads the prompt, or the `prompts` of --input. The first chunk is read at construction, so that errors are found
    before the model is loaded."""

    def __init__(self, args: argparse.Namespace):
        self.prompts: list[str] = []
        self._file: BinaryIO | None = None
        self._pieces: Iterator[bytes] = iter(())
        may_be_empty = bool(args.state_in)
        if args.input:
            from famjax.cli.generate_batch import read_prompts

            self.prompts = read_prompts(args.input, may_be_empty)
        elif args.prompt is not None:
            # Restores the bytes of an argument that is not valid UTF-8.
            self._pieces = iter([args.prompt.encode("utf-8", "surrogateescape")])
        elif args.prompt_file is not None:
            self._file = sys.stdin.buffer if args.prompt_file == "-" else _open(args.prompt_file)
            place = "the prompt" if args.prompt_file == "-" else args.prompt_file
            self._pieces = without_mark(iter(self._read, b""), place)
        self._first = next(self._pieces, b"")
        if not (self._first or self.prompts or may_be_empty):
            raise ConfigError("the prompt is empty: give it a byte, or --state-in FILE to resume from")

    def __enter__(self) -> "PromptSource":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._file is not None and self._file is not sys.stdin.buffer:
            self._file.close()

    def _read(self) -> bytes:
        """Returns the bytes that are available now, without waiting for a pipe to fill a whole chunk."""
        return self._file.read1(CHUNK_BYTES) if self._file is not None else b""  # type: ignore[attr-defined]

    def pieces(self) -> Iterator[bytes]:
        """Returns the prompt in chunks, as they arrive."""
        return itertools.chain([self._first] if self._first else [], self._pieces)


# --- generation -----------------------------------------------------------------------------------


def _answer(
    model: Any, session: Any, chunks: Iterable["np.ndarray"], sampling: Sampling, codec: "Codec",
    args: argparse.Namespace,
) -> Any:  # fmt: skip
    """Prefills one prompt and streams its samples to stdout. Returns the session after them, one row per sample."""
    from famjax.infer.answers import stream
    from famjax.infer.decode import compile_beside
    from famjax.infer.prefill import prefill
    from famjax.process.progress import Progress

    stops = codec.token_stops(args.stop)
    compiled = compile_beside(model, args.samples, sampling, stops) if args.max_tokens else lambda: None
    with Progress("reading", unit="tokens") as progress:
        session = prefill(model, session, [chunks], progress)
    pieces = stream(
        model, codec, session, args.max_tokens, sampling, seed=args.seed, stops=args.stop, samples=args.samples,
        exact=bool(args.state_out),
    )  # fmt: skip
    later = [""] * args.samples  # further samples are printed when the first one is complete
    try:
        with Progress("answering", unit="tokens"):
            compiled()
            first = list(itertools.islice(pieces, 1))
        for piece in itertools.chain(first, pieces):
            session = piece.session
            later = [text + new for text, new in zip(later, piece.texts, strict=True)]
            write(later[0])
            later[0] = ""
        write("\n".join(later) + ("\n" if len(later) > 1 or sys.stdout.isatty() else ""))
    except BrokenPipeError:
        # The reader of our output closed the pipe. Without this, Python reports it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return session


def write(text: str) -> None:
    """Writes text to stdout and flushes it, in UTF-8 regardless of the locale."""
    if text:
        sys.stdout.buffer.write(text.encode("utf-8"))
        sys.stdout.flush()
