"""How the numbers of several tasks are named: every task's own, then their mean and range."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LOWER_IS_BETTER = (
    "mse", "absolute_error", "relative_error", "centre_error", "mean_angle", "median_angle", "mae",
)  # fmt: skip
"""Scores, by the last word of eval/<score>/<task>; all others are better where they are higher."""


def per_task(
    prefix: str, names: Sequence[str], values: Sequence[float] | np.ndarray
) -> dict[str, float]:
    """{"<prefix>/<task>": value, ...}, with "<prefix>_mean", "_min" and "_max" over the tasks.

    NaN = not known: left out of mean and range, which are NaN where no task is known.
    """
    found = {f"{prefix}/{name}": float(v) for name, v in zip(names, values, strict=True)}
    known = [value for value in found.values() if value == value] or [math.nan]
    return found | {
        f"{prefix}_mean": float(np.mean(known)),
        f"{prefix}_min": min(known),
        f"{prefix}_max": max(known),
    }
