"""Commands of other programs: lists of words, shown as a shell would take them, never run through one."""

import shlex
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import NamedTuple


class Failed(Exception):
    """A launch that failed through no mistake in its settings; the message is one line that says what to do."""


class Command(NamedTuple):
    """One command.

    Attributes:
      words: the program and its arguments.
      why: a few words for whoever reads it.
      text: what it reads on standard input.
    """

    words: Sequence[str]
    why: str
    text: str = ""


class Result(NamedTuple):
    """What came of it: the exit code and what was said."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """The line that says what is wrong: the last one of standard error, or the first with ERROR in it."""
        lines = [" ".join(line.split()) for line in self.err.splitlines() if line.strip()]
        return next((line for line in lines if "ERROR" in line), (lines or [f"exit code {self.code}"])[-1])


def shown(command: Command) -> str:
    """A comment and a line that can be pasted into a shell; input follows as a here-document."""
    line = f"# {command.why}\n{shlex.join(command.words)}"
    if not command.text:
        return line
    mark = "END"
    while mark in command.text.splitlines():
        mark += "_"
    return f"{line} <<'{mark}'\n{command.text.rstrip()}\n{mark}"


def run(command: Command) -> Result:
    """Runs it to its end. Raises `Failed` where there is no such program."""
    try:
        done = subprocess.run(
            list(command.words), input=command.text, capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError as error:
        raise missing(command.words[0]) from error
    return Result(done.returncode, done.stdout, done.stderr)


def together(commands: Sequence[Command]) -> list[Result]:
    """Runs all of them at once, and waits for all."""
    found: dict[int, Result | Failed] = {}

    def one(i: int, command: Command) -> None:
        try:
            found[i] = run(command)
        except Failed as error:
            found[i] = error

    threads = [threading.Thread(target=one, args=(i, command)) for i, command in enumerate(commands)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results = []
    for i in range(len(commands)):
        result = found[i]
        if isinstance(result, Failed):
            raise result
        results.append(result)
    return results


def stream(command: Command) -> int:
    """Runs it with its output passed on as it comes. Returns the exit code."""
    try:
        return subprocess.run(list(command.words), stdin=subprocess.DEVNULL, check=False).returncode
    except FileNotFoundError as error:
        raise missing(command.words[0]) from error


def missing(program: str) -> Failed:
    """There is no such program here."""
    return Failed(f"there is no program {program} here; install it, or see the commands with --dry-run")


def say(line: str) -> None:
    """What a launch does, on standard error."""
    print(f"famjax launch: {line}", file=sys.stderr, flush=True)
