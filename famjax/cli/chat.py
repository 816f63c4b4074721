"""`famjax chat`: a conversation in a terminal, with a persistent memory of constant size."""

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from famjax.cli.flags import add_infer_arguments, add_sampling_arguments, check_file, opened, sampling_of, settle, utf8
from famjax.config import ConfigError
from famjax.config.checks import seed
from famjax.config.text import text_of
from famjax.infer.settings import MOST_TOKENS, Sampling, check_whole
from famjax.process import interrupts

if TYPE_CHECKING:
    from famjax.infer.chat import Turns
    from famjax.infer.codec import Codec

NAME = "chat"
HELP = """Chat with a model. Its memory is one session file of constant size, saved after every answer.

  famjax chat --model runs/llama --session me.session
  printf 'My name is Ada.\\nWhat is my name?\\n' | famjax chat --model runs/llama --session me.session

Turns are formatted with the model's chat template, or as `User: ...` and `Assistant: ...` if it has none.
Only new turns are prefilled. Ctrl-C ends an answer, Ctrl-D the conversation; the same command resumes it.
Lines that begin with / are commands:

  /help     show this list
  /reset    reset the memory and delete the session file
  /save F   save the session to file F too
"""
COMMANDS = "\n".join(line for line in HELP.splitlines() if line.startswith("  /"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax chat`."""
    parser.add_argument(
        "--session", metavar="FILE", help="session file: resumed if it exists, updated after every answer"
    )
    parser.add_argument("--system", type=utf8, default="", metavar="TEXT", help="system prompt of a new conversation")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="maximum tokens per answer (default: 256)")
    add_sampling_arguments(parser)
    add_infer_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the conversation. Everything that can be checked is checked before the model is loaded."""
    from famjax.data.chat_template import chat_template
    from famjax.infer.chat import Turns
    from famjax.infer.codec import Codec
    from famjax.storage.model_dir import read_config, split_step

    settle(args)
    sampling = _check(args)
    config = read_config(args.model)
    codec = Codec(args.model, config.vocab_size)
    turns = Turns(chat_template(split_step(args.model)[0]), codec)
    if args.system:
        turns.first("a", args.system)  # a template that rejects or ignores it shows before the model is loaded
    file = args.session if args.session and Path(args.session).exists() else None
    model, session = opened(args, config, file)
    if file:
        late = "; --system has no effect until /reset" if args.system else ""
        print(f"{file}: resuming after {int(session.memory.position[0]) + 1:,} tokens{late}", file=sys.stderr)
    _Conversation(model, session, turns, codec, sampling, args).run()
    return 0


def _check(args: argparse.Namespace) -> Sampling:
    check_whole("--max-tokens", args.max_tokens, 1, MOST_TOKENS)
    seed("--seed", args.seed)
    if args.session:
        check_file("--session", args.session)
    return sampling_of(args)


class _Conversation:
    """Runs the chat loop: reads a line, prints an answer, saves the session."""

    def __init__(
        self, model: Any, session: Any, turns: "Turns", codec: "Codec", sampling: Sampling, args: argparse.Namespace
    ):
        self._model, self._session, self._turns, self._codec = model, session, turns, codec
        self._sampling, self._args = sampling, args

    @functools.cached_property
    def _compiled(self) -> Callable[[], None]:
        """Begins to compile decoding, once; a call waits for it."""
        from famjax.infer.decode import compile_beside

        return compile_beside(self._model, 1, self._sampling, self._codec.token_stops(self._turns.stops))

    def run(self) -> None:
        """Answers each line of the input until it ends."""
        for line in _lines():
            if line.startswith("/"):
                self._command(*line.rstrip().split(maxsplit=1))
            elif line.strip():
                self._answer(line)
                if self._args.session:
                    self._save(self._args.session)

    def _command(self, name: str, argument: str = "") -> None:
        from famjax.infer.session import start

        if name == "/reset":
            self._session = start(self._model)
            if self._args.session:
                Path(self._args.session).unlink(missing_ok=True)
            print("memory reset", file=sys.stderr)
        elif name == "/save" and argument:
            argument = os.path.expanduser(argument)
            try:
                check_file("/save", argument)
                self._save(argument)
                print(f"saved in {argument}", file=sys.stderr)
            except (ConfigError, OSError) as error:
                print(error, file=sys.stderr)
        else:
            print(COMMANDS, file=sys.stderr)

    def _save(self, path: str) -> None:
        from famjax.infer.session import save

        if int(self._session.recent[0, -1]) >= 0:
            save(path, self._session, self._model)

    def _answer(self, text: str) -> None:
        """Prefills the user's turn and streams the answer to stdout."""
        import numpy as np

        from famjax.cli.generate import write
        from famjax.infer.decode import TOKENS_PER_CALL, generate
        from famjax.infer.prefill import prefill
        from famjax.process.progress import Progress

        recent = np.asarray(self._session.recent[0])
        new = recent[-1] < 0
        ids = self._turns.first(text, self._args.system) if new else self._turns.following(text, recent)
        stops, compiled = self._turns.stops, self._compiled
        with Progress("reading", unit="tokens") as progress:
            self._session = prefill(self._model, self._session, [[ids]], progress)
            compiled()
        stream = self._codec.stream(stops, ())
        # With a tokenizer, stop texts are matched on the host, so the memory must not run ahead of them.
        at_most = 1 if stops and not self._codec.is_bytes else TOKENS_PER_CALL
        begun = False

        def show(text: str) -> None:
            nonlocal begun
            text = text if begun else text.lstrip()
            begun = begun or bool(text)
            write(text)

        with interrupts.noted() as interrupted:  # an exception within a device call would lose the donated memory
            for made in generate(
                self._model, self._session, self._args.max_tokens, self._sampling, seed=self._args.seed,
                stops=self._codec.token_stops(stops), tokens_per_call=at_most,
            ):  # fmt: skip
                self._session = made.session
                show(stream.feed(made.tokens[0], bool(made.stopped[0])))
                if stream.stopped or interrupted:
                    break
        show(stream.finish())
        write("\n")


def _lines() -> Iterator[str]:
    """Yields the lines that the user types, or those of a pipe. Raises `BadText` if a line of a pipe is not UTF-8."""
    if not sys.stdin.isatty():
        for number, line in enumerate(sys.stdin.buffer, 1):
            yield text_of(line, f"standard input, line {number}").rstrip("\r\n")
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() a history)
    while True:
        try:
            with interrupts.raised():
                line = input("> ")
            yield line
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return
