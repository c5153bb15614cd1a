"""Registered Gymnasium environments as tasks: equal observation and action spaces, continuous.

Unlike Meta-World's, their episodes may end at different times. A goal is a start: goal i is the
episode that begins with `reset(seed=...)`, a seed drawn from the run's seed, the task and i.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from mtrl.envs.goals import GoalOrder
from mtrl.envs.rendering import without_renderer
from mtrl.envs.success import TaskError, is_solved
from mtrl.files.python_files import import_file


class GymTask(gymnasium.Env):
    """A registered environment with flat observations, actions in [-1, 1] and a horizon.

    Success is what the environment says in `info["success"]` or `info["is_success"]`, else never.
    """

    def __init__(
        self,
        task_name: str,
        *,
        num_goals: int = 50,
        horizon: int = 500,
        seed: int = 0,
        plugins: Sequence[str] = (),
        render: bool = False,
    ) -> None:
        """plugins: files that register `task_name`, imported here, in the worker's process."""
        for path in plugins:
            import_file(Path(path))
        mode = {"render_mode": "rgb_array"} if render else {}
        env = gymnasium.make(task_name, max_episode_steps=horizon, **mode)
        check_spaces(task_name, env)
        env = gymnasium.wrappers.FlattenObservation(env)
        self.env = gymnasium.wrappers.RescaleAction(env, np.float32(-1.0), np.float32(1.0))
        self.task_name, self.num_goals = task_name, num_goals
        self.observation_space = self.env.observation_space
        self.action_space = self.env.action_space
        self.metadata, self.render_mode = self.env.metadata, self.env.render_mode
        self._order = GoalOrder(seed, task_name, num_goals)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        super().reset(seed=seed)  # Gymnasium's contract; nothing here draws from it
        goal = self._order.choose(seed, options)
        entropy = [self._order.seed, zlib.crc32(self.task_name.encode()), goal]
        start = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        observation, info = self.env.reset(seed=start)
        return self._checked(observation), info | {"goal": goal}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        info = info | {"success": is_solved(self.task_name, info)}
        return self._checked(observation), float(reward), terminated, truncated, info

    def _checked(self, observation: NDArray[Any]) -> NDArray[Any]:
        wanted = self.observation_space.shape
        if observation.shape != wanted:  # NumPy would stretch a single number to fit
            raise TaskError(
                f"task {self.task_name} returns {observation.size} observations; "
                f"its observation space has {wanted[0]}"
            )
        return observation

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()


def check_spaces(task_name: str, env: gymnasium.Env) -> None:
    """Raise ValueError unless both spaces are boxes, and the actions' continuous and bounded."""
    for what, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, Box):
            raise ValueError(f"task {task_name} has {what}s {space}; they must be a Box")
        if 0 in space.shape:
            raise ValueError(f"task {task_name} has {what}s {space}, which are empty")
    actions = env.action_space
    if len(actions.shape) != 1:
        raise ValueError(f"task {task_name} has actions {actions}; their shape must be (k,)")
    if not np.issubdtype(actions.dtype, np.floating):
        raise ValueError(
            f"task {task_name} has actions {actions}, which are not continuous; "
            "their type must be float32 or another floating type"
        )
    for index, (low, high) in enumerate(zip(actions.low, actions.high, strict=True)):
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError(
                f"task {task_name} has actions {actions}: component {index} lies in "
                f"[{low}, {high}]; its bounds must be finite, the lower below the upper"
            )


@functools.lru_cache(maxsize=32)
def dimensions(names: tuple[str, ...], plugins: tuple[str, ...] = ()) -> tuple[int, int]:
    """Observation and action dimensions that all tasks share; ValueError if they do not."""
    shapes = {}
    for name in names:
        with without_renderer():
            task = GymTask(name, plugins=plugins)
            task.close()
        shapes[name] = (task.observation_space.shape, task.action_space.shape)
        if shapes[name] != shapes[names[0]]:
            raise ValueError(
                f"the spaces of {names[0]} and {name} differ: observations and actions "
                f"{shapes[names[0]]} and {shapes[name]}"
            )
    (observation,), (action,) = shapes[names[0]]
    return observation, action
