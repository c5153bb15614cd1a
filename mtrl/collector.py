"""Between the environments and the replay: actions go out, transitions come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.agent import Agent
from mtrl.device.cuda_graph import Captured
from mtrl.device.pinned import Transfer
from mtrl.envs.vector import Step
from mtrl.replay import ReplayBuffer


class Collector:
    """Acts with the agent and stores what comes of it; each a CUDA graph once `capture` is called.

    So all that acting and storing read and write on the device stays where it is.
    """

    def __init__(self, agent: Agent, replay: ReplayBuffer, observation_dim: int) -> None:
        self.agent, self.replay = agent, replay
        self.transfer = Transfer(agent.device)
        shape = agent.num_tasks, agent.envs_per_task
        self._observations = torch.zeros(*shape, observation_dim, device=agent.device)
        self._actions = torch.zeros(*shape, agent.action_dim, device=agent.device)
        """[task, env, ...] of the vector step under way."""
        self._arrived: list[Tensor] = []
        self._act: Callable[[], None] = self._act_eagerly
        self._store: Callable[[], None] = self._store_eagerly

    def capture(self, warn: Callable[[str], None]) -> None:
        """From now on; two graphs, because a checkpoint may come between storing and acting."""
        device = self.agent.device
        self._act = Captured(
            self._act_eagerly, [self.agent.exploration.generator], device, warn, name="acting"
        )
        self._store = Captured(self._store_eagerly, [], device, warn, name="storing")

    def begin(self, observations: NDArray[np.float32]) -> None:
        """With the first observations [lane, obs] of new episodes."""
        self._observations.copy_(torch.from_numpy(self._per_task(observations)))

    def act(self, *, random: bool) -> NDArray[np.float32]:
        """Actions [lane, action], valid until the next call; the policy's, or uniform ones."""
        if random:
            self._actions.copy_(self.agent.exploration.uniform())
        else:
            self._act()
        return self.transfer.to_host(self._actions.flatten(0, 1))

    def _act_eagerly(self) -> None:
        self._actions.copy_(self.agent.act(self._observations))

    def store(self, outcome: Step) -> None:
        """The transitions from the observations before, by the last actions, to this outcome."""
        rewards, successors, observations, terminated, ended = (
            self._per_task(outcome.rewards),
            self._per_task(outcome.next_observations),
            self._per_task(outcome.observations),
            self._per_task(outcome.terminated),
            self._per_task(outcome.ended),
        )
        self.replay.scale.observe(rewards, terminated, ended)
        self._arrived = self.transfer.to_device(
            rewards, successors, observations, terminated, ended
        )
        self._store()

    def _store_eagerly(self) -> None:
        rewards, successors, observations, terminated, ended = self._arrived
        self.replay.add(self._observations, self._actions, rewards, successors, terminated, ended)
        self._observations.copy_(observations)

    def _per_task(self, lanes: NDArray[Any]) -> NDArray[Any]:
        """[lane, ...] -> [task, env, ...]"""
        return lanes.reshape(*self._actions.shape[:2], *lanes.shape[1:])
