"""Runs other programs. Commands are lists of words, printed in shell syntax, but never run through a shell."""

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple


class Failed(Exception):
    """Raised if a launch with valid settings fails; the message is one line with a remedy."""


class Command(NamedTuple):
    """The words of a command, its purpose (printed as a comment), and its standard input."""

    words: Sequence[str]
    why: str
    text: str = ""


class Result(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """The error line: the first line of standard error that contains ERROR, else the last one."""
        lines = [" ".join(line.split()) for line in self.err.splitlines() if line.strip()]
        return next((line for line in lines if "ERROR" in line), (lines or [f"exit code {self.code}"])[-1])


def shown(command: Command) -> str:
    """Returns a comment and a line that can be pasted into a shell; input follows as a here-document."""
    line = f"# {command.why}\n{shlex.join(command.words)}"
    if not command.text:
        return line
    mark = "END"
    while mark in command.text.splitlines():
        mark += "_"
    return f"{line} <<'{mark}'\n{command.text.rstrip()}\n{mark}"


def run(command: Command) -> Result:
    """Runs a command to completion. Raises `Failed` if the program is missing."""
    try:
        done = subprocess.run(
            list(command.words), input=command.text, capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError as error:
        raise missing(command.words[0]) from error
    return Result(done.returncode, done.stdout, done.stderr)


def together(commands: Sequence[Command]) -> list[Result]:
    """Runs all commands in parallel. Returns their results in order. Raises `Failed` if a program is missing."""
    with ThreadPoolExecutor(len(commands)) as threads:
        return list(threads.map(run, commands))


def stream(command: Command) -> int:
    """Runs a command that inherits stdout and stderr. Returns its exit code. Raises `Failed` if it is missing."""
    try:
        return subprocess.run(list(command.words), stdin=subprocess.DEVNULL, check=False).returncode
    except FileNotFoundError as error:
        raise missing(command.words[0]) from error


def missing(program: str) -> Failed:
    """Returns the error for a program that is not installed."""
    return Failed(f"there is no program {program} here; install it, or see the commands with --dry-run")


def remedy(reason: str, hints: Sequence[tuple[str, str]]) -> str:
    """Returns the remedy of the first of these (regular expression, remedy) that an error matches; empty if none."""
    return next((hint for sign, hint in hints if re.search(sign, reason, re.IGNORECASE)), "")


def say(line: str) -> None:
    """Prints a progress line of the launch to standard error."""
    print(f"famjax launch: {line}", file=sys.stderr, flush=True)
