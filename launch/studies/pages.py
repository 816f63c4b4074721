"""Pages in docs/ with figures that a script writes.

A page keeps its figures in a JSON file beside it, and shows them between two markers: `<!-- NAME -->` and
`<!-- end of NAME -->`.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from famjax.storage.model_dir import write_text

DOCS = Path(__file__).resolve().parents[2] / "docs"


class Page(NamedTuple):
    """A page with figures.

    Attributes:
      path: the page.
      results: its JSON file.
      marker: NAME of the markers.
      lines: what stands between them, from the results.
    """

    path: Path
    results: Path
    marker: str
    lines: Callable[[dict[str, Any]], list[str]]

    def read(self) -> dict[str, Any]:
        """Returns the results, in the order in which they are shown."""
        found: dict[str, Any] = json.loads(self.results.read_text(encoding="utf-8")) if self.results.exists() else {}
        return found

    def write(self, results: dict[str, Any]) -> None:
        """Writes the results and the page."""
        write_text(self.results, json.dumps(results, indent=1) + "\n")
        self.write_lines(results)

    def write_lines(self, results: dict[str, Any]) -> None:
        """Replaces what stands between the markers."""
        begin, end = f"<!-- {self.marker} -->\n", f"<!-- end of {self.marker} -->"
        before, rest = self.path.read_text(encoding="utf-8").split(begin)
        after = rest.split(end)[1]
        lines = self.lines(results) or ["No figures are published yet."]
        write_text(self.path, before + begin + "".join(f"{line}\n" for line in lines) + end + after)


def by_name(section: Callable[[str, dict[str, Any]], list[str]]) -> Callable[[dict[str, Any]], list[str]]:
    """Returns a page's `lines`: a section for each result, from its name and what is kept of it."""

    def lines(results: dict[str, Any]) -> list[str]:
        return [line for name, found in results.items() for line in [*section(name, found), ""]][:-1]

    return lines


def ranged(values: list[float]) -> str:
    """Returns the mean of several seeds and their range."""
    mean, low, high = (f"{value:.2f}" for value in (sum(values) / len(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low}-{high})"


def publish(
    page: Page, says: str | None, part: str, kept: Callable[[dict[str, Any]], dict[str, Any]], verb: str
) -> int:
    """A script whose arguments NAME=FILE add a verb's results to a page; NAME= removes them.

    Args:
      page: the page.
      says: the script's help.
      part: an entry that a file of the verb has.
      kept: what the page keeps of a file.
      verb: what writes the files.

    Returns:
      The exit code: 2, with one line, if an argument names no such file. Nothing is written then.
    """
    parser = argparse.ArgumentParser(description=says, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", nargs="*", metavar="NAME=FILE", help=f"a name in the page, and a file of `{verb}`")
    results = page.read()
    for one in parser.parse_args().found:
        name, _, path = one.partition("=")
        results.pop(name, None)
        if path:
            found = json.loads(Path(path).read_text(encoding="utf-8")) if Path(path).is_file() else {}
            if not name or part not in found:
                print(f"{one!r} is not NAME=FILE with a file that `{verb}` has written", file=sys.stderr)
                return 2
            results[name] = kept(found)
    page.write(results)
    return 0
