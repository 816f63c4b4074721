"""Updates pages in docs/ with figures that scripts measure.

A page keeps its figures in a JSON file beside it, and shows each of its tables between two markers: `<!-- NAME -->`
and `<!-- end of NAME -->`.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from famjax.bench.machine import LOADS, SHOWN
from famjax.storage.model_dir import write_text

DOCS = Path(__file__).resolve().parents[2] / "docs"
FOUND = "NAME=FILE"
MACHINE = ("processor", "cores", "time", *(name for name, _ in LOADS))


class Page(NamedTuple):
    """A page with figures.

    Attributes:
      path: the page.
      results: its JSON file.
      tables: maps the NAME of two markers to a function from the results to the lines between them.
    """

    path: Path
    results: Path
    tables: dict[str, Callable[[dict[str, Any]], list[str]]]

    def read(self) -> dict[str, Any]:
        """Returns the results in the JSON file, in the order in which they are shown; {} if it does not exist."""
        found: dict[str, Any] = json.loads(self.results.read_text(encoding="utf-8")) if self.results.exists() else {}
        return found

    def write(self, results: dict[str, Any]) -> None:
        """Writes the results and the page."""
        write_text(self.results, json.dumps(results, indent=1) + "\n")
        self.write_lines(results)

    def write_lines(self, results: dict[str, Any]) -> None:
        """Replaces the lines between the markers."""
        page = self.path.read_text(encoding="utf-8")
        for marker, lines_of in self.tables.items():
            begin, end = f"<!-- {marker} -->\n", f"<!-- end of {marker} -->"
            before, rest = page.split(begin)
            after = rest.split(end)[1]
            lines = lines_of(results) or ["No figures are published yet."]
            page = before + begin + "".join(f"{line}\n" for line in lines) + end + after
        write_text(self.path, page)


def by_name(section: Callable[[str, dict[str, Any]], list[str]]) -> Callable[[dict[str, Any]], list[str]]:
    """Returns the function of a table that has one section for each result.

    Args:
      section: maps the name of a result and its entry in the JSON file to Markdown lines.
    """

    def lines(results: dict[str, Any]) -> list[str]:
        return [line for name, found in results.items() for line in [*section(name, found), ""]][:-1]

    return lines


def of_machine(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a bench.json's machine that a page keeps."""
    versions = {name: version for name, version in found["versions"].items() if name in SHOWN}
    return {name: found[name] for name in MACHINE} | {"versions": versions}


def ranged(values: list[float]) -> str:
    """Returns the mean of several seeds and their range."""
    return with_range(sum(values) / len(values), min(values), max(values), ".2f")


def without_seed(name: str) -> str:
    """Returns a run's name or title without its seed at the end."""
    return re.sub(r"(_seed|, seed )\d+$", "", name)


def with_range(middle: float, low: float, high: float, form: str) -> str:
    """Returns a mean or median with its range; without it if all three look alike."""
    shown, least, most = (format(value, form) for value in (middle, low, high))
    return shown if least == most else f"{shown} ({least}-{most})"


def with_interval(value: float, low: float | None, high: float | None, form: str, of_ends: str = "") -> str:
    """Returns a value with its interval, if it has one; `of_ends` is the format of its ends, if it is another one."""
    if low is None or high is None:
        return format(value, form)
    return f"{value:{form}} ({low:{of_ends or form}}-{high:{of_ends or form}})"


def publish(page: Page, says: str | None, part: str, kept: Callable[..., dict[str, Any]], verb: str) -> int:
    """Runs a script whose arguments are those of `add`, with the help text `says`."""
    parser = argparse.ArgumentParser(description=says, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", nargs="*", metavar=FOUND, help=f"a name in the page, and a file of `{verb}`")
    return add(page, parser.parse_args().found, part, kept, verb)


def add(page: Page, arguments: list[str], part: str, kept: Callable[..., dict[str, Any]], verb: str) -> int:
    """Adds a verb's results to a page, and writes it.

    Args:
      page: the page.
      arguments: NAME=FILE adds a file's results (NAME=FILE,FILE those of several, if `kept` takes them), NAME= removes
        them.
      part: key that a result file of the verb must have.
      kept: maps the contents of one result file, or of several, to the part that the page keeps.
      verb: command that writes the result files, for messages.

    Returns:
      The exit code: 2, with an error line, if an argument is not NAME=FILE with such a file; then nothing is written.
    """
    results = page.read()
    for one in arguments:
        name, given, path = one.partition("=")
        results.pop(name, None)
        if given and not path:
            continue
        try:
            found = [json.loads(Path(file).read_text(encoding="utf-8")) for file in path.split(",")]
            if not name or not all(part in file for file in found):
                raise ValueError
            results[name] = kept(*found)
        except (OSError, ValueError, KeyError, TypeError):
            print(f"{one!r} is not NAME=FILE with a file that `{verb}` has written", file=sys.stderr)
            return 2
    page.write(results)
    return 0
