"""How methods look in the report's figures: readable in print and by the colour-blind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

BLACK = "#000000"
GREY = "#a6a6a6"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
"""Okabe & Ito 2008 without black and yellow, and the wine of Tol 2021."""
DASHES: tuple[Any, ...] = (
    "--", "-.", ":", (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (6, 1, 1, 1)), (0, (2, 1)),
)  # fmt: skip
MARKERS = ("s", "^", "D", "v", "P", "X", "*")


class Style(NamedTuple):
    color: str
    marker: str
    linestyle: Any


BASELINE = Style(BLACK, "o", "-")
OTHER = Style(GREY, ".", "-")


def styles(
    ranked: Sequence[str], baseline: str | None, highlighted: Sequence[str] = ()
) -> dict[str, Style]:
    """One look per method, the same in all figures of a benchmark.

    The baseline is black. Of the others, as many as there are colours have one: `highlighted`, then
    the first in `ranked`, best first. They differ in colour, marker and dashes. The rest share one
    grey look.
    """
    others = [label for label in ranked if label != baseline]
    others.sort(key=lambda label: label not in highlighted)  # keeps the ranks otherwise
    coloured = sorted(others[: len(COLOURS)])  # by name: ranks differ from report to report
    looks = dict(zip(coloured, map(Style, COLOURS, MARKERS, DASHES), strict=False))
    if baseline is not None:
        looks[baseline] = BASELINE
    return {label: looks.get(label, OTHER) for label in ranked}


def plain(text: str) -> str:
    """For a name in a figure: matplotlib takes what stands between dollar signs for a formula."""
    return text.replace("$", r"\$")
