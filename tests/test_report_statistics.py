"""Statistics against SciPy, hand-computed values, rliable, and slow obvious versions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mtrl.report import statistics
from mtrl.report.statistics import Floats, Unit


def some_scores(runs: int, tasks: int, seed: int = 0) -> Floats:
    """Success rates of 10 episodes: ties are common."""
    return np.random.default_rng(seed).binomial(10, 0.6, (runs, tasks)) / 10


def drawn_tables(scores: Floats, counts: Floats) -> list[Floats]:
    """The resampled scores themselves, [run, task] each."""
    counts = np.broadcast_to(counts, (len(counts), *scores.shape)).astype(int)
    return [
        np.stack([np.repeat(s, c) for s, c in zip(scores.T, table.T, strict=True)], axis=1)
        for table in counts
    ]


@settings(max_examples=25)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 10_000))
def test_iqm_is_the_trimmed_mean(runs: int, tasks: int, seed: int) -> None:
    scores = some_scores(runs, tasks, seed)
    (value,) = statistics.interquartile_mean(scores, np.ones((1, runs, 1)))
    assert value == pytest.approx(stats.trim_mean(scores, 0.25, axis=None), abs=1e-12)


@pytest.mark.parametrize("unit", ["runs", "tasks"])
def test_counts_equal_drawn_tables(unit: Unit) -> None:
    scores = some_scores(5, 3)
    counts = statistics.resample(5, 3, unit, resamples=40)
    tables = drawn_tables(scores, counts)
    assert all(table.shape == (5, 3) for table in tables)
    means = [table.mean() for table in tables]
    middles = [stats.trim_mean(table, 0.25, axis=None) for table in tables]
    assert statistics.mean(scores, counts) == pytest.approx(np.array(means))
    assert statistics.interquartile_mean(scores, counts) == pytest.approx(np.array(middles))


def test_what_is_drawn() -> None:
    whole = statistics.resample(4, 3, "runs")
    per_task = statistics.resample(4, 3, "tasks")
    assert whole.shape == (statistics.RESAMPLES, 4, 1)
    assert per_task.shape == (statistics.RESAMPLES, 4, 3)
    for counts in (whole, per_task):
        assert (counts.sum(1) == 4).all()  # as many runs as there are, in every stratum
        assert counts.mean((0, 2)) == pytest.approx(np.ones(4), abs=0.1)
    assert (per_task[:, :, 0] != per_task[:, :, 1]).any()


def test_interval_of_two_runs_by_hand() -> None:
    # Drawn means: 0.2 (1/4), 0.5 (1/2), 0.8 (1/4): the 95% interval reaches from 0.2 to 0.8.
    assert statistics.interval(statistics.mean, np.array([[0.2], [0.8]])) == pytest.approx(
        (0.5, 0.2, 0.8)
    )


def test_interval_against_scipy_bootstrap() -> None:
    scores = some_scores(10, 1, seed=3)
    ours = statistics.interval(statistics.mean, scores)
    theirs = stats.bootstrap(
        (scores[:, 0],), np.mean, method="percentile", n_resamples=5_000, rng=1
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=0.02)


def test_one_run_has_no_interval() -> None:
    one = statistics.interval(statistics.mean, np.array([[0.2, 0.4]]))
    assert one.value == pytest.approx(0.3)
    assert not one.known


def test_drawing_tasks_apart_ignores_that_they_share_a_network() -> None:
    # Runs good or bad at all 16 tasks alike: strata per task average the luck of a run away.
    scores = np.repeat(np.linspace(0, 1, 8)[:, None], 16, axis=1)
    whole = statistics.interval(statistics.mean, scores, "runs")
    apart = statistics.interval(statistics.mean, scores, "tasks")
    assert (whole.high - whole.low) / (apart.high - apart.low) == pytest.approx(4, rel=0.1)


def test_probability_of_improvement_by_hand() -> None:
    # 1 > 0, 1 = 1, 2 > 0, 2 > 1: (3 + 1/2) / 4; the other task is always lost.
    first, second = np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([[0.0, 5.0], [1.0, 5.0]])
    assert statistics.probability_of_improvement(first, second).value == (3.5 / 4 + 0) / 2
    assert statistics.probability_of_improvement(second, first).value == (0.5 / 4 + 1) / 2


def test_probability_of_improvement_against_scipy() -> None:
    first, second = some_scores(6, 4, 1), some_scores(4, 4, 2)
    us = [stats.mannwhitneyu(a, b).statistic for a, b in zip(first.T, second.T, strict=True)]
    found = statistics.probability_of_improvement(first, second)
    assert found.value == pytest.approx(np.mean(us) / 24)
    assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize("unit", ["runs", "tasks"])
def test_interval_of_improvement_equals_drawn_tables(unit: Unit) -> None:
    first, second = some_scores(5, 2, 1), some_scores(3, 2, 2)
    tables = [
        drawn_tables(scores, statistics.resample(len(scores), 2, unit, seed=seed))
        for seed, scores in enumerate((first, second))
    ]
    values = [
        np.mean([(a > b) + (a == b) / 2 for x, y in zip(one.T, two.T, strict=True)
                 for a in x for b in y])
        for one, two in zip(*tables, strict=True)
    ]  # fmt: skip
    found = statistics.probability_of_improvement(first, second, unit)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


def test_welch_against_scipy() -> None:
    first, second = some_scores(7, 3, 1).mean(1), some_scores(4, 3, 2).mean(1) - 0.1
    ours = statistics.welch(first, second)
    theirs = stats.ttest_ind(first, second, equal_var=False)
    assert ours.p_value == pytest.approx(theirs.pvalue)
    assert ours.difference.value == pytest.approx(first.mean() - second.mean())
    bounds = theirs.confidence_interval(0.95)
    assert (ours.difference.low, ours.difference.high) == pytest.approx((bounds.low, bounds.high))


def test_paired_against_scipy() -> None:
    first, second = some_scores(7, 3, 1).mean(1), some_scores(7, 3, 2).mean(1) - 0.1
    ours, theirs = statistics.paired(first, second), stats.ttest_rel(first, second)
    assert ours.p_value == pytest.approx(theirs.pvalue)
    bounds = theirs.confidence_interval(0.95)
    assert ours.difference == pytest.approx((np.mean(first - second), bounds.low, bounds.high))


def test_paired_by_hand() -> None:
    # Differences 0.1 and 0.3: mean 0.2, standard error 0.1, t(1, 0.975) = 12.706.
    test = statistics.paired(np.array([0.5, 0.9]), np.array([0.4, 0.6]))
    assert test.difference == pytest.approx((0.2, 0.2 - 1.2706, 0.2 + 1.2706), abs=1e-4)
    assert test.p_value == pytest.approx(2 * (0.5 - math.atan(2) / math.pi))


@pytest.mark.parametrize(
    ("test", "first", "second"),
    [
        (statistics.welch, [0.5], [0.1, 0.3]),
        (statistics.welch, [0.1, 0.3], [0.5]),
        (statistics.welch, [0.7, 0.7, 0.7], [0.1 + 0.2, 0.3]),
        (statistics.paired, [0.7], [0.5]),
        (statistics.paired, [0.1 + 0.2, 0.5], [0.2, 0.4]),
    ],
    ids=["one run", "one run of the baseline", "no spread", "one pair", "no spread of pairs"],
)
def test_no_test_without_spread(
    test: Callable[[Floats, Floats], statistics.Test], first: list[float], second: list[float]
) -> None:
    found = test(np.array(first), np.array(second))
    assert found.difference.value == pytest.approx(np.mean(first) - np.mean(second))
    assert not found.difference.known
    assert math.isnan(found.p_value)
    assert math.isnan(found.seeds_needed)


@pytest.mark.parametrize("gap", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("paired", [False, True])
def test_seeds_needed_have_the_power(gap: float, paired: bool) -> None:
    first = np.array([0.4, 0.5, 0.6])  # standard deviation 0.1 on both sides
    second = first - gap + np.array([-0.1, 0.1, 0.0]) * paired
    test = statistics.paired if paired else statistics.welch
    n = test(first, second).seeds_needed

    def power(n: float) -> float:
        """Exact: the noncentral t distribution."""
        freedom = n - 1 if paired else 2 * n - 2
        error = np.std(first - second, ddof=1) if paired else 0.1 * math.sqrt(2)
        shift = gap / (error / math.sqrt(n))
        return float(stats.nct.sf(stats.t.ppf(0.975, freedom), freedom, shift))

    assert power(n + 1) > 0.8
    assert power(n - 1) < 0.8


def test_seeds_needed_by_hand() -> None:
    def needed(first: list[float], second: list[float]) -> float:
        return statistics.welch(np.array(first), np.array(second)).seeds_needed

    # s = 0.1, d = 0.1: 2 (1.960 + 0.842)^2 = 15.7 with normal quantiles, 17 with Student's.
    assert needed([0.4, 0.5, 0.6], [0.5, 0.6, 0.7]) == 17
    assert math.isinf(needed([0.4, 0.6], [0.6, 0.4]))


def test_holm_by_hand() -> None:
    # Sorted: 3 x 0.01, 2 x 0.03, and 0.04 raised to the one before; the untested one is no test.
    adjusted = statistics.holm([0.01, 0.04, math.nan, 0.03])
    assert adjusted == pytest.approx([0.03, 0.06, math.nan, 0.06], nan_ok=True)
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]


def test_against_rliable() -> None:
    try:
        from rliable import library, metrics
    except Exception as error:  # beside pandas 3 it fails with a TypeError
        pytest.skip(f"rliable does not import here ({error}): pip install rliable 'pandas<3'")
    first, second = some_scores(6, 4, 1), some_scores(5, 4, 2)
    ones = np.ones((1, 6, 1))
    iqm = statistics.interquartile_mean(first, ones)[0]
    assert iqm == pytest.approx(metrics.aggregate_iqm(first), abs=1e-12)
    found = statistics.probability_of_improvement(first, second, "tasks")
    assert found.value == pytest.approx(metrics.probability_of_improvement(first, second))
    _, bounds = library.get_interval_estimates(
        {"iqm": first}, lambda s: np.array([metrics.aggregate_iqm(s)]), reps=1_000
    )
    ours = statistics.interval(statistics.interquartile_mean, first, "tasks")
    assert (ours.low, ours.high) == pytest.approx(tuple(bounds["iqm"][:, 0]), abs=0.02)
    _, bounds = library.get_interval_estimates(
        {"pair": (first, second)},
        lambda a, b: np.array([metrics.probability_of_improvement(a, b)]),
        reps=300,
    )
    assert (found.low, found.high) == pytest.approx(tuple(bounds["pair"][:, 0]), abs=0.06)
