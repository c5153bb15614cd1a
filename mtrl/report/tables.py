"""Tables: numbers once, shown on the page, in LaTeX, and exactly in CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from mtrl.report.statistics import Interval

TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\u00a0": "~",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


class Column(NamedTuple):
    name: str
    """In CSV: `mean`, and `mean_low`, `mean_high` if cells are intervals."""
    title: str
    """On the page and in LaTeX."""
    digits: int = 3
    text: bool = False
    """To the left; numbers stand to the right."""
    interval: bool = False
    """Cells are Intervals."""


@dataclass(frozen=True)
class Table:
    name: str
    """File name, without ending."""
    columns: tuple[Column, ...]
    rows: Sequence[tuple[Any, ...]]
    """Cells: text, whole numbers, floats (NaN: none), Intervals."""
    in_paper: bool = False
    """Written as LaTeX too."""

    def shown(self) -> list[list[str]]:
        """Rounded, as text."""
        return [
            [shown(cell, column.digits) for cell, column in zip(row, self.columns, strict=True)]
            for row in self.rows
        ]

    def narrow(self) -> tuple[Table, list[str]]:
        """For a paper: without columns that say the same in every row, and what those say."""
        rows = self.shown()
        alike = [
            index
            for index in range(1, len(self.columns))
            if len(rows) > 1 and len({row[index] for row in rows}) == 1
        ]
        kept = [index for index in range(len(self.columns)) if index not in alike]
        narrow = replace(
            self,
            columns=tuple(self.columns[index] for index in kept),
            rows=[tuple(row[index] for index in kept) for row in self.rows],
        )
        return narrow, [f"{self.columns[index].title} = {rows[0][index]}" for index in alike]

    def exact(self) -> Iterator[list[Any]]:
        """The header and the rows of the CSV."""
        yield [
            name
            for column in self.columns
            for name in (column.name, f"{column.name}_low", f"{column.name}_high")[
                : 3 if column.interval else 1
            ]
        ]
        for row in self.rows:
            yield [
                value for cell in row for value in (cell if isinstance(cell, Interval) else [cell])
            ]


def shown(cell: Any, digits: int) -> str:
    """`-` where there is no number; `0.512 [0.431, 0.600]`, or the value alone without interval."""
    if isinstance(cell, Interval):
        value = shown(cell.value, digits)
        if not cell.known:
            return value
        # No line break inside the brackets.
        return f"{value} [{cell.low:.{digits}f},\u00a0{cell.high:.{digits}f}]"
    if isinstance(cell, float):
        return "-" if math.isnan(cell) else f"{cell:,.{digits}f}"
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return "-" if cell is None else str(cell)


def tex(text: str) -> str:
    """Text for LaTeX: special characters escaped, and minus signs that are none in text."""
    escaped = "".join(TEX.get(character, character) for character in text)
    escaped = re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)
    return f"{{{escaped}}}" if escaped[:1] in ("[", "*") else escaped  # \\\\[..] is a distance
