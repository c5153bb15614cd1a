"""Delta_m and mean rank of methods (Gama & Grassi 2025, Section 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

Scores = Mapping[tuple[str, str], float]
"""{(task, metric): value}"""

LOWER_IS_BETTER = ("mse", "absolute_error", "relative_error", "centre_error")


def delta_m(scores: Scores, baseline: Scores) -> float:
    """Mean relative gain over the baseline in percent; POSITIVE is better (other papers: negative).

    1/N sum_i 1/M_i sum_j (-1)^l_ij (M_ij - B_ij) / B_ij over N tasks with M_i metrics each; l = 1
    where lower is better; NaN against a zero. The paper's baseline: single-task networks.
    """
    gains: dict[str, list[float]] = {}
    for (task, metric), value in scores.items():
        reference = baseline[task, metric]
        sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
        change = (value - reference) / reference if reference else math.nan
        gains.setdefault(task, []).append(sign * change)
    return 100.0 * float(np.mean([np.mean(of_task) for of_task in gains.values()]))


def mean_ranks(scores: Mapping[str, Scores]) -> dict[str, float]:
    """{method: rank}, 1 = best; averaged over a task's metrics, then over tasks; ties share."""
    keys = list(next(iter(scores.values())))
    ranks: dict[str, dict[str, list[float]]] = {method: {} for method in scores}
    for task, metric in keys:
        sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
        values = {method: sign * of[task, metric] for method, of in scores.items()}
        for method, value in values.items():
            better = sum(other < value for other in values.values())
            equal = sum(other == value for other in values.values())
            ranks[method].setdefault(task, []).append(better + (equal + 1) / 2)
    return {
        method: float(np.mean([np.mean(of_task) for of_task in of.values()]))
        for method, of in ranks.items()
    }
