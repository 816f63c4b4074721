"""The frame of reports: one self-contained HTML file that needs no network and is readable on a phone."""

import html
from collections.abc import Sequence
from typing import Any

from famjax.evals.reports.charts import color

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #5b6570; --line: #8884; --soft: #8882; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --paper: #14171a; --faint: #9aa4ae; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word;
  color: var(--ink); background: var(--paper); }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.2rem; margin-top: 2rem; border-top: 1px solid var(--line); padding-top: .8rem; }
h3 { font-size: 1rem; margin: .4rem 0; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption, small { color: var(--faint); font-size: .9rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 1rem; }
figure.chart { margin: 0; background: var(--soft); border-radius: 8px; padding: .6rem; min-width: 0; }
figure.chart figcaption { color: inherit; font-weight: 600; margin-bottom: .3rem; }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 6px; margin-right: 6px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td.n { text-align: right; } .warn { color: #c05a1c; } summary { cursor: pointer; } details { margin: .6rem 0; }
@media (max-width: 600px) { table { font-size: .82rem; } th, td { padding: 3px 5px; white-space: normal; } }
.said { background: var(--soft); border-radius: 6px; padding: .6rem 1rem; }
pre { overflow-x: auto; white-space: pre-wrap; background: var(--soft); padding: .6rem; border-radius: 6px;
  font-size: .85rem; }
"""


class Html(str):
    """Text that is already HTML, for table cells."""


def count(number: int, what: str) -> str:
    """Returns "1 seed" or "3 seeds"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def key(number: int, name: str) -> Html:
    """Returns a name after a dot in the color of curve `number`."""
    return Html(f'<span class="key" style="background:{color(number)}"></span>{html.escape(name)}')


def page(title: str, parts: Sequence[str]) -> str:
    """Returns the whole document. `title` is text, `parts` are HTML from the functions below."""
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    )
    body = f"<h1>{html.escape(title)}</h1>" + "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def section(heading: str, *parts: str) -> str:
    """Returns the parts under a heading."""
    return f"<section><h2>{html.escape(heading)}</h2>{''.join(parts)}</section>"


def paragraph(text: str) -> str:
    """Returns a paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def pre(text: str) -> str:
    """Returns preformatted text."""
    return f"<pre>{html.escape(text)}</pre>"


def said(sentences: Sequence[str]) -> str:
    """Returns a highlighted box of sentences."""
    return '<div class="said">' + "".join(map(paragraph, sentences)) + "</div>"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a table. Cells are text, `Html` or numbers; None is an empty cell. Wide tables scroll horizontally."""
    cell = lambda x: f'<td class="n">{_number(x)}</td>' if isinstance(x, (int, float)) else f"<td>{_text(x)}</td>"
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(svg: str, caption: str) -> str:
    """Returns an SVG with a caption, as wide as the page."""
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def charts(drawn: Sequence[tuple[str, str]]) -> str:
    """Arranges (title, SVG) charts of `evals/reports/charts.py`, two per row if the page is wide enough."""
    figures = (
        f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>{svg}</figure>' for title, svg in drawn
    )
    return f'<div class="charts">{"".join(figures)}</div>' if drawn else ""


def details(summary: str, *parts: str) -> str:
    """Returns the parts as a collapsed section."""
    return f"<details><summary>{html.escape(summary)}</summary>{''.join(parts)}</details>"


def _number(x: float) -> str:
    return f"{x:,}" if isinstance(x, int) else f"{x:.4g}"


def _text(x: Any) -> str:
    if isinstance(x, Html):
        return x
    return "" if x is None else html.escape(str(x))
