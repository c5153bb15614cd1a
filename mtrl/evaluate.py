"""Deterministic evaluation: success rates and returns per task over goals."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mtrl.agent import Agent
from mtrl.config import Config
from mtrl.envs.vector import IDLE, RESET, STEP, VectorEnv

Policy = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Evaluation(NamedTuple):
    success: NDArray[np.bool_]
    """[task, episode] solved at any step of the episode."""
    returns: NDArray[np.float64]
    """[task, episode] undiscounted raw return (up to the first success, if episodes stop there)."""

    @property
    def task_success(self) -> NDArray[np.float64]:
        return self.success.mean(1)

    @property
    def success_mean(self) -> float:
        return float(self.success.mean())


def goal_schedule(config: Config, episodes: int, first: int = 0) -> NDArray[np.int64]:
    """Goals [task, episode] in fixed order from `first` on, without repeats.

    At most num_goals episodes: policy and simulation are deterministic, so a repeat says nothing.
    """
    episodes = min(episodes, config.env.num_goals)
    goals = (first + np.arange(episodes)) % config.env.num_goals
    return np.tile(goals, (config.num_tasks, 1))


def agent_policy(agent: Agent) -> Policy:
    """The deterministic policy, tanh of the mean, on NumPy arrays [task, dim]."""

    def policy(observations: NDArray[np.float32]) -> NDArray[np.float32]:
        inputs = torch.tensor(observations, device=agent.device)
        actions: NDArray[np.float32] = agent.act(inputs, deterministic=True).cpu().numpy()
        return actions

    return policy


def evaluate(
    policy: Policy, envs: VectorEnv, goals: NDArray[np.int64], *, stop_at_success: bool = True
) -> Evaluation:
    """Run one episode per goal [task, episode]; tasks proceed through theirs independently."""
    m, episodes = goals.shape
    lanes = np.arange(m)
    success = np.zeros((m, episodes), dtype=np.bool_)
    returns = np.zeros((m, episodes))
    episode = np.zeros(m, dtype=np.int64)
    commands = np.full(m, RESET, dtype=np.uint8)
    actions = None
    while (commands != IDLE).any():
        current = np.minimum(episode, episodes - 1)
        next_goals = np.where(commands == RESET, goals[lanes, current], -1)
        envs.command(commands, next_goals, actions)
        outcome = envs.receive()
        stepped = commands == STEP
        returns[lanes, current] += np.where(stepped, outcome.rewards, 0.0)
        success[lanes, current] |= stepped & outcome.success
        ended = stepped & (outcome.terminated | outcome.truncated)
        if stop_at_success:
            ended |= stepped & outcome.success
        episode += ended
        commands = np.where(ended, RESET, STEP).astype(np.uint8)
        commands[episode >= episodes] = IDLE
        actions = policy(outcome.observations)
    return Evaluation(success, returns)
