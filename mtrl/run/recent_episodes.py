"""Success and return of the last training episodes, task by task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.vector import Step

WINDOW = 10  # episodes per task


class RecentEpisodes:
    """Of the stochastic policy, as it explores; on the host, where the outcomes arrive."""

    def __init__(self, num_tasks: int, envs_per_task: int) -> None:
        self._envs_per_task = envs_per_task
        lanes = num_tasks * envs_per_task
        self._solved = np.zeros(lanes, dtype=np.bool_)
        self._return = np.zeros(lanes)
        """[lane] of the episode under way."""
        self._success: list[list[float]] = [[] for _ in range(num_tasks)]
        self._returns: list[list[float]] = [[] for _ in range(num_tasks)]

    def add(self, outcome: Step) -> None:
        """One step of every environment."""
        self._solved |= outcome.success
        self._return += outcome.rewards
        ended = outcome.ended
        if not ended.any():
            return
        for lane in np.flatnonzero(ended):
            task = lane // self._envs_per_task
            for recent, value in (
                (self._success[task], self._solved[lane]),
                (self._returns[task], self._return[lane]),
            ):
                recent.append(float(value))
                del recent[:-WINDOW]
        self._solved[ended], self._return[ended] = False, 0.0

    @property
    def success(self) -> NDArray[np.float64]:
        """[task] share of the last episodes that were solved; NaN before the first."""
        return _means(self._success)

    @property
    def returns(self) -> NDArray[np.float64]:
        """[task] their mean raw return; NaN before the first."""
        return _means(self._returns)

    def state_dict(self) -> dict[str, Any]:
        """Without the episodes under way: a resumed run starts new ones."""
        return {"recent_success": self._success, "recent_returns": self._returns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._success = state["recent_success"]
        self._returns = state["recent_returns"]


def _means(recent: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    return np.array([np.mean(values) if values else math.nan for values in recent])
