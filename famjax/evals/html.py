"""The frame of reports: one HTML file with everything inside, readable on a phone, that needs no network."""

import html
import io
import re
import zlib
from collections.abc import Sequence
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption, small { opacity: .75; font-size: .9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; } td.n { text-align: right; }
.said { background: var(--soft); border-radius: 6px; padding: .6rem 1rem; }
pre { overflow-x: auto; background: var(--soft); padding: .6rem; border-radius: 6px; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole document. `title` is text, `parts` are what the functions below give."""
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    )
    body = f"<h1>{html.escape(title)}</h1>" + "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def section(heading: str, *parts: str) -> str:
    """Parts under a heading."""
    return f"<section><h2>{html.escape(heading)}</h2>{''.join(parts)}</section>"


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{html.escape(text)}</p>"


def escaped(text: str) -> str:
    """Text to stand inside HTML."""
    return html.escape(text)


def said(sentences: Sequence[str]) -> str:
    """What a report says in words, set apart."""
    return '<div class="said">' + "".join(map(paragraph, sentences)) + "</div>"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Cells are text or numbers; None is an empty cell. Wide tables scroll by themselves."""
    cell = lambda x: f'<td class="n">{_number(x)}</td>' if isinstance(x, (int, float)) else f"<td>{_text(x)}</td>"
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(svg: str, caption: str) -> str:
    """An SVG, as wide as the page."""
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def details(summary: str, *parts: str) -> str:
    """Parts that are folded away until somebody asks for them."""
    return f"<details><summary>{html.escape(summary)}</summary>{''.join(parts)}</details>"


def svg_of(figure: Any) -> str:
    """A matplotlib figure as SVG to stand inside a page: the same bytes for the same figure."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "famjax", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = out.getvalue()
    return _with_own_ids(svg[svg.index("<svg") :])


def _with_own_ids(svg: str) -> str:
    """Names inside an SVG hold for the whole page: two pictures must not share one."""
    mark = f"p{zlib.crc32(svg.encode()):08x}-"
    svg = re.sub(r'\bid="', f'id="{mark}', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{mark}", svg)


def _number(x: float) -> str:
    return f"{x:,}" if isinstance(x, int) else f"{x:.4g}"


def _text(x: Any) -> str:
    return "" if x is None else html.escape(str(x))
