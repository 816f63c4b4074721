"""What the scripts here share: verbs of famjax as commands that a reader could type."""

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


def famjax(*words: Any, quiet: bool = False) -> None:
    """Runs a verb and shows it; `quiet` keeps what it prints to itself. Raises `CalledProcessError`."""
    said = [str(word) for word in words]
    print(f"\n$ famjax {' '.join(map(quoted, said))}", flush=True)
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "famjax", *said], check=True, stdout=subprocess.DEVNULL if quiet else None
    )  # fmt: skip
    print(f"({time.monotonic() - began:.0f} s)", flush=True)


def quoted(word: str) -> str:
    """A word as one would write it for a shell; gin's text values have quotes of their own."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def run(script: str, body: Callable[[], None]) -> int:
    """0, or with a line on standard error what a verb returned that failed, or 130 for an interruption."""
    try:
        body()
    except subprocess.CalledProcessError as error:
        print(f"{script}: famjax {error.cmd[3]} failed; what it said stands above", file=sys.stderr)
        return int(error.returncode)
    except KeyboardInterrupt:
        print(f"{script}: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0
