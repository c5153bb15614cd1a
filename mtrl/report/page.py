"""One self-contained HTML page: text, tables, and figures inside it as SVG."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape

from mtrl.report.statistics import Interval

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62em; margin: 2em auto;
       padding: 0 1em; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2em; border-bottom: 1px solid #bbb; }
h3 { margin-top: 1.6em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; margin: .6em 0; }
th, td { padding: .25em .6em; text-align: right; border-bottom: 1px solid #ddd;
         vertical-align: top; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td:first-child, td.text { overflow-wrap: anywhere; min-width: 5em; }
td:first-child { min-width: 11em; }
figure { margin: 1.2em 0; } figure img { max-width: 100%; }
figcaption { font-size: 13px; color: #444; max-width: 55em; }
.warning { border: 2px solid #b30000; border-left-width: 10px; background: #fff0ee;
           padding: .4em 1em; margin: 1em 0; }
.warning.unlike { font-weight: bold; background: #ffd9d3; }
.note { color: #444; font-size: 13px; max-width: 55em; }
@media print { body { margin: 0; max-width: none; } figure, tr, .warning { break-inside: avoid; } }
"""


def page(title: str, parts: Iterable[str]) -> str:
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def heading(level: int, text: str) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    return f"<p{_class(kind)}>{escape(text)}</p>"


def bullets(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def warning(text: str) -> str:
    kind = "warning unlike" if "NOT COMPARABLE" in text else "warning"
    return f'<div class="{kind}" role="alert">&#9888; {escape(text)}</div>'


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], text: Sequence[str] = ()
) -> str:
    """Numbers to the right; columns named in `text`, and the first, to the left."""
    kinds = ["text" if column in text else "" for column in columns]
    head = "".join(
        f"<th{_class(kind)}>{escape(column)}</th>"
        for column, kind in zip(columns, kinds, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<td{_class(kind)}>{escape(_shown(cell))}</td>"
            for cell, kind in zip(row, kinds, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    content = f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>"
    return f'<div class="wide"><table>{content}</table></div>'


def figure(svg: bytes, caption: str, links: Iterable[str]) -> str:
    data = base64.b64encode(svg).decode()
    files = " ".join(f'<a href="{escape(link)}">{link.rsplit(".")[-1]}</a>' for link in links)
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(caption)} {files}</figcaption></figure>"
    )


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _shown(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)


def number(value: float, digits: int = 3) -> str:
    """Rounded; `-` where there is none, `inf` where no number is enough."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def with_interval(interval: Interval, digits: int = 3) -> str:
    """`0.512 [0.431, 0.600]`, or the value alone where no interval is known."""
    value = number(interval.value, digits)
    if not interval.known:
        return value
    # No line break inside the brackets.
    return f"{value} [{interval.low:.{digits}f},\u00a0{interval.high:.{digits}f}]"
