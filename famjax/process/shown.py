"""Names as they are: in tables of a terminal and in plots."""

import re

from rich.console import Console


def wide_console(width: int, console: Console | None = None) -> Console:
    """Returns a console in which names in brackets are no markup, or the given one; with `width` columns if the output
    is a file or a pipe, so that nothing wraps."""
    console = console or Console(markup=False)
    if not console.is_terminal:
        console.width = width
    return console


def plain(text: str) -> str:
    """Returns a text for matplotlib to show as it is: it reads `$` as mathematics, and omits a label that begins with
    an underscore."""
    return re.sub("^_", " _", text).replace("$", r"\$")
