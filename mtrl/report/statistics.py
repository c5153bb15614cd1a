"""What can be said about methods from a few runs each. Arrays in, numbers out.

Scores are [run, task]. A bootstrap resample is a table of counts, how often each run is drawn:
every statistic takes counts [resample, run, task] (task may be 1: whole runs are drawn) and gives
[resample] values. With all counts 1 it is the statistic itself.

Sources: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (IQM, stratified bootstrap, probability of improvement, performance profile); Colas et
al. 2018, "How Many Random Seeds?" (Welch's test and its power).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], Floats]
Unit = Literal["runs", "tasks"]

RESAMPLES = 2_000
CONFIDENCE = 0.95
POWER = 0.8


class Interval(NamedTuple):
    value: float
    low: float = math.nan
    """Bounds of the confidence interval; NaN where there are too few runs for one."""
    high: float = math.nan

    @property
    def known(self) -> bool:
        return not math.isnan(self.low)


@functools.lru_cache(maxsize=64)
def resample(
    runs: int, tasks: int, unit: Unit = "runs", resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """Counts [resample, run, 1 or task] of drawing `runs` runs with replacement.

    unit "runs": a run is drawn with all its tasks, because they share one network and so are not
    independent. "tasks": drawn separately for every task, the strata of Agarwal et al., who have
    one agent per task; on runs of shared networks those intervals are too narrow (docs/report.md).
    """
    generator = np.random.default_rng(seed)
    even = np.full(runs, 1.0 / runs)
    if unit == "runs":
        return generator.multinomial(runs, even, size=resamples)[:, :, None].astype(np.float64)
    counts = generator.multinomial(runs, even, size=(resamples, tasks)).astype(np.float64)
    return counts.transpose(0, 2, 1)


def mean(scores: Floats, counts: Floats) -> Floats:
    """Mean over runs and tasks."""
    return (counts * scores).mean((1, 2))


def interquartile_mean(scores: Floats, counts: Floats) -> Floats:
    """Mean of the middle half of all run-task scores; a quarter, rounded down, is cut each side."""
    order = np.argsort(scores, axis=None, kind="stable")
    drawn = np.broadcast_to(counts, (len(counts), *scores.shape))
    drawn = drawn.reshape(len(counts), -1)[:, order]
    cut = scores.size // 4
    # Ranks that each score fills, of which those from `cut` to `size - cut` are kept.
    ranks = np.clip(drawn.cumsum(1), cut, scores.size - cut)
    kept = np.diff(ranks, axis=1, prepend=cut)
    middle: Floats = kept @ scores.ravel()[order] / (scores.size - 2 * cut)
    return middle


def interval(statistic: Statistic, scores: Floats, unit: Unit = "runs") -> Interval:
    """The statistic with its percentile bootstrap interval; no interval from a single run.

    scores: [run, task]. Deterministic: equal scores give equal intervals.
    """
    runs, tasks = scores.shape
    value = float(statistic(scores, np.ones((1, runs, 1)))[0])
    if runs < 2:
        return Interval(value)
    return Interval(value, *_percentiles(statistic(scores, resample(runs, tasks, unit))))


def share_above(scores: Floats, counts: Floats, tau: float) -> Floats:
    """Share of tasks x runs whose score is above tau: a point of the performance profile."""
    return mean((scores > tau).astype(np.float64), counts)


def _percentiles(values: Floats) -> tuple[float, float]:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def probability_of_improvement(first: Floats, second: Floats, unit: Unit = "runs") -> Interval:
    """P(a run of the first beats a run of the second), a mean over tasks; ties count one half.

    Agarwal et al. 2021, section 4.3: per task the Mann-Whitney U divided by the number of pairs.
    Interval: both sets of runs resampled. first, second: [run, task], [other run, task].
    """
    tasks = first.shape[1]
    wins = np.heaviside(first[:, None] - second[None], 0.5)  # [run, other run, task]
    value = float(wins.mean())
    if min(len(first), len(second)) < 2:
        return Interval(value)
    a, b = (
        np.broadcast_to(counts, (len(counts), counts.shape[1], tasks))
        for counts in (
            resample(len(first), tasks, unit, seed=0),
            resample(len(second), tasks, unit, seed=1),
        )
    )
    drawn = np.einsum("rit,ijt->rjt", a, wins)
    values = (drawn * b).sum((1, 2)) / wins.size
    return Interval(value, *_percentiles(values))


class Test(NamedTuple):
    """A two-sided t test of the mean of the first minus the mean of the second."""

    name: Literal["paired t", "Welch's t"]
    difference: Interval
    """With its confidence interval."""
    p_value: float
    """NaN with fewer than two runs on a side, or without any spread."""
    seeds_needed: float
    """Runs per method for which this test would find the seen difference 4 times in 5: infinite if
    the means are equal, NaN if there is no test."""


def paired(first: Floats, second: Floats) -> Test:
    """Student's t test of the differences, [run] and [run] of the same seeds in the same order.

    d +- t(n - 1) s / sqrt(n), s the standard deviation of the differences. A run is one number
    here (its mean over tasks), so nothing is assumed about tasks.
    """
    differences = first - second
    n = len(differences)
    if n < 2:
        return Test("paired t", Interval(float(differences.mean())), math.nan, math.nan)
    variance = float(differences.var(ddof=1))
    return _t_test("paired t", differences.mean(), variance / n, n - 1, variance, 1.0)


def welch(first: Floats, second: Floats) -> Test:
    """Welch's unequal-variances t test of two sets of runs, [run] and [run].

    d +- t(nu) s, s^2 = s1^2/n1 + s2^2/n2, nu after Welch and Satterthwaite.
    """
    difference = float(first.mean() - second.mean())
    if min(len(first), len(second)) < 2:
        return Test("Welch's t", Interval(difference), math.nan, math.nan)
    u, v = float(first.var(ddof=1)), float(second.var(ddof=1))
    a, b = u / len(first), v / len(second)
    freedom = ratio = math.nan
    if a + b > 0:
        freedom = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
        ratio = (u + v) ** 2 / (u**2 + v**2)
    return _t_test("Welch's t", difference, a + b, freedom, u + v, ratio)


def _t_test(
    name: Literal["paired t", "Welch's t"],
    difference: float,
    squared_error: float,
    freedom: float,
    variance: float,
    freedom_per_run: float,
) -> Test:
    """variance: squared_error's with one run per method; freedom_per_run (n - 1): with n runs."""
    difference, error = float(difference), math.sqrt(squared_error)
    if error <= 1e-12 * max(1.0, abs(difference)):  # equal but for rounding
        return Test(name, Interval(difference), math.nan, math.nan)
    margin = float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    p_value = 2 * float(student.sf(abs(difference) / error, freedom))
    bounds = Interval(difference, difference - margin, difference + margin)
    return Test(name, bounds, p_value, _seeds_needed(difference, variance, freedom_per_run))


def _seeds_needed(difference: float, variance: float, freedom_per_run: float) -> float:
    """The smallest n >= 2 with n >= s^2 (t(nu, 0.975) + t(nu, 0.8))^2 / d^2, nu from n runs on each
    side: Colas et al. 2018, section 4, with Student's quantiles for the normal ones."""
    if abs(difference) <= 1e-12:
        return math.inf

    def needed(n: int) -> float:
        quantiles = student.ppf([(1 + CONFIDENCE) / 2, POWER], freedom_per_run * (n - 1))
        return variance * float(quantiles.sum()) ** 2 / difference**2

    n = max(2, math.floor(needed(1_000_000)))  # normal quantiles: a lower bound
    while n < needed(n):
        n += 1
    return n


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979); NaN, no test, stays and does not count."""
    adjusted = [math.nan] * len(p_values)
    tested = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    so_far = 0.0
    for rank, (p, i) in enumerate(tested):
        so_far = max(so_far, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = so_far
    return adjusted
