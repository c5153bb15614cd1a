"""The report's figures; each function gives a figure and the table of the numbers in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mtrl.report import results
from mtrl.report.groups import Group
from mtrl.report.looks import Style, plain
from mtrl.report.results import Comparison, Curve, Scores
from mtrl.report.statistics import Floats, Unit
from mtrl.run.state import Run

CONFLICT = {
    "cosine_mean": "mean cosine",
    "conflict_ratio": "share of conflicting pairs",
    "magnitude_similarity": "magnitude similarity",
    "condition_number": "condition number",
}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "mtrl",  # equal runs, equal bytes
    "figure.dpi": 100,
}
MOST_MARKERS = 30  # on a curve
WIDTH = 7.2  # inches: the text width of a printed page


class Words(NamedTuple):
    """What the axes are called."""

    score: str
    steps: str


class Drawn(NamedTuple):
    name: str
    """File name, without ending."""
    caption: str
    figure: Figure
    columns: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]
    """The numbers in the figure."""


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _line(axes: Any, curve: Curve, style: Style, *, markers: bool = True) -> None:
    """Solid band and line; thin where fewer runs than at first have come so far."""
    look: dict[str, Any] = {"color": style.color, "linestyle": style.linestyle}
    if markers:
        every = math.ceil(len(curve.steps) / MOST_MARKERS)
        look |= {"marker": style.marker, "markersize": 3.5, "markevery": every}
    whole = curve.runs == curve.runs.max()
    last = int(np.flatnonzero(whole)[-1]) + 1
    axes.plot(curve.steps[:last], curve.middle[:last], linewidth=1.5, **look)
    axes.plot(curve.steps[last - 1 :], curve.middle[last - 1 :], linewidth=0.7, alpha=0.7, **look)
    axes.fill_between(curve.steps, curve.low, curve.high, color=style.color, alpha=0.15, lw=0)


def _score_axis(axes: Any, curves: Sequence[Curve]) -> None:
    """Rates share the axis 0..1; other scores choose their own."""
    values = np.concatenate([curve.middle for curve in curves]) if curves else np.zeros(0)
    if values.size and values.min() >= 0 and values.max() <= 1:
        axes.set_ylim(-0.02, 1.02)


def _steps_axis(axes: Any) -> None:
    axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 4), useMathText=True)
    axes.xaxis.get_offset_text().set_fontsize(7)
    axes.set_xlim(left=0)


def _legend(
    figure: Figure, labels: Sequence[str], looks: Mapping[str, Style], *, markers: bool = False
) -> None:
    """Above the panels, in as many lines as it takes; the figure grows by them."""
    handles = [
        Line2D([], [], color=look.color, linestyle=look.linestyle, linewidth=1.5,
               marker=look.marker if markers else "", markersize=3.5)
        for look in map(looks.__getitem__, labels)
    ]  # fmt: skip
    longest = max(map(len, labels), default=0)
    most = max(1, min(5, int(WIDTH / (0.75 + 0.065 * longest))))  # inches of line and letters
    lines = math.ceil(len(labels) / most)
    columns = math.ceil(len(labels) / lines)  # lines of equal length
    figure.set_figheight(figure.get_figheight() + 0.18 * (lines - 1))
    legend = figure.legend(
        handles, ["."] * len(labels), loc="outside upper center", ncols=columns, handlelength=4
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(plain(label))  # as an argument, one with an underscore first is left out


def _curve_rows(label: str, what: str, curve: Curve) -> list[tuple[Any, ...]]:
    points = zip(curve.steps, curve.runs, curve.middle, curve.low, curve.high, strict=True)
    return [(label, what, int(step), int(runs), *numbers) for step, runs, *numbers in points]


CURVE_COLUMNS = ("method", "quantity", "step", "runs", "value", "low", "high")


def learning_curves(
    curves: Mapping[str, Mapping[str, Curve]], looks: Mapping[str, Style], words: Words
) -> Drawn:
    figure = new_figure(WIDTH, 3.2)
    panels = figure.subplots(1, 2, sharey=True)
    rows: list[tuple[Any, ...]] = []
    for axes, what, title in zip(
        panels, ("mean", "iqm"), ("mean over tasks", "interquartile mean"), strict=True
    ):
        for label, of in curves.items():
            _line(axes, of[what], looks[label])
            rows += _curve_rows(label, what, of[what])
        axes.set(title=title, xlabel=words.steps)
        _steps_axis(axes)
        _score_axis(axes, [of[what] for of in curves.values()])
    panels[0].set_ylabel(words.score)
    _legend(figure, list(curves), looks, markers=True)
    caption = (
        "Learning curves: evaluation score, mean and interquartile mean over runs and tasks, with "
        "95% bootstrap intervals. Thin: not all runs of the method have come this far."
    )
    return Drawn("curves", caption, figure, CURVE_COLUMNS, rows)


def task_curves(
    curves: Mapping[str, Mapping[str, Curve]],
    tasks: Sequence[str],
    looks: Mapping[str, Style],
    words: Words,
) -> Drawn:
    columns = 4 if len(tasks) < 10 else 5
    columns = min(columns, len(tasks))
    lines = math.ceil(len(tasks) / columns)
    figure = new_figure(WIDTH, 0.9 + 1.35 * lines)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    rows: list[tuple[Any, ...]] = []
    for axes, task in zip(panels.flat, tasks, strict=False):
        for label, of in curves.items():
            curve = of[f"task/{task}"]
            _line(axes, curve, looks[label], markers=False)
            rows += _curve_rows(label, task, curve)
        axes.set_title(plain(task), fontsize=7.5)
        axes.tick_params(labelsize=7)
        _steps_axis(axes)
        _score_axis(axes, [of[f"task/{task}"] for of in curves.values()])
    for axes in panels.flat[len(tasks) :]:
        axes.set_axis_off()
    figure.supxlabel(words.steps, fontsize=8)
    figure.supylabel(words.score, fontsize=8)
    _legend(figure, list(curves), looks)
    caption = "Learning curves task by task: mean over runs with 95% bootstrap intervals."
    return Drawn("tasks", caption, figure, CURVE_COLUMNS, rows)


def score_intervals(
    final: Mapping[str, Scores],
    best: Mapping[str, Scores],
    unfinished: Mapping[str, Sequence[float]],
    looks: Mapping[str, Style],
    words: Words,
    unit: Unit,
) -> Drawn:
    """Figure 4 (a, b) of Kurin et al. 2022: average score with 95% interval."""
    labels = list(looks)
    figure = new_figure(WIDTH, 1.1 + 0.34 * len(labels))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    rows: list[tuple[Any, ...]] = []
    for axes, what, scores in ((panels[0], "final", final), (panels[1], "best", best)):
        for y, label in enumerate(labels):
            look = looks[label]
            mean = scores[label].mean(unit)
            middle = scores[label].interquartile_mean(unit)
            if len(scores[label].runs):
                axes.plot(scores[label].by_run, [y + 0.22] * len(scores[label].runs), "|",
                          color=look.color, markersize=7)  # fmt: skip
                axes.plot(mean.value, y, look.marker, color=look.color, markersize=6)
            if mean.known:
                axes.plot([mean.low, mean.high], [y, y], color=look.color, linewidth=2)
            if what == "final" and unfinished[label]:
                axes.plot(unfinished[label], [y - 0.22] * len(unfinished[label]), "x",
                          color="0.45", markersize=4)  # fmt: skip
            rows.append((label, what, len(scores[label].runs), *mean, *middle))
        axes.set(title=f"{what} score", xlabel=words.score, yticks=range(len(labels)))
        axes.set_yticklabels(map(plain, labels))
        axes.set_ylim(len(labels) - 0.5, -0.5)
    _rate_limits(panels[0], rows)
    caption = (
        "Score of the last (left) and of the best (right) evaluation, mean over tasks. Marker and "
        "bar: mean over finished runs with its 95% bootstrap interval; ticks below: single runs; "
        "grey crosses: unfinished runs, where they stand. The best of many noisy "
        "evaluations is optimistic."
    )
    columns = ("method", "score", "runs", "mean", "mean_low", "mean_high", "iqm", "iqm_low")
    return Drawn("scores", caption, figure, (*columns, "iqm_high"), rows)


def _rate_limits(axes: Any, rows: Sequence[tuple[Any, ...]]) -> None:
    seen = [row[3] for row in rows if not math.isnan(row[3])]
    if seen and min(seen) >= 0 and max(seen) <= 1:
        axes.set_xlim(-0.02, 1.02)


def heat_map(final: Mapping[str, Scores], tasks: Sequence[str], words: Words) -> Drawn | None:
    """Task by method, mean of the final score over runs; numbers in the cells."""
    shown = {label: scores.table.mean(0) for label, scores in final.items() if len(scores.runs)}
    if not shown:
        return None
    table = np.array(list(shown.values())).T  # [task, method]
    rates = table.min() >= 0 and table.max() <= 1
    figure = new_figure(2.6 + 0.55 * len(shown), 1.5 + 0.24 * len(tasks))
    axes: Any = figure.subplots()
    limits = {"vmin": 0.0, "vmax": 1.0} if rates else {}
    image = axes.imshow(table, cmap="cividis", aspect="auto", **limits)
    axes.grid(visible=False)
    axes.set_xticks(range(len(shown)), map(plain, shown), rotation=45, ha="right")
    axes.set_yticks(range(len(tasks)), map(plain, tasks))
    for (row, column), value in np.ndenumerate(table):
        light = image.norm(value) > 0.55
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7,
                  color="black" if light else "white")  # fmt: skip
    figure.colorbar(image, ax=axes, label=words.score, shrink=0.8)
    caption = "Final score of every task: mean over the finished runs of each method."
    rows = [
        (label, task, len(final[label].runs), float(value))
        for label, values in shown.items()
        for task, value in zip(tasks, values, strict=True)
    ]
    return Drawn("heat_map", caption, figure, ("method", "task", "runs", "final"), rows)


def improvement(comparisons: Sequence[Comparison], looks: Mapping[str, Style]) -> Drawn | None:
    shown = [one for one in comparisons if min(one.runs) > 0]
    if not shown:
        return None
    figure = new_figure(WIDTH * 0.75, 1.0 + 0.34 * len(shown))
    axes: Any = figure.subplots()
    for y, one in enumerate(shown):
        look, (value, low, high) = looks[one.method], one.improvement
        axes.plot(value, y, look.marker, color=look.color, markersize=6)
        axes.plot([low, high], [y, y], color=look.color, linewidth=2)
    axes.axvline(0.5, color="0.4", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(shown)), [plain(one.method) for one in shown])
    axes.set(xlim=(-0.02, 1.02), ylim=(len(shown) - 0.5, -0.5))
    axes.set_xlabel(f"P(a run beats a run of {plain(shown[0].baseline)})")
    caption = (
        f"Probability of improvement over {shown[0].baseline}: mean over tasks of the chance that "
        "a run of the method has the higher final score (ties count one half), with 95% "
        "bootstrap intervals."
    )
    rows = [(one.method, one.baseline, *one.runs, *one.improvement) for one in shown]
    columns = ("method", "baseline", "runs", "baseline_runs", "probability", "low", "high")
    return Drawn("improvement", caption, figure, columns, rows)


def update_time(groups: Sequence[Group], looks: Mapping[str, Style]) -> Drawn | None:
    """Figure 4 (c, d) of Kurin et al. 2022: box plots of the time of 10,000 updates."""
    what = (
        "Time of 10,000 updates, one value per log interval of every run, evaluations and "
        "checkpoints excluded."
    )
    label = "seconds for 10,000 updates"
    return _time_boxes(groups, looks, results.update_seconds, "update_time", label, what)


def epoch_time(groups: Sequence[Group], looks: Mapping[str, Style]) -> Drawn | None:
    """Figures 1 to 3 (b) of Kurin et al. 2022: box plots of the time of a training epoch."""
    what = "Training time of an epoch, every epoch of every run, validation excluded."
    label = "seconds per epoch"
    return _time_boxes(groups, looks, results.epoch_seconds, "epoch_time", label, what)


def _time_boxes(
    groups: Sequence[Group],
    looks: Mapping[str, Style],
    seconds_of: Callable[[Run], Floats],
    name: str,
    label: str,
    what: str,
) -> Drawn | None:
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
    figure = new_figure(WIDTH * 0.75, 1.0 + 0.34 * len(shown))
    axes: Any = figure.subplots()
    boxes = axes.boxplot(
        list(shown.values()), orientation="horizontal", widths=0.55, patch_artist=True,
        positions=range(len(shown)), flierprops={"markersize": 2.5, "alpha": 0.5},
        medianprops={"color": "black"},
    )  # fmt: skip
    for box, method in zip(boxes["boxes"], shown, strict=True):
        box.set(facecolor=looks[method].color, alpha=0.55)
    axes.set_yticks(range(len(shown)), map(plain, shown))
    axes.set_ylim(len(shown) - 0.5, -0.5)
    medians = [float(np.median(values)) for values in shown.values()]
    if max(medians) > 10 * min(medians):
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel(label)
    caption = f"{what} Box: quartiles and median; whiskers: 1.5 interquartile ranges."
    return Drawn(name, caption, figure, ("method", "seed", "seconds"), rows)


def memory(groups: Sequence[Group], looks: Mapping[str, Style]) -> Drawn | None:
    rows = [(g.label, run.seed, results.memory_mib(run)) for g in groups for run in g.runs]
    rows = [row for row in rows if not math.isnan(row[2])]
    if not rows:
        return None
    shown = list(dict.fromkeys(label for label, _, _ in rows))
    figure = new_figure(WIDTH * 0.75, 1.0 + 0.3 * len(shown))
    axes: Any = figure.subplots()
    for y, label in enumerate(shown):
        values = [mib for name, _, mib in rows if name == label]
        axes.barh(y, np.mean(values), height=0.6, color=looks[label].color, alpha=0.55)
        axes.plot(values, [y] * len(values), "|", color="black", markersize=7)
    axes.set_yticks(range(len(shown)), map(plain, shown))
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("peak memory of the learner, MiB")
    caption = (
        "Most memory of the learner: tensors on a GPU, else resident memory of its process "
        "(libraries and replay included). Bars: mean over runs; ticks: single runs."
    )
    return Drawn("memory", caption, figure, ("method", "seed", "mib"), rows)


def conflict(groups: Sequence[Group], looks: Mapping[str, Style], words: Words) -> Drawn | None:
    """Gradient conflict metrics, one row of panels per loss."""
    tags = {tag for g in groups for run in g.runs for tag in run.series}
    found = {tag.split("/")[1] for tag in tags if tag.startswith("gradients/")}
    losses = sorted(found, key=lambda loss: (loss != "critic", loss))
    if not losses:
        return None
    figure = new_figure(WIDTH, 0.8 + 1.6 * len(losses))
    panels = figure.subplots(len(losses), len(CONFLICT), squeeze=False, sharex=True)
    rows: list[tuple[Any, ...]] = []
    shown: dict[str, None] = {}
    for line, loss in zip(panels, losses, strict=True):
        for axes, (metric, title) in zip(line, CONFLICT.items(), strict=True):
            for group in groups:
                curve = results.scalar_curve(group, f"gradients/{loss}/{metric}")
                if curve is not None:
                    _line(axes, curve, looks[group.label], markers=False)
                    rows += _curve_rows(group.label, f"{loss}/{metric}", curve)
                    shown[group.label] = None
            axes.set_title(plain(f"{loss}: {title}"), fontsize=7.5)
            axes.tick_params(labelsize=7)
            if metric == "condition_number" and axes.lines:
                axes.set_yscale("log")
            _steps_axis(axes)
    figure.supxlabel(words.steps, fontsize=8)
    _legend(figure, list(shown), looks)
    caption = (
        "Conflict of the task gradients over training: mean over runs with 95% bootstrap intervals."
    )
    return Drawn("conflict", caption, figure, CURVE_COLUMNS, rows)


def styled() -> Any:
    return matplotlib.rc_context(STYLE)
