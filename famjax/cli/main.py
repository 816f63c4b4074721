"""The command `famjax`: runs a verb, and turns errors into one line and an exit code.

A verb is a module with four names:

    NAME                        the verb
    HELP                        what it does, the first lines of its help page
    add_arguments(parser)       declares its flags; shared flags are in `famjax/cli/flags.py`
    run(args) -> int            does the work and returns the exit code

At module level a verb imports nothing heavier than argparse and `famjax.config`. jax is imported inside
`run`, after the settings are checked, so help and user errors take a fraction of a second.

Exit codes: 0; 2 for a user error; 130 if interrupted; 1 otherwise. All but 0 come with one line on
standard error; `--debug` also prints the traceback.
"""

import argparse
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import famjax
from famjax.config import ConfigError
from famjax.config.checks import nearest
from famjax.process import cpu, interrupts, libtpu


class Verb(NamedTuple):
    """The module of a verb, and its one-line summary."""

    module: str
    summary: str


VERBS = {
    "train": Verb("famjax.cli.train", "pretrain or fine-tune from gin; resumes from MODEL_DIR"),
    "data": Verb("famjax.cli.data", "show the batches of a training run: rows, blocks, documents, loss weights"),
    "eval": Verb("famjax.cli.eval", "evaluate and compare model directories: results.json, tables, plots"),
    "inspect": Verb("famjax.cli.inspect", "inspect what the memory does with a document, and what depends on it"),
    "score": Verb("famjax.cli.score", "log probability of every token of the documents of a file"),
    "generate": Verb("famjax.cli.generate", "generate from a prompt of any length; save the memory as a session file"),
    "chat": Verb("famjax.cli.chat", "chat with a model whose memory is a session file of constant size"),
    "serve": Verb("famjax.cli.serve", "an OpenAI-compatible server with named memories"),
    "import-hf": Verb("famjax.cli.import_hf", "make a model directory from a Hugging Face folder, with FAM added"),
    "export-hf": Verb("famjax.cli.export_hf", "write a model directory as a folder that transformers loads"),
    "plan": Verb("famjax.cli.plan", "compile for a TPU slice without a TPU: memory, FLOPs, collectives, time"),
    "launch": Verb("famjax.cli.launch", "start a training job on many devices: this machine, TPU VMs, GKE, Slurm"),
    "bench": Verb("famjax.cli.bench", "step time, tokens/s and memory over sequence lengths"),
    "compare": Verb("famjax.cli.compare", "train and evaluate several memories at one budget, in one report"),
    "quickstart": Verb("famjax.cli.quickstart", "train FAM and a BSWA baseline on the pass key, compare them"),
}

# Errors that users can fix (exit code 2). Other errors have exit code 1.
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


# Metavars of flags that are paths.
PATHS = ("DIR", "FILE", "FILES", "SRC", "DST", "RUN", "DIR,DIR", "TASK=PATH")


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `ConfigError` instead of printing its usage and exiting."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raises `ConfigError`; argparse calls this for any invalid argument."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `famjax` with these arguments and returns its exit code.

    If `argv` is None, the arguments are those of the process, and signals are handled until the process exits.
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
    """Returns the exit code for an error."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, MISTAKES) else 1


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
    """Parses a verb's arguments. All `--gin.NAME=VALUE` are collected in `gin_bindings`."""
    parser = Parser(prog=f"famjax {module.NAME}", description=module.HELP)
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
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
    """Expands `~` in a path, in `TASK=PATH`, or in a list of them, since shells do not within quotes and after `=`."""
    if isinstance(value, str):
        task, equals, path = value.rpartition("=")
        inside = equals and path.startswith("~") and "/" not in task
        return f"{task}={os.path.expanduser(path)}" if inside else os.path.expanduser(value)
    return type(value)(map(at_home, value)) if isinstance(value, (list, tuple)) else value


def _check_flags(parser: Parser, words: list[str]) -> None:
    """Raises `ConfigError` for an unknown flag, before argparse reports missing arguments instead."""
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
        "famjax VERB --help lists the flags of a verb; --debug prints the traceback of an error.\n"
    )


def _fail(prog: str, error: BaseException, debug: bool) -> int:
    code = exit_code(error)
    if debug:
        traceback.print_exc()
    if code == 1:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        message = f"{type(error).__name__}: {first}{'' if debug else ' (--debug shows the traceback)'}"
    elif isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    else:
        message = str(error) or ("interrupted" if code == 130 else "")
    print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
