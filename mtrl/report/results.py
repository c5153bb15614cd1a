"""From a group's runs to the numbers of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mtrl.report import statistics
from mtrl.report.groups import Benchmark, Group
from mtrl.report.statistics import Floats, Interval, Unit
from mtrl.run.state import Run

UPDATES = 10_000
MAX_POINTS = 100
Verdict = Literal["better", "worse", "not distinguishable", "untested"]


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


@dataclass(frozen=True)
class Scores:
    """Scores of one group: [run, task], and by run the mean over tasks."""

    runs: tuple[Run, ...]
    table: Floats

    @property
    def by_run(self) -> Floats:
        return self.table.mean(1)

    def mean(self, unit: Unit) -> Interval:
        return self._interval(statistics.mean, unit)

    def interquartile_mean(self, unit: Unit) -> Interval:
        return self._interval(statistics.interquartile_mean, unit)

    def _interval(self, statistic: statistics.Statistic, unit: Unit) -> Interval:
        if not len(self.runs):
            return Interval(math.nan)
        return statistics.interval(statistic, self.table, unit)


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline, by the final score."""

    method: str
    baseline: str
    runs: tuple[int, int]
    improvement: Interval
    difference: Interval
    p_value: float
    p_holm: float
    """Adjusted for the number of methods compared with this baseline."""
    seeds_needed: float
    verdict: Verdict

    @property
    def sentence(self) -> str:
        who = f"{self.method} against {self.baseline}"
        a, b = self.runs
        seeds = f"{a} and {b} seeds"
        seen = f"a difference of {self.difference.value:+.3f} in the final mean"
        if min(a, b) == 0:
            return f"{who}: no finished runs on {'both sides' if a == b else 'one side'}."
        if min(a, b) == 1:
            return (
                f"{who}: {seen}, but one seed on a side says nothing about the spread between "
                f"seeds ({seeds}): nothing can be concluded."
            )
        if self.verdict == "untested":
            return (
                f"{who}: {seen}. No spread between the seeds ({seeds}), so a t test has nothing "
                "to measure the difference by: not tested."
            )
        bounds = f"{seen} (95% interval {self.difference.low:+.3f} to {self.difference.high:+.3f}"
        bounds += f", Welch's t test, {seeds}, p = {self.p_value:.2g})"
        if self.verdict == "not distinguishable":
            return (
                f"{self.method} is not distinguishable from {self.baseline} at 95% with this many "
                f"seeds: {bounds}. {self._wanted}"
            )
        many = "" if self.p_holm < 0.05 else " It does not hold after Holm's correction for the "
        many += f"number of methods compared (p = {self.p_holm:.2g})." if many else ""
        than = "better" if self.verdict == "better" else "worse"
        return f"{self.method} is {than} than {self.baseline} at 95%: {bounds}.{many}"

    @property
    def _wanted(self) -> str:
        if math.isinf(self.seeds_needed):
            return "The means are equal: no number of seeds would tell."
        return (
            f"If the true difference and spread were as seen, about {self.seeds_needed:.0f} "
            "seeds each would find it four times in five."
        )


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


def _curve(steps: Sequence[float], runs: Sequence[int], points: Sequence[Interval]) -> Curve:
    middle, low, high = np.array(points).reshape(-1, 3).T
    return Curve(np.array(steps), np.array(runs, dtype=np.float64), middle, low, high)


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


def update_seconds(run: Run) -> Floats:
    """Seconds of 10,000 updates, one value per log interval: 10,000 / updates per second.

    Intervals without updates are the warm-up; the first with updates holds part of it, or waits
    for a compilation, and is left out too. Evaluations and checkpoints never count.
    """
    if "time/updates_per_s" not in run.series:
        return np.zeros(0)
    rates = run.series["time/updates_per_s"].values
    rates = rates[rates > 0][1:]
    return UPDATES / rates


def epoch_seconds(run: Run) -> Floats:
    """Training time of each epoch of a supervised run; empty for others."""
    series = run.series.get("time/epoch_s")
    return series.values if series else np.zeros(0)


def memory_mib(run: Run) -> float:
    """Most memory of the learner, MiB; NaN if the run did not log it."""
    series = run.series.get("memory/learner_mib")
    return float(series.values.max()) if series else math.nan


def compare(benchmark: Benchmark, baseline: Group, metric: str, unit: Unit) -> list[Comparison]:
    """Every other group against the baseline, by final scores of finished runs."""
    theirs = final_scores(baseline, benchmark.tasks, metric)
    found = []
    others = [group for group in benchmark.groups if group is not baseline]
    scores = [final_scores(group, benchmark.tasks, metric) for group in others]
    tests = [
        statistics.welch(ours.by_run, theirs.by_run) if ours.runs and theirs.runs else None
        for ours in scores
    ]
    adjusted = statistics.holm([test.p_value if test else math.nan for test in tests])
    for group, ours, test, p_holm in zip(others, scores, tests, adjusted, strict=True):
        sizes = (len(ours.runs), len(theirs.runs))
        if test is None:
            nothing = Interval(math.nan)
            found.append(
                Comparison(
                    group.label, baseline.label, sizes, nothing, nothing,
                    math.nan, math.nan, math.nan, "untested",
                )
            )  # fmt: skip
            continue
        found.append(
            Comparison(
                group.label,
                baseline.label,
                sizes,
                statistics.probability_of_improvement(ours.table, theirs.table, unit),
                test.difference,
                test.p_value,
                p_holm,
                statistics.seeds_needed(ours.by_run, theirs.by_run),
                _verdict(test),
            )
        )
    return found


def _verdict(test: statistics.Welch) -> Verdict:
    if math.isnan(test.p_value):
        return "untested"
    if test.p_value >= 1 - statistics.CONFIDENCE:
        return "not distinguishable"
    return "better" if test.difference.value > 0 else "worse"
