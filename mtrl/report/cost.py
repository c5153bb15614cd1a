"""What a method costs: time of its updates, time of its training, memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mtrl.report.groups import Group
from mtrl.report.results import Curve
from mtrl.report.statistics import Floats, Interval
from mtrl.run.state import Run

UPDATES = 10_000


@dataclass(frozen=True)
class Cost:
    method: str
    values: int
    seconds: Interval
    """Median of 10,000 updates or of an epoch, with its quartiles."""
    ratio: float
    """Of the medians, to the baseline's."""
    overlaps: bool
    """Whether the quartiles overlap with the baseline's: then the ratio shows no difference."""
    hours: float
    """Of training, mean over finished runs."""
    memory_mib: float
    """The most of any run."""
    memory_ratio: float


def costs(
    groups: Sequence[Group], baseline: str, seconds_of: Callable[[Run], Floats]
) -> list[Cost]:
    """seconds_of: update_seconds or epoch_seconds; ratios are NaN without a baseline."""
    times = {group.label: _quartiles(group, seconds_of) for group in groups}
    memories = {group.label: _most_memory(group) for group in groups}
    nothing = Interval(math.nan)
    theirs = times.get(baseline, nothing)
    return [
        Cost(
            group.label,
            sum(len(seconds_of(run)) for run in group.runs),
            times[group.label],
            times[group.label].value / theirs.value,
            group.label != baseline and _overlap(times[group.label], theirs),
            _hours(group),
            memories[group.label],
            memories[group.label] / memories.get(baseline, math.nan),
        )
        for group in groups
    ]


def _quartiles(group: Group, seconds_of: Callable[[Run], Floats]) -> Interval:
    values = np.concatenate([seconds_of(run) for run in group.runs])
    if not values.size:
        return Interval(math.nan)
    low, median, high = np.percentile(values, [25, 50, 75])
    return Interval(float(median), float(low), float(high))


def _overlap(one: Interval, other: Interval) -> bool:
    return one.low <= other.high and other.low <= one.high


def _most_memory(group: Group) -> float:
    known = [mib for run in group.runs if not math.isnan(mib := memory_mib(run))]
    return max(known, default=math.nan)


def _hours(group: Group) -> float:
    ends = [seconds[-1] for run in group.finished if len(seconds := training_seconds(run)[1])]
    return float(np.mean(ends)) / 3600 if ends else math.nan


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


def training_seconds(run: Run) -> tuple[Floats, Floats]:
    """Steps [point], from zero, and seconds of training until there, evaluations excluded.

    From the speed that every log line states; a supervised run's step is an update.
    """
    series = run.series.get("time/env_steps_per_s") or run.series.get("time/updates_per_s")
    if series is None:
        return np.zeros(0), np.zeros(0)
    known = np.isfinite(series.values) & (series.values > 0)
    steps = np.concatenate([[0.0], series.steps[known]])
    return steps, np.concatenate([[0.0], np.cumsum(np.diff(steps) / series.values[known])])


def over_time(group: Group, curve: Curve) -> Curve | None:
    """The curve over hours of training instead of steps; None if no run logged its speed.

    Between two points lies the mean time of the runs that came to the second one, so that hours
    grow even where runs end early.
    """
    growth = []
    for run in group.runs:
        steps, seconds = training_seconds(run)
        if len(steps) > 1:
            there = np.interp(curve.steps, steps, seconds)
            passed = np.diff(there, prepend=0.0)
            growth.append(np.where(curve.steps <= max(run.step, steps[-1]), passed, np.nan))
    if not growth:
        return None
    known = np.array(growth)
    counts = np.maximum((~np.isnan(known)).sum(0), 1)
    hours = np.cumsum(np.nansum(known, 0) / counts) / 3600
    return replace(curve, steps=hours)
