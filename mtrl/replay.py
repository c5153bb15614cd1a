"""Replay of RAW rewards, normalised per task when sampled (Kurin et al. 2022, App. on RL).

Storage is task-major [task, slot, field] on the learner's device, one row per transition, so
that sampling is one gather. The reward moments run over everything ever added, evicted and
warm-up transitions included, in float64 by Welford's update; Kurin et al.'s float32
E[r^2] - E[r]^2 can go negative. Nothing here waits for the device.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

EPSILON = 1e-8  # under the root of sigma, as in Kurin et al.


class Batch(NamedTuple):
    """A sample of transitions, task-major, float32."""

    observations: Tensor
    """[task, sample, obs] raw observations."""
    actions: Tensor
    """[task, sample, action] in [-1, 1]."""
    rewards: Tensor
    """[task, sample] rewards, divided by the task's sigma unless normalisation is off."""
    next_observations: Tensor
    """[task, sample, obs] true successors, never a reset observation."""
    terminated: Tensor
    """[task, sample] 1.0 where the episode terminated (never by truncation)."""


class RewardMoments:
    """Running count, mean and squared deviations of raw rewards, per task [task], float64."""

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        self.squares = torch.zeros(num_tasks, dtype=torch.float64, device=device)

    def add(self, rewards: Tensor) -> None:
        """Welford's update, for several rewards per task at once [task, env]."""
        self.count += rewards.shape[1]
        delta = rewards - self.mean[:, None]
        self.mean += delta.sum(1) / self.count
        self.squares += (delta * (rewards - self.mean[:, None])).sum(1)

    @property
    def sigma(self) -> Tensor:
        """sqrt(population variance + EPSILON), [task] float64."""
        return torch.sqrt(self.squares / self.count.clamp(min=1) + EPSILON)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            getattr(self, name).copy_(value)


class ReplayBuffer:
    def __init__(
        self,
        num_tasks: int,
        capacity: int,
        observation_dim: int,
        action_dim: int,
        device: torch.device,
        reward_normalization: Literal["none", "sample", "ema"] = "sample",
        ema_alpha: float = 0.001,
        envs_per_task: int = 1,
    ) -> None:
        """`capacity`: transitions in all, split evenly; rounded down to whole vector steps.

        Raises MemoryError, before allocating, where the device has too little free memory.
        """
        self.num_tasks, self.envs_per_task = num_tasks, envs_per_task
        self.slots = capacity // (num_tasks * envs_per_task) * envs_per_task
        self._widths = [observation_dim, action_dim, 1, observation_dim, 1]
        need = 4 * num_tasks * self.slots * sum(self._widths)
        free = free_memory(device)
        if need > free:
            raise MemoryError(
                f"replay.capacity = {capacity} needs {need / 2**30:.1f} GiB on {device}, "
                f"where {free / 2**30:.1f} GiB are free"
            )
        shape = (num_tasks, self.slots, sum(self._widths))
        self.storage = torch.empty(shape, device=device)
        self.moments = RewardMoments(num_tasks, device)
        self.reward_normalization = reward_normalization
        self.ema_alpha = ema_alpha
        self.ema_mean = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        self.ema_variance = torch.ones(num_tasks, dtype=torch.float64, device=device)
        self.maximum = torch.full((num_tasks,), -torch.inf, dtype=torch.float64, device=device)
        """Largest reward ever stored, per task: raw, or normalised by the moving average."""
        self.added = 0
        """Transitions ever added per task."""
        self._held = torch.zeros((), dtype=torch.float64, device=device)
        """`size`, where sampling reads it: a captured update would keep a number for ever."""
        self._first_slots = torch.arange(num_tasks, device=device)[:, None] * self.slots

    @property
    def size(self) -> int:
        """Transitions held per task."""
        return min(self.added, self.slots)

    def add(
        self,
        observations: Tensor,
        actions: Tensor,
        rewards: NDArray[np.float64] | Tensor,
        next_observations: NDArray[np.float32] | Tensor,
        terminated: NDArray[np.bool_] | Tensor,
    ) -> None:
        """One transition of every environment: [task, env, ...]; rewards are raw, in float64."""
        device = self.storage.device
        raw = torch.as_tensor(rewards, dtype=torch.float64).to(device)
        self.moments.add(raw)
        stored = self._ema(raw) if self.reward_normalization == "ema" else raw
        torch.maximum(self.maximum, stored.amax(1), out=self.maximum)
        first = self.added % self.slots
        torch.cat(
            [
                observations,
                actions,
                stored.float()[..., None],
                torch.as_tensor(next_observations).to(device),
                torch.as_tensor(terminated).to(device, torch.float32)[..., None],
            ],
            dim=2,
            out=self.storage[:, first : first + self.envs_per_task],
        )
        self.added += self.envs_per_task
        self._held.fill_(self.size)

    def _ema(self, rewards: Tensor) -> Tensor:
        """Sodhani et al. 2021's environment-side normalisation [task, env], once per step.

        A task's environments share one moving average.
        """
        self.ema_mean.lerp_(rewards.mean(1), self.ema_alpha)
        squares = (rewards - self.ema_mean[:, None]).square().mean(1)
        self.ema_variance.lerp_(squares, self.ema_alpha)
        return rewards / (self.ema_variance.sqrt() + EPSILON)[:, None]

    def sample(self, per_task: int, generator: torch.Generator) -> Batch:
        """`per_task` transitions of every task, slots drawn independently with replacement."""
        device = self.storage.device
        # float64: float32 has too few steps to reach every slot of a large buffer evenly.
        uniform = torch.rand(
            self.num_tasks, per_task, dtype=torch.float64, device=device, generator=generator
        )
        rows = (uniform * self._held).long() + self._first_slots
        flat = self.storage.view(-1, self.storage.shape[-1])
        picked = flat.index_select(0, rows.flatten()).view(self.num_tasks, per_task, -1)
        observations, actions, rewards, next_observations, terminated = picked.split(
            self._widths, dim=-1
        )
        rewards = rewards.squeeze(-1)
        if self.reward_normalization == "sample":
            rewards = (rewards / self.moments.sigma[:, None]).float()
        return Batch(observations, actions, rewards, next_observations, terminated.squeeze(-1))

    def observation_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [obs] of all stored observations, tasks pooled."""
        stored = self.storage[:, : self.size, : self._widths[0]].double().flatten(0, 1)
        return stored.mean(0).float(), stored.std(0, correction=0).float()

    def return_bound(self, gamma: float) -> Tensor:
        """Largest reward so far, as `sample` scales it, / (1 - gamma), [task].

        Kurin et al.'s target clip.
        """
        scale = self.moments.sigma if self.reward_normalization == "sample" else 1.0
        return (self.maximum / scale / (1.0 - gamma)).float()

    def state_dict(self) -> dict[str, Any]:
        return {
            "storage": self.storage[:, : self.size],  # a view: its slots change
            "added": self.added,
            "moments": self.moments.state_dict(),
            "maximum": self.maximum,
            "ema_mean": self.ema_mean,
            "ema_variance": self.ema_variance,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.added = state["added"]
        self._held.fill_(self.size)
        self.storage[:, : self.size] = state["storage"]
        self.moments.load_state_dict(state["moments"])
        self.maximum.copy_(state["maximum"])
        self.ema_mean.copy_(state["ema_mean"])
        self.ema_variance.copy_(state["ema_variance"])


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`; on the CPU, container limits count."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = psutil.virtual_memory().available
    limit, usage = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with contextlib.suppress(OSError, ValueError):  # no limit ("max"), or no cgroup v2
        free = min(free, int(limit.read_text()) - int(usage.read_text()))
    return int(free)
