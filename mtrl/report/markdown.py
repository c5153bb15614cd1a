"""Tables in Markdown pages."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path


class Table:
    """A Markdown table, printed row by row as they come."""

    def __init__(self, *columns: str, intro: str = "") -> None:
        """intro: a paragraph above it."""
        self.columns, self.rows = columns, list[tuple[str, ...]]()
        self._head = f"{intro}\n\n" if intro else ""
        self._head += f"{self._line(columns)}\n{'|---' * len(columns)}|"
        print(self._head, flush=True)

    def add(self, *cells: str) -> None:
        """The last ones may be left out."""
        self.rows.append(cells)
        print(self._line(cells), flush=True)

    def publish(self, place: MarkedPlace | None, file: Path | None = None) -> None:
        """Into a page, into a CSV file."""
        if place:
            place.write(str(self))
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "w", newline="") as opened:
                writer = csv.writer(opened, lineterminator="\n")
                writer.writerow(self.columns)
                writer.writerows([cell.replace("`", "") for cell in row] for row in self.rows)

    def __str__(self) -> str:
        return "\n".join([self._head, *map(self._line, self.rows)])

    def _line(self, cells: tuple[str, ...]) -> str:
        return f"| {' | '.join(cells)} |{' |' * (len(self.columns) - len(cells))}"


class MarkedPlace:
    """Where a table lives in a page: between `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""

    def __init__(self, name: str, page: str) -> None:
        self.page = Path(page)
        self.marks = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        self._around()

    @classmethod
    def option(cls, parser: argparse.ArgumentParser, name: str) -> None:
        """Add `--markdown`: a page that has the place, so that no table is made in vain."""

        def place(page: str) -> MarkedPlace:
            try:
                return cls(name, page)
            except (OSError, ValueError) as error:
                raise argparse.ArgumentTypeError(str(error)) from None

        help = "page with the marked place for the table"
        parser.add_argument("--markdown", type=place, metavar="PAGE", help=help)

    def write(self, text: str) -> None:
        before, after = self._around()
        begin, end = self.marks
        self.page.write_text(f"{before}{begin}\n{text}\n{end}{after}")

    def _around(self) -> tuple[str, str]:
        begin, end = self.marks
        before, found_begin, rest = self.page.read_text().partition(begin)
        _, found_end, after = rest.partition(end)
        if not (found_begin and found_end):
            raise ValueError(f"{self.page} needs the lines {begin} and {end}")
        return before, after
