"""The figures of cost and of gradient conflict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mtrl.report import cost, results
from mtrl.report.canvas import (
    CURVE_COLUMNS,
    Canvas,
    Drawn,
    curve_rows,
    log_axis,
    score_axis,
    steps_axis,
)
from mtrl.report.groups import Group
from mtrl.report.looks import plain
from mtrl.report.results import Curve
from mtrl.report.statistics import Floats
from mtrl.run.state import Run

CONFLICT = {
    "cosine_mean": "mean cosine",
    "conflict_ratio": "conflicting pairs, share",
    "magnitude_similarity": "magnitude similarity",
    "condition_number": "condition number",
}


def times(
    canvas: Canvas,
    groups: Sequence[Group],
    seconds_of: Callable[[Run], Floats],
    name: str,
    label: str,
) -> Drawn | None:
    """Box plots: Figures 1 to 3 (b) and 4 (c, d) of Kurin et al. 2022."""
    rows = [
        (group.label, run.seed, float(value))
        for group in groups
        for run in group.runs
        for value in seconds_of(run)
    ]
    if not rows:
        return None
    shown: dict[str, list[float]] = {}
    for method, _, value in rows:
        shown.setdefault(method, []).append(value)
    figure, (axes,) = canvas.rows_of_methods(list(shown))
    boxes = axes.boxplot(
        list(shown.values()), orientation="horizontal", widths=0.55, patch_artist=True,
        positions=range(len(shown)), flierprops={"markersize": 2.5, "alpha": 0.5},
        medianprops={"color": "black"}, manage_ticks=False,
    )  # fmt: skip
    for box, method in zip(boxes["boxes"], shown, strict=True):
        box.set(facecolor=canvas.looks[method].color, alpha=0.55)
    medians = [float(np.median(values)) for values in shown.values()]
    if max(medians) > 10 * min(medians):
        log_axis(axes, "x")
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel(label)
    return Drawn(name, figure, ("method", "seed", "seconds"), rows)


def memory(canvas: Canvas, groups: Sequence[Group]) -> Drawn | None:
    rows = [(g.label, run.seed, cost.memory_mib(run)) for g in groups for run in g.runs]
    rows = [row for row in rows if not math.isnan(row[2])]
    if not rows:
        return None
    shown = list(dict.fromkeys(label for label, _, _ in rows))
    figure, (axes,) = canvas.rows_of_methods(shown)
    for y, label in enumerate(shown):
        values = [mib for name, _, mib in rows if name == label]
        axes.barh(y, np.mean(values), height=0.6, color=canvas.looks[label].color, alpha=0.55)
        axes.plot(values, [y] * len(values), "|", color="black", markersize=6)
    axes.set_xlabel("peak memory of the learner, MiB")
    return Drawn("memory", figure, ("method", "seed", "mib"), rows)


def wall_clock(canvas: Canvas, curves: Mapping[str, Curve]) -> Drawn | None:
    """The mean score over hours of training."""
    if not curves:
        return None
    longest = max(float(curve.steps[-1]) for curve in curves.values())
    unit, factor = ("hours", 1.0) if longest > 2 else ("minutes", 60.0)
    figure, (axes,) = canvas.panels(1, (2.8, 2.6))
    rows: list[tuple[Any, ...]] = []
    for label, curve in curves.items():
        canvas.line(axes, label, replace(curve, steps=factor * curve.steps))
        rows += [(label, *row) for row in curve.points()]
    axes.set(xlabel=f"{unit} of training", ylabel=canvas.score, xlim=(0, None))
    score_axis(axes, (curve.middle for curve in curves.values()))
    canvas.legend(figure, curves)
    return Drawn("wall_clock", figure, ("method", "hours", "runs", "mean", "low", "high"), rows)


def conflict(canvas: Canvas, groups: Sequence[Group]) -> Drawn | None:
    """Gradient conflict metrics, one row of panels per metric, one column per loss."""
    tags = {tag for g in groups for run in g.runs for tag in run.series}
    found = {tag.split("/")[1] for tag in tags if tag.startswith("gradients/")}
    losses = sorted(found, key=lambda loss: (loss != "critic", loss))
    wanted = [(loss, metric) for loss in losses for metric in CONFLICT]
    curves = {
        (*one, group.label): curve
        for one in wanted
        for group in groups
        if (curve := results.scalar_curve(group, "gradients/{}/{}".format(*one))) is not None
    }
    if not curves:
        return None
    most = len(CONFLICT) if canvas.width > 1.6 * len(CONFLICT) else 2  # whole lines per loss
    figure, panels = canvas.panels(len(wanted), (1.6, 1.6), most=most, sharex=True)
    rows: list[tuple[Any, ...]] = []
    for axes, (loss, metric) in zip(panels, wanted, strict=True):
        for group in groups:
            curve = curves.get((loss, metric, group.label))
            if curve is not None:
                canvas.line(axes, group.label, curve, size=0.7)
                rows += curve_rows(group.label, f"{loss}/{metric}", curve)
        axes.set_title(f"{plain(loss)}:\n{CONFLICT[metric]}", fontsize=7.5)
        if metric == "condition_number" and axes.lines:
            log_axis(axes, "y")
        steps_axis(axes)
    figure.supxlabel(canvas.steps, fontsize=8)
    canvas.legend(figure, dict.fromkeys(label for *_, label in curves))
    return Drawn("conflict", figure, CURVE_COLUMNS, rows)
