"""Replay of RAW rewards, normalised per task when sampled (Kurin et al. 2022, App. on RL).

Storage is task-major [task, slot, field] on the learner's device, one row per transition, so
that sampling is one gather. A task's environments take turns: the successor of a slot is the one
`envs_per_task` further on. How rewards are normalised: mtrl.reward_scale. Neither adding nor
sampling waits for the device, and both can be captured: where to write is itself on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.config import Config
from mtrl.device.compiled import compiled
from mtrl.device.memory import free_memory
from mtrl.reward_scale import RewardScale, create_scale


class Batch(NamedTuple):
    """A sample of transitions, task-major, float32."""

    observations: Tensor
    """[task, sample, obs] raw observations."""
    actions: Tensor
    """[task, sample, action] in [-1, 1]."""
    rewards: Tensor
    """[task, sample] normalised rewards; of n steps: sum_k gamma^k r_k, up to the episode's end."""
    next_observations: Tensor
    """[task, sample, obs] true successors of the last of these steps, never a reset observation."""
    terminated: Tensor
    """[task, sample] 1.0 where the episode terminated there (never by truncation)."""
    discounts: Tensor
    """[task, sample] gamma^n for the n steps in `rewards`: what the successor's value counts."""


class ReplayBuffer:
    def __init__(
        self,
        num_tasks: int,
        capacity: int,
        observation_dim: int,
        action_dim: int,
        scale: RewardScale,
        device: torch.device,
        *,
        envs_per_task: int = 1,
        gamma: float = 0.99,
        n_step: int = 1,
        can_terminate: bool = False,
    ) -> None:
        """`capacity`: transitions in all, split evenly; rounded down to whole vector steps.

        n_step: rewards of the next steps of the same episode that a sample sums; fewer at the
        episode's end and at the newest transition. can_terminate: whether episodes may end before
        their horizon.
        Raises MemoryError, before allocating, where the device has too little free memory.
        """
        self.num_tasks, self.envs_per_task, self.scale = num_tasks, envs_per_task, scale
        self.gamma, self.n_step, self.can_terminate = gamma, n_step, can_terminate
        vector_steps = capacity // (num_tasks * envs_per_task)
        self.slots = vector_steps * envs_per_task
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
        self.ended = torch.zeros(num_tasks, self.slots, dtype=torch.bool, device=device)
        """[task, slot] the episode ended here, by termination or truncation."""
        self.maximum = torch.full((num_tasks,), -torch.inf, dtype=torch.float64, device=device)
        """Largest reward ever stored, per task: raw, or normalised by the moving average."""
        self._added = torch.zeros(1, dtype=torch.int64, device=device)
        self._ring = self.storage.view(num_tasks, vector_steps, -1)
        """The same memory [task, vector step, fields of every environment]; a ring."""
        self._ended_ring = self.ended.view(num_tasks, vector_steps, -1)
        self._first_slots = torch.arange(num_tasks, device=device)[:, None] * self.slots
        self._zero_temperature = torch.zeros(num_tasks, device=device)
        self._read: Callable[..., Batch] = self._read_eagerly

    @property
    def added(self) -> int:
        """Transitions ever added per task; waits for the device."""
        return int(self._added)

    @property
    def size(self) -> int:
        """Transitions held per task; waits for the device."""
        return min(self.added, self.slots)

    def add(
        self,
        observations: Tensor,
        actions: Tensor,
        rewards: NDArray[np.float64] | Tensor,
        next_observations: NDArray[np.float32] | Tensor,
        terminated: NDArray[np.bool_] | Tensor,
        ended: NDArray[np.bool_] | Tensor,
    ) -> None:
        """One transition of every environment: [task, env, ...]; rewards are raw, in float64.

        ended: the episode terminated or was truncated.
        """
        device = self.storage.device
        stored = self.scale.stored(torch.as_tensor(rewards, dtype=torch.float64).to(device))
        torch.maximum(self.maximum, stored.amax(1), out=self.maximum)
        rows = torch.cat(
            [
                observations,
                actions,
                stored.float()[..., None],
                torch.as_tensor(next_observations).to(device),
                torch.as_tensor(terminated).to(device, torch.float32)[..., None],
            ],
            dim=2,
        )
        here = (self._added // self.envs_per_task).remainder(self._ring.shape[1])
        self._ring.index_copy_(1, here, rows.flatten(1)[:, None])
        self._ended_ring.index_copy_(1, here, torch.as_tensor(ended).to(device)[:, None])
        self._added += self.envs_per_task

    def sample(
        self, per_task: int, generator: torch.Generator, temperature: Tensor | None = None
    ) -> Batch:
        """`per_task` transitions of every task, slots drawn independently with replacement.

        temperature [task]: of the policy, for reward scales of the soft return; None = 0.
        """
        device = self.storage.device
        # float64: float32 has too few steps to reach every slot of a large buffer evenly.
        uniform = torch.rand(
            self.num_tasks, per_task, dtype=torch.float64, device=device, generator=generator
        )
        return self._read(uniform, self._zero_temperature if temperature is None else temperature)

    def compile(self, per_task: int) -> None:
        """Compile sampling, on CUDA: n-step returns are a hundred small kernels.

        Changes no state. Raises what torch.compile raises; nothing is compiled then.
        """
        device = self.storage.device
        if device.type == "cuda":
            quick = compiled(self._read_eagerly, fullgraph=True)
            quick(
                torch.zeros(self.num_tasks, per_task, dtype=torch.float64, device=device),
                self._zero_temperature,
            )
            self._read = quick

    def _read_eagerly(self, uniform: Tensor, temperature: Tensor) -> Batch:
        """uniform [task, sample] in [0, 1): which of the transitions held."""
        slots = (uniform * self._added.clamp(max=self.slots)).long()
        first = self._rows(slots)
        observations, actions, rewards, next_observations, terminated = first.split(
            self._widths, dim=-1
        )
        rewards = rewards.squeeze(-1)
        discounts = torch.full_like(rewards, self.gamma)
        if self.n_step > 1:
            rewards, discounts, last = self._n_step(slots, rewards)
            *_, next_observations, terminated = self._rows(last).split(self._widths, dim=-1)
        divisor = self.scale.divisor(temperature)
        if divisor is not None:
            rewards = (rewards / divisor[:, None]).float()
        return Batch(
            observations, actions, rewards, next_observations, terminated.squeeze(-1), discounts
        )

    def _rows(self, slots: Tensor) -> Tensor:
        """[task, sample] -> stored rows [task, sample, field]."""
        flat = self.storage.view(-1, self.storage.shape[-1])
        rows = flat.index_select(0, (slots + self._first_slots).flatten())
        return rows.view(*slots.shape, -1)

    def _n_step(self, slots: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of up to n rewards from these slots on, gamma^n, and the slots of the last ones."""
        total, last = rewards.double(), slots
        discounts = torch.full_like(total, self.gamma)
        column = sum(self._widths[:2])
        # Vector steps from each slot to the newest transition, across the seam of the ring.
        envs = self.envs_per_task
        ahead = (self._added // envs - 1 - slots // envs).remainder(self.slots // envs)
        alive = torch.ones_like(slots, dtype=torch.bool)
        for step in range(1, self.n_step):
            alive = alive & ~self.ended.gather(1, last) & (step <= ahead)
            following = (last + envs).remainder(self.slots)
            last = torch.where(alive, following, last)
            reward = self.storage[..., column].gather(1, last).double()
            total = total + torch.where(alive, discounts * reward, 0.0)
            discounts = torch.where(alive, discounts * self.gamma, discounts)
        return total.float(), discounts.float(), last

    def observation_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [obs] of all stored observations, tasks pooled."""
        stored = self.storage[:, : self.size, : self._widths[0]].double().flatten(0, 1)
        return stored.mean(0).float(), stored.std(0, correction=0).float()

    def return_bound(self, temperature: Tensor | None = None) -> Tensor:
        """Largest reward so far, as `sample` scales it, / (1 - gamma), [task].

        Kurin et al.'s target clip. Where episodes can terminate, rewards below 0 end with them: the
        bound is then at least 0.
        """
        divisor = self.scale.divisor(self._zero_temperature if temperature is None else temperature)
        largest = self.maximum.clamp(min=0.0) if self.can_terminate else self.maximum
        largest = largest if divisor is None else largest / divisor
        return (largest / (1.0 - self.gamma)).float()

    def state_dict(self) -> dict[str, Any]:
        return {
            "storage": self.storage[:, : self.size],  # a view: its slots change
            "ended": self.ended[:, : self.size],
            "added": self.added,
            "maximum": self.maximum,
            "scale": self.scale.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._added.fill_(state["added"])
        self.storage[:, : self.size] = state["storage"]
        self.maximum.copy_(state["maximum"])
        self.scale.load_state_dict(state["scale"])
        self.ended[:, : self.size] = state["ended"]
        # A stopped run's episodes are not continued.
        newest = (self.added - self.envs_per_task) % self.slots
        self.ended[:, newest : newest + self.envs_per_task] = True


def create_replay(
    config: Config, observation_dim: int, action_dim: int, device: torch.device
) -> ReplayBuffer:
    """Empty, with the reward scale that the configuration names."""
    return ReplayBuffer(
        config.num_tasks,
        config.replay.capacity,
        observation_dim,
        action_dim,
        create_scale(config, action_dim, device),
        device,
        envs_per_task=config.train.envs_per_task,
        gamma=config.agent.gamma,
        n_step=config.agent.n_step,
        can_terminate=not config.episodes_end_together,
    )
