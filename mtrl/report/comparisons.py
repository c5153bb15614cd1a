"""Every method against the baseline, by the final score: a test, and its verdict in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mtrl.report import statistics
from mtrl.report.results import Scores
from mtrl.report.statistics import Interval, Test, Unit

Verdict = Literal[
    "better", "worse", "better before Holm", "worse before Holm", "not distinguishable", "untested"
]  # fmt: skip
Outcome = Literal[
    "no runs", "one seed", "no spread", "equal means", "not distinguishable", "better", "worse",
    "better before Holm", "worse before Holm",
]  # fmt: skip

SEEN = "a difference of {value:+.3f} in the final mean"
TESTED = f"{SEEN} (95% interval {{low:+.3f}} to {{high:+.3f}}, {{test}}, {{seeds}}, p = {{p:.2g}})"
HOLM = (
    " It does not hold after Holm's correction for the number of methods compared (p = {holm:.2g})."
)
VERDICTS: dict[Outcome, tuple[Verdict, str]] = {
    "no runs": ("untested", "{method} against {baseline}: no finished runs on {sides}."),
    "one seed": (
        "untested",
        "{method} against {baseline}: " + SEEN + ", but one seed on a side says nothing about the "
        "spread between seeds ({seeds}): nothing can be concluded.",
    ),
    "no spread": (
        "untested",
        "{method} against {baseline}: " + SEEN + ". No spread between the {spread} ({seeds}), so "
        "a t test has nothing to measure the difference by: not tested.",
    ),
    "equal means": (
        "not distinguishable",
        "{method} is not distinguishable from {baseline} at 95% with this many seeds: " + TESTED
        + ". The means are equal: no number of seeds would tell.",
    ),
    "not distinguishable": (
        "not distinguishable",
        "{method} is not distinguishable from {baseline} at 95% with this many seeds: " + TESTED
        + ". If the true difference and spread were as seen, about {needed:.0f} seeds each would "
        "find it four times in five.",
    ),
    "better": ("better", "{method} is better than {baseline} at 95%: " + TESTED + "."),
    "worse": ("worse", "{method} is worse than {baseline} at 95%: " + TESTED + "."),
    "better before Holm": (
        "better before Holm",
        "{method} is better than {baseline} at 95%: " + TESTED + "." + HOLM,
    ),
    "worse before Holm": (
        "worse before Holm",
        "{method} is worse than {baseline} at 95%: " + TESTED + "." + HOLM,
    ),
}  # fmt: skip
"""What the report says of a comparison, by how it came out."""


@dataclass(frozen=True)
class Comparison:
    method: str
    baseline: str
    runs: tuple[int, int]
    test: Test
    p_holm: float
    """Adjusted for the number of methods compared with this baseline."""
    improvement: Interval
    """P(a run of the method beats a run of the baseline), a mean over tasks."""
    run_improvement: Interval
    """Share of pairs of runs in which the method's has the higher mean over tasks."""

    @property
    def seeds(self) -> str:
        a, b = self.runs
        return f"{a} pairs of seeds" if self.test.name == "paired t" else f"{a} and {b} seeds"

    @property
    def outcome(self) -> Outcome:
        if min(self.runs) == 0:
            return "no runs"
        if min(self.runs) == 1:
            return "one seed"
        if math.isnan(self.test.p_value):
            return "no spread"
        if self.test.p_value >= 1 - statistics.CONFIDENCE:
            return "equal means" if math.isinf(self.test.seeds_needed) else "not distinguishable"
        holds = self.p_holm < 1 - statistics.CONFIDENCE
        if self.test.difference.value > 0:
            return "better" if holds else "better before Holm"
        return "worse" if holds else "worse before Holm"

    @property
    def verdict(self) -> Verdict:
        return VERDICTS[self.outcome][0]

    @property
    def sentence(self) -> str:
        paired = self.test.name == "paired t"
        return VERDICTS[self.outcome][1].format(
            method=self.method,
            baseline=self.baseline,
            sides="both sides" if self.runs == (0, 0) else "one side",
            seeds=self.seeds,
            spread="differences of the pairs" if paired else "seeds",
            test=f"{self.test.name} test",
            p=self.test.p_value,
            holm=self.p_holm,
            needed=self.test.seeds_needed,
            **self.test.difference._asdict(),
        )


def compare(final: dict[str, Scores], baseline: str, unit: Unit) -> list[Comparison]:
    """Every method in `final`, {label: final scores}, against the one called `baseline`."""
    theirs = final[baseline]
    others = {label: scores for label, scores in final.items() if label != baseline}
    tests = {label: difference_test(ours, theirs) for label, ours in others.items()}
    adjusted = statistics.holm([test.p_value for test in tests.values()])
    return [
        Comparison(
            label,
            baseline,
            (len(ours.runs), len(theirs.runs)),
            tests[label],
            p_holm,
            _improvement(ours.table, theirs.table, unit),
            _improvement(ours.by_run[:, None], theirs.by_run[:, None], unit),
        )
        for (label, ours), p_holm in zip(others.items(), adjusted, strict=True)
    ]


def difference_test(ours: Scores, theirs: Scores) -> Test:
    """Paired where both have the same seeds, at least two; Welch's otherwise."""
    first, second = (
        dict(zip((run.seed for run in scores.runs), scores.by_run, strict=True))
        for scores in (ours, theirs)
    )
    if not (first and second):
        return Test("Welch's t", Interval(math.nan), math.nan, math.nan)
    if first.keys() == second.keys() and len(first) > 1:
        ones, others = (np.array([of[seed] for seed in sorted(first)]) for of in (first, second))
        return statistics.paired(ones, others)
    return statistics.welch(ours.by_run, theirs.by_run)


def _improvement(ours: statistics.Floats, theirs: statistics.Floats, unit: Unit) -> Interval:
    if not (len(ours) and len(theirs)):
        return Interval(math.nan)
    return statistics.probability_of_improvement(ours, theirs, unit)
