"""What the report's figures share: their style and size, lines, axes, rows and legend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from mtrl.report.looks import BASELINE, OTHER, Style, plain
from mtrl.report.results import Curve

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "mtrl",  # equal runs, equal bytes
    "pdf.fonttype": 42,  # TrueType: publishers refuse matplotlib's default, Type 3
    "figure.dpi": 100,
}
MOST_MARKERS = 12  # on a curve
MOST_BANDS = 5  # more would hide each other
CURVE_COLUMNS = ("method", "quantity", "step", "runs", "value", "low", "high")


class Drawn(NamedTuple):
    name: str
    """File name, without ending."""
    figure: Figure
    columns: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]
    """The numbers in the figure."""


@dataclass(frozen=True)
class Canvas:
    """How the figures of one benchmark are drawn."""

    width: float
    """Of every figure, inches."""
    looks: Mapping[str, Style]
    """Of every method, best first."""
    score: str
    """What the axis of scores is called."""
    steps: str
    """What the axis of training is called."""

    @property
    def _banded(self) -> set[Style]:
        """Whose lines have a band: the coloured ones, or if these are too many, the baseline."""
        coloured = {style for style in self.looks.values() if style != OTHER}
        return coloured if len(coloured) <= MOST_BANDS else coloured & {BASELINE}

    def panels(
        self, count: int, panel: tuple[float, float], *, most: int = 5, **shared: Any
    ) -> tuple[Figure, list[Any]]:
        """A figure of `count` axes, each about as large as `panel`, in as many columns as fit."""
        columns = min(count, most, max(1, int(self.width / panel[0])))
        lines = math.ceil(count / columns)
        columns = math.ceil(count / lines)  # lines of equal length
        figure = new_figure(self.width, 0.5 + panel[1] * lines)
        axes = list(figure.subplots(lines, columns, squeeze=False, **shared).flat)
        for unused in axes[count:]:
            unused.set_axis_off()
        for above in axes[max(0, count - columns) : count]:
            above.tick_params(labelbottom=True)  # nothing may be below it
        return figure, axes[:count]

    def rows_of_methods(
        self, labels: Sequence[str], panels: int = 1, **shared: Any
    ) -> tuple[Figure, list[Any]]:
        """Axes with a row for every method, the first on top."""
        size = (2.4, 0.55 + 0.22 * len(labels))
        figure, axes = self.panels(panels, size, sharey=True, **shared)
        for one in axes:
            one.set_yticks(range(len(labels)), map(plain, labels))
            one.set_ylim(len(labels) - 0.5, -0.5)
            one.grid(visible=False, axis="y")
        return figure, axes

    def line(self, axes: Any, label: str, curve: Curve, *, size: float = 1.0) -> None:
        """Band and line with markers; thin where fewer runs than at first have come so far."""
        style = self.looks[label]
        every = math.ceil(len(curve.steps) / (MOST_MARKERS * size))
        back = {"zorder": 1.5 if style == OTHER else 2}
        look = {"color": style.color, "linestyle": style.linestyle, "marker": style.marker}
        look |= {"markersize": 3.5 * size, "markevery": every, **back}
        end = int(np.flatnonzero(curve.runs == curve.runs.max())[-1])
        wide = 0.8 if style == OTHER else 1.3 * size
        axes.plot(curve.steps[: end + 1], curve.middle[: end + 1], linewidth=wide, **look)
        axes.plot(curve.steps[end:], curve.middle[end:], linewidth=0.5, alpha=0.7, **look)
        if style in self._banded:
            axes.fill_between(
                curve.steps, curve.low, curve.high, color=style.color, alpha=0.1, lw=0
            )

    def legend(self, figure: Figure, labels: Iterable[str]) -> None:
        """Above the panels, in as many lines as it takes; the figure grows by them.

        All methods that are drawn in grey share one entry.
        """
        known = [label for label in labels if self.looks[label] != OTHER]
        handles = [_handle(self.looks[label]) for label in known]
        if others := sum(self.looks[label] == OTHER for label in labels):
            known.append(f"{others} other methods")
            handles.append(_handle(OTHER))
        longest = max(map(len, known), default=0)
        columns = max(1, min(len(known), int(self.width / (0.62 + 0.055 * longest))))
        lines = math.ceil(len(known) / columns)
        columns = math.ceil(len(known) / lines)  # lines of equal length
        figure.set_figheight(figure.get_figheight() + 0.16 * lines)
        legend = figure.legend(
            handles, ["."] * len(known), loc="outside upper center", ncols=columns,
            handlelength=3.2, columnspacing=1.5,
        )  # fmt: skip
        for text, label in zip(legend.get_texts(), known, strict=True):
            text.set_text(plain(label))  # as an argument, one with an underscore first is left out


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def styled() -> Any:
    return matplotlib.rc_context(STYLE)


def _handle(style: Style) -> Line2D:
    return Line2D([], [], color=style.color, linestyle=style.linestyle, marker=style.marker,
                  linewidth=1.3, markersize=3.5)  # fmt: skip


def score_axis(axes: Any, values: Iterable[Iterable[float]], axis: str = "y") -> None:
    """Rates share the axis 0..1, unless they are so close together that nothing would be seen
    there; other scores choose their own."""
    known = [value for of in values for value in of if not math.isnan(value)]
    if known and min(known) >= 0 and max(known) <= 1 and np.ptp(known) > 0.1:
        axes.set(**{f"{axis}lim": (-0.03, 1.03)})


def steps_axis(axes: Any) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 4), useMathText=True)
    axes.xaxis.get_offset_text().set_fontsize(7)
    axes.set_xlim(left=0)


def log_axis(axes: Any, axis: str) -> None:
    """Whole powers of ten where there are some, else 1, 2 and 5 times them, as plain numbers."""
    axes.set(**{f"{axis}scale": "log"})
    low, high = axes.get_xlim() if axis == "x" else axes.get_ylim()
    decades = math.log10(high / low)
    lines = axes.xaxis if axis == "x" else axes.yaxis
    subs = (1.0,) if decades > 2 else (1.0, 2.0, 5.0) if decades > 0.7 else tuple(range(1, 10))
    lines.set_major_locator(LogLocator(subs=subs))
    lines.set_major_formatter("{x:g}")
    lines.set_minor_locator(NullLocator())
    lines.set_minor_formatter(NullFormatter())


def curve_rows(label: str, what: str, curve: Curve) -> list[tuple[Any, ...]]:
    return [
        (label, what, int(step) if step.is_integer() else step, int(runs), *numbers)
        for step, runs, *numbers in curve.points()
    ]
