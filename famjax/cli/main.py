"""The command `famjax`: finds the verb, runs it, and turns what goes wrong into a line and an exit code.

A verb is a module with four names:

    NAME                        the verb
    HELP                        what it does, the first lines of its help page
    add_arguments(parser)       declares its flags; `famjax/cli/flags.py` has those that verbs share
    run(args) -> int            does the work and returns the exit code

Its module level imports nothing heavier than argparse and `famjax.config`; jax and all that computes
are imported inside `run`, after the settings are checked. So help, and every mistake that a look at
the settings can find, costs a fraction of a second.

Exit codes: 0; 2 on a user's mistake; 130 when interrupted; 1 otherwise. Each but the first comes with
one line on standard error; `--debug` shows the traceback too.
"""

import argparse
import difflib
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import famjax
from famjax.config import ConfigError
from famjax.process import cpu, interrupts, libtpu


class Verb(NamedTuple):
    """Where a verb is, and what it does in a few words."""

    module: str
    summary: str


VERBS = {
    "train": Verb("famjax.cli.train", "pretrain or fine-tune from gin; resumes by itself from MODEL_DIR"),
    "data": Verb("famjax.cli.data", "show what a training reads: rows, blocks, documents, loss weights"),
    "eval": Verb("famjax.cli.eval", "evaluate model directories: results.json, a table, a plot"),
    "inspect": Verb("famjax.cli.inspect", "what the memory does with a document, and what happens without it"),
    "score": Verb("famjax.cli.score", "log probability of every token of the documents of a file"),
    "generate": Verb("famjax.cli.generate", "read a prompt of any length, write on, keep the memory in a file"),
    "chat": Verb("famjax.cli.chat", "talk with a model; its memory is a file that does not grow"),
    "serve": Verb("famjax.cli.serve", "an OpenAI-compatible server with named memories"),
    "import-hf": Verb("famjax.cli.import_hf", "make a model directory of a Hugging Face folder, with a memory"),
    "export-hf": Verb("famjax.cli.export_hf", "write a model directory as a folder that transformers loads"),
    "plan": Verb("famjax.cli.plan", "compile a job for a TPU slice without a TPU: memory, work, collectives, time"),
    "launch": Verb("famjax.cli.launch", "start a training on many devices: this machine, TPU VMs, GKE, Slurm"),
    "bench": Verb("famjax.cli.bench", "step time, tokens/s and memory over sequence lengths"),
    "compare": Verb("famjax.cli.compare", "train and evaluate several memories at one budget, in one report"),
    "quickstart": Verb("famjax.cli.quickstart", "train FAM and its twin without memory on the pass key, compare them"),
}

# What a user can put right. Everything else is ours.
MISTAKES = (
    ConfigError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    json.JSONDecodeError,
    UnicodeDecodeError,
)


# What stands for the value of a flag that is a path, or several.
PATHS = ("DIR", "FILE", "FILES", "SRC", "DST", "RUN", "DIR,DIR", "TASK=PATH")


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `ConfigError` instead of printing its usage and leaving."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Called by argparse on any mistake."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `famjax` with these arguments and returns its exit code.

    Without arguments it runs those of this process, and handles its signals to the end.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    prog = f"famjax {words[0]}" if words and words[0] in VERBS else "famjax"
    libtpu.hide_without_tpu()
    if argv is None:
        cpu.keep_freed_memory()
    with interrupts.handled(prog, lasting=argv is None):
        try:
            code = _dispatch(words)
        except (KeyboardInterrupt, Exception) as error:
            code = _fail(prog, error, debug)
        if argv is None and interrupts.requested() == signal.SIGINT:
            interrupts.leave(interrupts.INTERRUPTED)  # waits for no thread
        return code


def exit_code(error: BaseException) -> int:
    """The code with which famjax leaves on an error."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, MISTAKES) else 1


def nearest(word: str, choices: Iterable[str], most: int = 3) -> str:
    """`; did you mean A or B?`, or nothing where no choice is near."""
    near = difflib.get_close_matches(word, sorted(choices), n=most, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview(), end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"famjax {famjax.__version__}")
        return 0
    verb = VERBS.get(words[0])
    if verb is None:
        near = nearest(words[0], VERBS) or f"; the verbs are {', '.join(VERBS)}"
        raise ConfigError(f"there is no verb {words[0]!r}{near}")
    module = importlib.import_module(verb.module)
    try:
        args = parse(module, words[1:])
    except SystemExit as leaving:  # argparse leaves after --help
        return int(leaving.code or 0)
    return int(module.run(args))


def parse(module: ModuleType, words: list[str]) -> argparse.Namespace:
    """A verb's arguments. `--gin.NAME=VALUE`, whose names are open, are gathered in `gin_bindings`."""
    parser = Parser(prog=f"famjax {module.NAME}", description=module.HELP)
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of what goes wrong")
    bindings = [word.removeprefix("--gin.") for word in words if word.startswith("--gin.")]
    words = [word for word in words if not word.startswith("--gin.")]
    if bindings and parser.get_default("gin_bindings") is None:
        raise ConfigError(f"{parser.prog} takes no gin settings (--gin.{bindings[0]}); see {parser.prog} --help")
    _check_flags(parser, words)
    args = parser.parse_args(words)
    if bindings:
        args.gin_bindings = bindings
    for action in parser._actions:
        if action.metavar in PATHS and action.dest in args:
            setattr(args, action.dest, at_home(getattr(args, action.dest)))
    return args


def at_home(value: Any) -> Any:
    """A path, `TASK=PATH`, or several of them, with `~` as the home directory: the shell leaves it as it is within
    quotes and behind `=`."""
    if isinstance(value, str):
        task, equals, path = value.rpartition("=")
        inside = equals and path.startswith("~") and "/" not in task
        return f"{task}={os.path.expanduser(path)}" if inside else os.path.expanduser(value)
    return type(value)(map(at_home, value)) if isinstance(value, (list, tuple)) else value


def _check_flags(parser: Parser, words: list[str]) -> None:
    """Raises `ConfigError` on an unknown flag, before argparse complains of what is then missing."""
    known = list(parser._option_string_actions)
    for word in words:
        flag = word.split("=", 1)[0]
        if flag == "--":
            return
        if flag.startswith("--") and flag not in known:
            raise ConfigError(f"there is no flag {flag} ({parser.prog} --help lists them){nearest(flag, known)}")


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.summary}\n" for name, verb in VERBS.items()]
    return (
        "usage: famjax VERB [flags]\n\n"
        "Language models with a working memory (TransformerFAM), in JAX.\n\n"
        f"{''.join(lines)}\n"
        "famjax VERB --help tells a verb's flags; --debug shows the traceback of what goes wrong.\n"
    )


def _describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def _fail(prog: str, error: BaseException, debug: bool) -> int:
    code = exit_code(error)
    if debug:
        traceback.print_exc()
    if code == 1:
        hint = "" if debug else " (--debug shows the traceback)"
        message = f"{type(error).__name__}: {_first_line(error)}{hint}"
    else:
        message = str(error) or "interrupted" if code == 130 else _describe(error)
    print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
