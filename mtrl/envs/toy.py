"""A small multi-task environment with a known optimum, for tests and examples.

A point in the plane must reach its task's target. A step moves each coordinate by up to
STEP_SIZE and costs the L1 distance to the target, times the task's reward scale. The
coordinates are independent, so the best policy moves each at full speed: see `optimal_return`.
The targets are not observed: a shared policy needs the task id.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mtrl.config.benchmarks import TOY
from mtrl.envs.goals import GoalOrder

TARGETS = dict(zip(TOY, ((0.8, 0.0), (0.0, 0.8), (-0.8, 0.0), (0.0, -0.8)), strict=True))
REWARD_SCALES = dict(zip(TOY, (0.1, 1.0, 10.0, 100.0), strict=True))
OBSERVATION_DIM = 2
ACTION_DIM = 2
STEP_SIZE = 0.1
SUCCESS_RADIUS = 0.1


class PointMass(gymnasium.Env):
    """Observation: position [2]; action: velocity in [-1, 1]^2; a "goal" is a start position."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    render_mode = "rgb_array"

    def __init__(
        self, task_name: str, *, num_goals: int = 50, horizon: int = 20, seed: int = 0
    ) -> None:
        self.task_name = task_name
        self.horizon = horizon
        self.target = np.array(TARGETS[task_name])
        self.reward_scale = REWARD_SCALES[task_name]
        self.starts = np.random.default_rng(seed).uniform(-0.3, 0.3, (num_goals, 2))
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._order = GoalOrder(seed, task_name, num_goals)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        super().reset(seed=seed)
        goal = self._order.choose(seed, options)
        self._step = 0
        self.position = self.starts[goal].copy()
        return self.position.copy(), {"goal": goal}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        self.position = self.position + STEP_SIZE * np.clip(action, -1.0, 1.0)
        self._step += 1
        distance = float(np.abs(self.position - self.target).sum())
        success = float(np.abs(self.position - self.target).max() <= SUCCESS_RADIUS)
        reward = -self.reward_scale * distance
        return self.position.copy(), reward, False, self._step >= self.horizon, {"success": success}

    def render(self) -> NDArray[np.uint8] | None:
        """Pixels [240, 240, 3] of the square [-1.2, 1.2]^2: the target's zone, the point."""
        if self.render_mode is None:
            return None
        axis = np.linspace(-1.2, 1.2, 240)
        place = np.stack(np.meshgrid(axis, -axis), axis=-1)  # [row, column, (x, y)]
        pixels = np.full((240, 240, 3), 255, np.uint8)
        pixels[np.abs(place - self.target).max(-1) <= SUCCESS_RADIUS] = (150, 210, 150)
        pixels[np.abs(place - self.position).max(-1) <= 0.04] = (30, 60, 160)
        return pixels


def optimal_return(task_name: str, start: NDArray[np.float64], horizon: int) -> float:
    """Undiscounted return of the best policy from `start` [2]."""
    gap = np.abs(start - np.array(TARGETS[task_name]))
    steps = np.arange(1, horizon + 1)[:, None]
    return -REWARD_SCALES[task_name] * float(np.maximum(gap - STEP_SIZE * steps, 0.0).sum())
