"""How methods look in the report's figures: readable in print and by the colour-blind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

BLACK = "#000000"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe & Ito 2008, without black."""
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")


class Style(NamedTuple):
    color: str
    marker: str
    linestyle: Any


def styles(labels: Sequence[str], baseline: str | None) -> dict[str, Style]:
    """One look per method, the same in all figures; the baseline alone is black.

    Of the others neighbours differ in everything; 36 differ in colour and dashes, which is all
    that curves without markers have; 396 differ in colour, dashes and marker.
    """
    looks = {}
    for i, label in enumerate(label for label in labels if label != baseline):
        looks[label] = Style(
            COLOURS[i % len(COLOURS)],
            MARKERS[(i + 1) % len(MARKERS)],
            DASHES[(i + i // len(COLOURS) + 1) % len(DASHES)],
        )
    if baseline is not None and baseline in labels:
        looks[baseline] = Style(BLACK, MARKERS[0], DASHES[0])
    return {label: looks[label] for label in labels}


def plain(text: str) -> str:
    """For a name in a figure: matplotlib takes what stands between dollar signs for a formula."""
    return text.replace("$", r"\$")
