"""Delta_m and mean rank of methods (Gama & Grassi 2025, Section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mtrl.run.tags import LOWER_IS_BETTER
from mtrl.schema import ConfigError, read_yaml

Scores = Mapping[tuple[str, str], float]
"""{(task, metric): value}"""

DIFFERENT_UNITS = ("mae",)
"""Metrics that have another unit for every task."""
SINGLE_TASK: dict[str, Scores] = {
    "nyuv2": {
        ("segmentation", "mean_iou"): 0.3830,
        ("segmentation", "pixel_accuracy"): 0.6376,
        ("depth", "absolute_error"): 0.6754,
        ("depth", "relative_error"): 0.2780,
        ("normals", "mean_angle"): 25.01,
        ("normals", "median_angle"): 19.21,
        ("normals", "within_11.25"): 0.3014,
        ("normals", "within_22.5"): 0.5720,
        ("normals", "within_30"): 0.6915,
    },
    "qm9": {
        ("mu", "mae"): 0.0671,
        ("alpha", "mae"): 0.1814,
        ("homo", "mae"): 60.576,
        ("lumo", "mae"): 53.915,
        ("r2", "mae"): 0.5027,
        ("zpve", "mae"): 4.539,
        ("u0_atom", "mae"): 58.838,
        ("u_atom", "mae"): 64.244,
        ("h_atom", "mae"): 63.852,
        ("g_atom", "mae"): 66.223,
        ("cv", "mae"): 0.07212,
    },
}
"""By problem: published test scores of networks for one task (Navon et al. 2022, `experiments/` of
github.com/AvivNavon/nash-mtl; NYUv2's are CAGrad's, of `segnet_mtan`)."""


def published_scores(problem: str, keys: Iterable[tuple[str, str]]) -> Scores:
    """`SINGLE_TASK` of a problem; ConfigError if there is none."""
    if problem not in SINGLE_TASK:
        known = ", ".join(SINGLE_TASK)
        raise ConfigError("baseline", "published", f"there is none for {problem}, but for {known}")
    return _of_all(SINGLE_TASK[problem], keys, "published")


def given_scores(path: Path, keys: Iterable[tuple[str, str]]) -> Scores:
    """A file's {task: {metric: value}}; ConfigError if it has not these keys, or other values."""
    content = read_yaml(path)
    scores: dict[tuple[str, str], float] = {}
    for task, of_task in content.items() if isinstance(content, dict) else ():
        for metric, value in of_task.items() if isinstance(of_task, dict) else ():
            if not isinstance(value, int | float) or not math.isfinite(value) or not value:
                raise ConfigError(f"{task}.{metric}", value, f"{path}: must be a number, not zero")
            scores[str(task), str(metric)] = float(value)
    return _of_all(scores, keys, str(path))


def _of_all(given: Scores, keys: Iterable[tuple[str, str]], name: str) -> Scores:
    if missing := [key for key in keys if key not in given]:
        task, metric = missing[0]
        raise ConfigError("baseline", name, f"has no {metric} of {task}")
    return given


def mean_over_tasks(metric: str, values: Sequence[float]) -> float:
    """Of one metric; geometric where the tasks' units differ, so that none of them decides."""
    if metric not in DIFFERENT_UNITS:
        return float(np.mean(values))
    return math.prod(values) ** (1 / len(values))


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


def _alike(one: float, other: float) -> bool:
    """But for the order of a sum, and the digits that packed records keep."""
    return math.isclose(one, other, rel_tol=1e-5)


def mean_ranks(scores: Mapping[str, Scores]) -> dict[str, float]:
    """{method: rank}, 1 = best; averaged over a task's metrics, then over tasks; ties share, NaN is
    last."""
    keys = list(next(iter(scores.values())))
    ranks: dict[str, dict[str, list[float]]] = {method: {} for method in scores}
    for task, metric in keys:
        sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
        values = {method: sign * of[task, metric] for method, of in scores.items()}
        values = {method: math.inf if math.isnan(v) else v for method, v in values.items()}
        for method, value in values.items():
            equal = sum(_alike(other, value) for other in values.values())
            better = sum(other < value and not _alike(other, value) for other in values.values())
            ranks[method].setdefault(task, []).append(better + (equal + 1) / 2)
    return {
        method: float(np.mean([np.mean(of_task) for of_task in of.values()]))
        for method, of in ranks.items()
    }
