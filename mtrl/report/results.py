"""From a group's runs to the numbers of the report."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mtrl.report import statistics
from mtrl.report.groups import Group
from mtrl.report.statistics import Floats, Interval, Unit
from mtrl.run.state import Run

MAX_POINTS = 100


@dataclass(frozen=True)
class Curve:
    """A group's mean over training."""

    steps: Floats
    """[point]"""
    runs: Floats
    """[point] how many runs have come this far."""
    middle: Floats
    """[point] mean, or interquartile mean."""
    low: Floats
    high: Floats
    """[point] 95% interval; NaN with one run."""

    def points(self) -> Iterator[tuple[float, ...]]:
        """(step, runs, middle, low, high) each."""
        rows = (self.steps, self.runs, self.middle, self.low, self.high)
        return zip(*(row.tolist() for row in rows), strict=True)


@dataclass(frozen=True)
class Scores:
    """Scores of one group: [run, task], and by run the mean over tasks."""

    runs: tuple[Run, ...]
    table: Floats

    @property
    def by_run(self) -> Floats:
        return self.table.mean(1) if len(self.runs) else np.zeros(0)

    def mean(self, unit: Unit) -> Interval:
        return self._interval(statistics.mean, unit)

    def interquartile_mean(self, unit: Unit) -> Interval:
        return self._interval(statistics.interquartile_mean, unit)

    def _interval(self, statistic: statistics.Statistic, unit: Unit) -> Interval:
        if not len(self.runs):
            return Interval(math.nan)
        return statistics.interval(statistic, self.table, unit)


def final_scores(group: Group, tasks: Sequence[str], metric: str) -> Scores:
    """The last evaluation of every finished run."""
    return _scores(group.finished, tasks, metric, best=False)


def best_scores(group: Group, tasks: Sequence[str], metric: str) -> Scores:
    """The evaluation with the highest mean, of every finished run: optimistic, a maximum."""
    return _scores(group.finished, tasks, metric, best=True)


def _scores(runs: Sequence[Run], tasks: Sequence[str], metric: str, *, best: bool) -> Scores:
    rows, kept = [], []
    for run in runs:
        steps, table = evaluations(run, tasks, metric)
        if len(steps):
            rows.append(table[np.argmax(table.mean(1)) if best else -1])
            kept.append(run)
    return Scores(tuple(kept), np.array(rows).reshape(len(rows), len(tasks)))


def evaluations(run: Run, tasks: Sequence[str], metric: str) -> tuple[Floats, Floats]:
    """Steps [point] at which all tasks were evaluated, and scores [point, task]."""
    series = [run.series.get(f"{metric}/{task}") for task in tasks]
    if not series or any(one is None for one in series):
        return np.zeros(0), np.zeros((0, len(tasks)))
    by_step = [dict(zip(one.steps, one.values, strict=True)) for one in series if one]
    common = sorted(set.intersection(*(set(one) for one in by_step)))
    table = [[one[step] for one in by_step] for step in common]
    return np.array(common, dtype=np.float64), np.array(table).reshape(len(common), len(tasks))


def curves(group: Group, tasks: Sequence[str], metric: str, unit: Unit) -> dict[str, Curve]:
    """{"mean": ..., "iqm": ..., task: ...} over all runs that came as far as each step."""
    by_run = [dict(zip(*evaluations(run, tasks, metric), strict=True)) for run in group.runs]
    steps = sorted({step for one in by_run for step in one})
    tables = [np.array([one[step] for one in by_run if step in one]) for step in steps]

    def curve(statistic: statistics.Statistic, column: slice) -> Curve:
        points = [statistics.interval(statistic, table[:, column], unit) for table in tables]
        return _curve(steps, [len(table) for table in tables], points)

    every = slice(None)
    found = {
        "mean": curve(statistics.mean, every),
        "iqm": curve(statistics.interquartile_mean, every),
    }
    for index, task in enumerate(tasks):
        found[f"task/{task}"] = curve(statistics.mean, slice(index, index + 1))
    return found


def _curve(steps: Iterable[float], runs: Sequence[int], points: Sequence[Interval]) -> Curve:
    middle, low, high = np.array(points).reshape(-1, 3).T
    return Curve(np.array(list(steps)), np.array(runs, dtype=np.float64), middle, low, high)


def scalar_curve(group: Group, tag: str) -> Curve | None:
    """One tag over training, with its interval over runs.

    Long series are thinned: at most MAX_POINTS points, each a mean over neighbouring steps.
    """
    by_run = [dict(zip(*run.series[tag], strict=True)) for run in group.runs if tag in run.series]
    steps = sorted({step for one in by_run for step in one})
    if not steps:
        return None
    kept, counts, points = [], [], []
    for some in np.array_split(np.array(steps), min(len(steps), MAX_POINTS)):
        inside = [[one[step] for step in some if step in one] for one in by_run]
        values = np.array([[np.mean(seen)] for seen in inside if seen])
        kept.append(float(some.mean()))
        counts.append(len(values))
        points.append(statistics.interval(statistics.mean, values))
    return _curve(kept, counts, points)


def profile(scores: Scores, taus: Floats, unit: Unit) -> Curve:
    """Share of tasks x runs with a score above each tau (Agarwal et al. 2021, section 4.2)."""
    points = []
    for tau in taus:
        share = functools.partial(statistics.share_above, tau=tau)
        points.append(statistics.interval(share, scores.table, unit))
    return _curve(taus, [len(scores.runs)] * len(taus), points)


def thresholds(tables: Iterable[Floats]) -> Floats:
    """Hundredths for rates; else as many steps from the lowest to the highest score."""
    values = np.concatenate([np.zeros(0), *(table.ravel() for table in tables)])
    if not values.size or (values.min() >= 0 and values.max() <= 1):
        return np.arange(101) / 100  # exactly the rates of 10, 20, 25, 50 or 100 episodes
    return np.linspace(values.min(), values.max(), 101)
