"""A method against the baseline: which test, what comes out, and what is said of it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from run_files import write_run
from scipy import stats

from mtrl.report.comparisons import VERDICTS, Comparison, compare
from mtrl.report.results import Scores
from mtrl.run.state import read_run

METRIC = "eval/success"


def scores(folder: Path, method: str, by_seed: Mapping[int, Sequence[float]]) -> Scores:
    runs = []
    for seed in by_seed:
        path = write_run(folder / method / str(seed), {}, method=method, seed=seed, rates=())
        runs.append(read_run(path))
    tasks = max(map(len, by_seed.values()), default=1)
    return Scores(tuple(runs), np.array(list(by_seed.values())).reshape(len(runs), tasks))


def against(
    folder: Path, method: Mapping[int, Sequence[float]], unitary: Mapping[int, Sequence[float]]
) -> Comparison:
    final = {"mgda": scores(folder, "mgda", method), "unitary": scores(folder, "unitary", unitary)}
    (one,) = compare(final, "unitary", "runs")
    return one


def test_the_same_seeds_are_paired_whatever_their_order(tmp_path: Path) -> None:
    ours = {3: [0.9], 1: [0.4], 2: [0.5]}
    theirs = {1: [0.3], 2: [0.45], 3: [0.7]}
    one = against(tmp_path, ours, theirs)
    expected = stats.ttest_rel([0.4, 0.5, 0.9], [0.3, 0.45, 0.7])
    assert one.test.name == "paired t"
    assert one.test.p_value == pytest.approx(expected.pvalue)
    bounds = expected.confidence_interval(0.95)
    assert one.test.difference[1:] == pytest.approx((bounds.low, bounds.high))
    assert "paired t test, 3 pairs of seeds, p = " in one.sentence


@pytest.mark.parametrize("seeds", [(1, 2, 4), (1, 2), (1, 2, 3, 4)])
def test_other_seeds_are_not_paired(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    ours = {seed: [0.1 * seed] for seed in seeds}
    theirs = {1: [0.3], 2: [0.45], 3: [0.7]}
    one = against(tmp_path, ours, theirs)
    expected = stats.ttest_ind([0.1 * seed for seed in seeds], [0.3, 0.45, 0.7], equal_var=False)
    assert one.test.name == "Welch's t"
    assert one.test.p_value == pytest.approx(expected.pvalue)
    assert f"Welch's t test, {len(seeds)} and 3 seeds, p = " in one.sentence


def test_pairs_find_what_unpaired_seeds_hide(tmp_path: Path) -> None:
    """Seeds that are lucky for both methods: their luck cancels in the differences."""
    luck = {1: 0.1, 2: 0.4, 3: 0.7}
    gains = {1: 0.09, 2: 0.1, 3: 0.11}
    unitary = {seed: [value] for seed, value in luck.items()}
    mgda = {seed: [value + gains[seed]] for seed, value in luck.items()}
    assert against(tmp_path / "a", mgda, unitary).verdict == "better"
    moved = {seed + 1: values for seed, values in mgda.items()}
    assert against(tmp_path / "b", moved, unitary).verdict == "not distinguishable"


@pytest.mark.parametrize(
    ("finals", "verdict", "said"),
    [
        ([0.9, 0.95, 1.0], "better", "mgda is better than unitary at 95%"),
        ([0.0, 0.05, 0.1], "worse", "mgda is worse than unitary at 95%"),
        ([0.4, 0.6, 0.7], "not distinguishable", "not distinguishable from unitary at 95%"),
        ([0.5, 0.5, 0.6], "not distinguishable", "about "),
        ([0.6, 0.5, 0.4], "not distinguishable", "no number of seeds would tell"),
    ],
)
@pytest.mark.parametrize("first", [1, 2], ids=["paired", "Welch"])
def test_verdicts(tmp_path: Path, finals: list[float], verdict: str, said: str, first: int) -> None:
    unitary = {1: [0.4], 2: [0.52], 3: [0.58]}
    mgda = {seed: [value] for seed, value in enumerate(finals, first)}
    one = against(tmp_path, mgda, unitary)
    assert one.verdict == verdict
    assert said in one.sentence


def test_what_does_not_hold_after_holm_is_said(tmp_path: Path) -> None:
    others = {f"mgda {i}": {seed: [0.5 + 0.1 * seed] for seed in (1, 2, 3)} for i in range(5)}
    others["pcgrad"] = {1: [0.9], 2: [0.9], 3: [1.0]}
    others["unitary"] = {1: [0.5], 2: [0.6], 3: [0.8]}
    final = {method: scores(tmp_path, method, values) for method, values in others.items()}
    one = next(one for one in compare(final, "unitary", "runs") if one.method == "pcgrad")
    assert one.test.p_value < 0.05 < one.p_holm
    assert one.verdict == "better before Holm"
    assert "It does not hold after Holm's correction" in one.sentence


def test_equal_seeds_are_not_tested(tmp_path: Path) -> None:
    for first, what in ((1, "between the differences of the pairs"), (2, "between the seeds")):
        mgda = {first + i: [0.75] for i in range(3)}
        one = against(tmp_path / what, mgda, {1: [0.25], 2: [0.25], 3: [0.25]})
        assert one.verdict == "untested"
        assert f"No spread {what}" in one.sentence


def test_one_seed_concludes_nothing(tmp_path: Path) -> None:
    one = against(tmp_path, {1: [0.25]}, {1: [0.5]})
    assert one.verdict == "untested"
    assert "mgda against unitary: a difference of -0.250 in the final mean, but" in one.sentence
    assert "nothing can be concluded" in one.sentence


def test_no_finished_runs(tmp_path: Path) -> None:
    one = against(tmp_path / "a", {}, {1: [0.5], 2: [0.5]})
    assert one.sentence == "mgda against unitary: no finished runs on one side."
    assert not one.improvement.known
    one = against(tmp_path / "b", {}, {})
    assert one.sentence == "mgda against unitary: no finished runs on both sides."


def test_probabilities_over_tasks_and_over_runs(tmp_path: Path) -> None:
    """Most tasks a little better, one much worse: tasks and runs disagree, and both are given."""
    ours = {1: [0.6, 0.6, 0.0], 2: [0.7, 0.7, 0.1]}
    theirs = {1: [0.5, 0.5, 1.0], 2: [0.6, 0.6, 1.0]}
    one = against(tmp_path, ours, theirs)
    wins = [
        (a > b) + (a == b) / 2
        for first, second in itertools.product(ours.values(), theirs.values())
        for a, b in zip(first, second, strict=True)
    ]
    assert one.improvement.value == pytest.approx(np.mean(wins)) == pytest.approx(7 / 12)
    assert one.run_improvement.value == 0.0


def test_every_sentence_is_filled_in(tmp_path: Path) -> None:
    """No outcome names a value that is not given to it."""
    one = against(tmp_path, {1: [0.4], 2: [0.6]}, {1: [0.3], 2: [0.4]})
    names = set(re.findall(r"{(\w+)", " ".join(sentence for _, sentence in VERDICTS.values())))
    assert names == {"method", "baseline", "sides", "seeds", "spread", "test", "p", "holm",
                     "needed", "value", "low", "high"}  # fmt: skip
    assert "{" not in one.sentence
