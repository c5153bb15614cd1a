"""The figures of scores; each function gives a figure and the table of the numbers in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtrl.report.canvas import (
    CURVE_COLUMNS,
    Canvas,
    Drawn,
    curve_rows,
    new_figure,
    score_axis,
    steps_axis,
)
from mtrl.report.comparisons import Comparison
from mtrl.report.looks import plain
from mtrl.report.results import Curve, Scores
from mtrl.report.statistics import Unit

Curves = Mapping[str, Mapping[str, Curve]]
"""{method: {"mean": ..., "iqm": ..., "task/<name>": ...}}"""


def learning_curves(canvas: Canvas, curves: Curves) -> Drawn:
    figure, panels = canvas.panels(2, (2.8, 2.5), sharex=True, sharey=True)
    rows: list[tuple[Any, ...]] = []
    titles = {"mean": "mean over tasks", "iqm": "interquartile mean"}
    for axes, (what, title) in zip(panels, titles.items(), strict=True):
        for label, of in curves.items():
            canvas.line(axes, label, of[what])
            rows += curve_rows(label, what, of[what])
        axes.set(title=title, xlabel=canvas.steps, ylabel=canvas.score)
        axes.label_outer(remove_inner_ticks=False)
        steps_axis(axes)
    score_axis(panels[0], (of["mean"].middle for of in curves.values()))
    canvas.legend(figure, curves)
    return Drawn("curves", figure, CURVE_COLUMNS, rows)


def task_curves(canvas: Canvas, curves: Curves, tasks: Sequence[str]) -> Drawn:
    figure, panels = canvas.panels(len(tasks), (1.4, 1.2), sharex=True, sharey=True)
    rows: list[tuple[Any, ...]] = []
    for axes, task in zip(panels, tasks, strict=True):
        for label, of in curves.items():
            canvas.line(axes, label, of[f"task/{task}"], size=0.7)
            rows += curve_rows(label, task, of[f"task/{task}"])
        axes.set_title(plain(task), fontsize=7)
        steps_axis(axes)
    score_axis(panels[0], (of[f"task/{task}"].middle for of in curves.values() for task in tasks))
    figure.supxlabel(canvas.steps, fontsize=8)
    figure.supylabel(canvas.score, fontsize=8)
    canvas.legend(figure, curves)
    return Drawn("tasks", figure, CURVE_COLUMNS, rows)


def score_intervals(
    canvas: Canvas,
    final: Mapping[str, Scores],
    best: Mapping[str, Scores],
    unfinished: Mapping[str, Sequence[float]],
    unit: Unit,
) -> Drawn:
    """Figure 4 (a, b) of Kurin et al. 2022: average score with 95% interval."""
    labels = list(canvas.looks)
    figure, panels = canvas.rows_of_methods(labels, 2, sharex=True)
    rows: list[tuple[Any, ...]] = []
    for axes, what, scores in zip(panels, ("final", "best"), (final, best), strict=True):
        for y, label in enumerate(labels):
            look, of = canvas.looks[label], scores[label]
            mean, middle = of.mean(unit), of.interquartile_mean(unit)
            axes.plot(of.by_run, [y + 0.25] * len(of.runs), "|", color=look.color, markersize=5)
            axes.plot(mean.value, y, look.marker, color=look.color, markersize=5)
            axes.plot([mean.low, mean.high], [y, y], color=look.color, linewidth=1.8)
            if what == "final":
                standing = unfinished[label]
                axes.plot(standing, [y - 0.25] * len(standing), "x", color="0.45", markersize=4)
            rows.append((label, what, len(of.runs), *mean, *middle))
        axes.set(title=f"{what} score", xlabel=canvas.score)
    score_axis(panels[0], (row[3:4] for row in rows), "x")
    columns = ("method", "score", "runs", "mean", "mean_low", "mean_high", "iqm", "iqm_low")
    return Drawn("scores", figure, (*columns, "iqm_high"), rows)


def profiles(canvas: Canvas, of: Mapping[str, Curve]) -> Drawn | None:
    """Performance profiles: the share of tasks and seeds with a score above each value."""
    if not of:
        return None
    figure, (axes,) = canvas.panels(1, (2.8, 2.6))
    rows: list[tuple[Any, ...]] = []
    for label, curve in of.items():
        canvas.line(axes, label, curve)
        rows += [(label, *row) for row in curve.points()]
    axes.set(xlabel=f"\u03c4: {canvas.score}", ylabel="share of tasks and seeds above \u03c4")
    axes.set_ylim(-0.03, 1.03)
    canvas.legend(figure, of)
    return Drawn("profile", figure, ("method", "tau", "runs", "share", "low", "high"), rows)


def heat_map(canvas: Canvas, final: Mapping[str, Scores], tasks: Sequence[str]) -> Drawn | None:
    """Tasks and methods, the more numerous as rows: means over runs, as numbers where they fit."""
    shown = {label: scores.table.mean(0) for label, scores in final.items() if len(scores.runs)}
    if not shown:
        return None
    table, lines, columns = np.array(list(shown.values())), list(shown), list(tasks)
    if len(tasks) >= len(shown):
        table, lines, columns = table.T, columns, lines
    letter = 0.06  # inches
    cell = (canvas.width - letter * max(map(len, lines)) - 0.9) / len(columns)
    upright = cell < 0.35
    height = 0.9 + letter * max(map(len, columns)) * (1.0 if upright else 0.6) + 0.19 * len(lines)
    figure = new_figure(canvas.width, height)
    axes: Any = figure.subplots()
    rates = table.min() >= 0 and table.max() <= 1
    limits = {"vmin": 0.0, "vmax": 1.0} if rates else {}
    image = axes.imshow(table, cmap="cividis", aspect="auto", **limits)
    axes.grid(visible=False)
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    slant = {"rotation": 90} if upright else slanted
    size = {"fontsize": min(7, 65 * cell)}
    axes.set_xticks(range(len(columns)), map(plain, columns), **size, **slant)
    axes.set_yticks(range(len(lines)), map(plain, lines))
    if cell > 0.2:
        for (row, column), value in np.ndenumerate(table):
            color = "black" if image.norm(value) > 0.55 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color,
                      fontsize=min(7, 24 * cell))  # fmt: skip
    figure.colorbar(image, ax=axes, label=canvas.score, shrink=0.8)
    rows = [
        (label, task, len(final[label].runs), float(value))
        for label, values in shown.items()
        for task, value in zip(tasks, values, strict=True)
    ]
    return Drawn("heat_map", figure, ("method", "task", "runs", "final"), rows)


def improvement(canvas: Canvas, comparisons: Sequence[Comparison]) -> Drawn | None:
    shown = [one for one in comparisons if min(one.runs) > 0]
    if not shown:
        return None
    labels = [one.method for one in shown]
    figure, panels = canvas.rows_of_methods(labels, 2, sharex=True)
    theirs = shown[0].baseline if len(shown[0].baseline) <= 20 else "the baseline"
    titles = {"mean over tasks": "improvement", "share of runs": "run_improvement"}
    for axes, (title, what) in zip(panels, titles.items(), strict=True):
        for y, one in enumerate(shown):
            look, (value, low, high) = canvas.looks[one.method], getattr(one, what)
            axes.plot(value, y, look.marker, color=look.color, markersize=5)
            axes.plot([low, high], [y, y], color=look.color, linewidth=1.8)
        axes.axvline(0.5, color="0.4", linewidth=0.8, linestyle="--")
        axes.set(title=title, xlim=(-0.03, 1.03), xlabel=f"P(better than {plain(theirs)})")
    rows = [
        (one.method, one.baseline, *one.runs, *one.improvement, *one.run_improvement)
        for one in shown
    ]
    columns = ("method", "baseline", "runs", "baseline_runs", "probability", "low", "high")
    more = ("share_of_runs", "share_of_runs_low", "share_of_runs_high")
    return Drawn("improvement", figure, (*columns, *more), rows)
