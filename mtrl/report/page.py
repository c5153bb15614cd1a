"""report.html from its template, and every table and figure as files beside it."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from mtrl.report.canvas import Drawn
from mtrl.report.tables import Table, tex

DPI = 300
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters["tex"] = tex


def render(template: str, **values: Any) -> str:
    return TEMPLATES.get_template(template).render(**values)


def save_figure(drawn: Drawn, folder: Path) -> tuple[str, list[str]]:
    """PNG, PDF, SVG, and CSV of the numbers; -> the SVG as a data URL, and the files' names."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / drawn.name
    drawn.figure.savefig(f"{path}.png", dpi=DPI, metadata={"Software": None})
    drawn.figure.set_layout_engine("none")  # laid out: not once more for every kind of file
    nothing = {"Creator": None, "Producer": None, "CreationDate": None}
    drawn.figure.savefig(f"{path}.pdf", metadata=nothing)
    drawn.figure.savefig(f"{path}.svg", metadata={"Date": None, "Creator": None})
    write_csv(path.with_name(f"{drawn.name}.csv"), [drawn.columns, *drawn.rows])
    data = base64.b64encode(path.with_name(f"{drawn.name}.svg").read_bytes()).decode()
    names = [f"{drawn.name}.{ending}" for ending in ("pdf", "svg", "png", "csv")]
    return f"data:image/svg+xml;base64,{data}", names


def save_table(table: Table, folder: Path) -> list[str]:
    """Exact numbers as CSV, and the table of a paper as LaTeX; -> the files' names."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / f"{table.name}.csv", table.exact())
    if not table.in_paper:
        return [f"{table.name}.csv"]
    (folder / f"{table.name}.tex").write_text(render("table.tex", table=table), encoding="utf-8")
    return [f"{table.name}.tex", f"{table.name}.csv"]


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
