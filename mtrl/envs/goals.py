"""In which order a task visits its goals."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


@functools.lru_cache(maxsize=4096)
def _goal_order(seed: int, task_name: str, sweep: int, num_goals: int) -> NDArray[np.int64]:
    # The name, not the position, seeds the order: a task keeps it in any task list.
    entropy = [seed, zlib.crc32(task_name.encode()), sweep]
    return np.random.default_rng(entropy).permutation(num_goals)


def goal_index(seed: int, task_name: str, episode: int, num_goals: int) -> int:
    """Goal of a training episode: every goal once per sweep, in an order of the task's own.

    A pure function, so that a resumed run needs only the episode number.
    """
    sweep, position = divmod(episode, num_goals)
    return int(_goal_order(seed, task_name, sweep, num_goals)[position])


def lane_goals(
    seed: int,
    names: Sequence[str],
    episodes: NDArray[np.int64],
    envs_per_task: int,
    num_goals: int,
) -> NDArray[np.int64]:
    """Goal of every lane's episode [lane]; the lanes of a task take its goals in turn.

    names, episodes [lane], task-major.
    """
    turns = episodes * envs_per_task + np.arange(len(names)) % envs_per_task
    sweeps, positions = np.divmod(turns, num_goals)
    goals = np.empty_like(turns)
    for first in range(0, len(names), envs_per_task):
        lanes = slice(first, first + envs_per_task)
        visited, which = np.unique(sweeps[lanes], return_inverse=True)
        orders = [_goal_order(seed, names[first], sweep, num_goals) for sweep in visited.tolist()]
        goals[lanes] = np.stack(orders)[which, positions[lanes]]
    return goals


class LaneGoals:
    """The goals of training: whose turn it is in every lane, as its episodes go by."""

    def __init__(self, seed: int, names: Sequence[str], envs_per_task: int, num_goals: int) -> None:
        """names [lane], task-major."""
        self._goals = functools.partial(lane_goals, seed, names)
        self._shape = envs_per_task, num_goals
        self.start_at(np.zeros(len(names), dtype=np.int64))

    def start_at(self, episodes: NDArray[np.int64]) -> None:
        """episodes [lane]: those that have ended."""
        self.episodes = episodes
        self.now, self.next = (self._goals(episodes + k, *self._shape) for k in (0, 1))
        """[lane] of the episode under way, and of the one after it."""

    def count(self, ended: NDArray[np.bool_]) -> None:
        """ended [lane]"""
        if ended.any():
            self.start_at(self.episodes + ended)


class GoalOrder:
    """The goals of one environment used on its own: reset() after reset() in seeded order."""

    def __init__(self, seed: int, task_name: str, num_goals: int) -> None:
        self.seed, self.task_name, self.num_goals = seed, task_name, num_goals
        self.episode = 0

    def choose(self, seed: int | None, options: dict | None) -> int:
        """Goal of the next episode, from the arguments of `gymnasium.Env.reset`.

        A seed starts another order; options {"goal": i} chooses one goal, out of turn.
        """
        if seed is not None:
            self.seed, self.episode = seed, 0
        if options and "goal" in options:
            goal = int(options["goal"])
            if not 0 <= goal < self.num_goals:
                raise ValueError(f"goal must be in 0..{self.num_goals - 1}, not {goal}")
            return goal
        self.episode += 1
        return goal_index(self.seed, self.task_name, self.episode - 1, self.num_goals)
