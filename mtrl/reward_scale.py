"""How rewards are normalised: what a task's raw rewards are divided by when they are sampled.

One class per way, chosen by `replay.reward_normalization`. All keep their state in tensors on the
learner's device that change in place, so that a captured update always reads today's scale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.config import Config

EPSILON = 1e-8  # under the root of sigma, as in Kurin et al.


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


class RewardScale:
    """`none`: raw rewards."""

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        self.moments = RewardMoments(num_tasks, device)
        """Of every raw reward ever added, evicted and warm-up transitions included."""

    def observe(
        self, rewards: NDArray[np.float64], terminated: NDArray[np.bool_], ended: NDArray[np.bool_]
    ) -> None:
        """Raw rewards and ends of one step of every environment [task, env], on the host."""

    def refresh(self) -> None:
        """Learning begins, or actor and critics have just been reset."""

    def stored(self, rewards: Tensor) -> Tensor:
        """What is stored for raw rewards [task, env], float64, on the device."""
        self.moments.add(rewards)
        return rewards

    def divisor(self, temperature: Tensor) -> Tensor | None:
        """What sampled rewards are divided by, [task] float64; None = nothing.

        temperature [task]: the entropy temperatures, for scales of the soft return.
        """
        return None

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def state_dict(self) -> dict[str, Any]:
        return {"moments": self.moments.state_dict(), **self._tensors()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moments.load_state_dict(state["moments"])
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])


class RewardSigma(RewardScale):
    """`sample`: the standard deviation of all raw rewards so far (Kurin et al. 2022, on RL).

    Float64, by Welford's update; Kurin et al.'s float32 E[r^2] - E[r]^2 can go negative.
    """

    def divisor(self, temperature: Tensor) -> Tensor:
        return self.moments.sigma


class MeanReward(RewardScale):
    """`mean_reward`: the mean raw reward of the task over that of the task with most (ARS, 2025).

    It is set when learning begins and at resets (`agent.resets`), and held in between. Of every
    reward so far (the paper's: of those in the replay). The paper's rewards are positive; of other
    ones the mean's magnitude counts, and a task that has had none yet keeps its rewards. Ours: no
    task's rewards are made more than 1,000 times larger.
    """

    SMALLEST = 1e-3

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        super().__init__(num_tasks, device)
        self.share = torch.ones(num_tasks, dtype=torch.float64, device=device)

    def refresh(self) -> None:
        mean = self.moments.mean.abs()
        share = (mean / mean.max()).clamp(min=self.SMALLEST)
        self.share.copy_(torch.where(mean > 0, share, 1.0))

    def divisor(self, temperature: Tensor) -> Tensor:
        return self.share


class MovingAverage(RewardScale):
    """`ema`: the environment-side normalisation of Sodhani et al. 2021, once per step, before
    rewards are stored. A task's environments share one moving average."""

    def __init__(self, num_tasks: int, device: torch.device, alpha: float = 0.001) -> None:
        super().__init__(num_tasks, device)
        self.alpha = alpha
        self.ema_mean = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        self.ema_variance = torch.ones(num_tasks, dtype=torch.float64, device=device)

    def stored(self, rewards: Tensor) -> Tensor:
        self.moments.add(rewards)
        self.ema_mean.lerp_(rewards.mean(1), self.alpha)
        squares = (rewards - self.ema_mean[:, None]).square().mean(1)
        self.ema_variance.lerp_(squares, self.alpha)
        return rewards / (self.ema_variance.sqrt() + EPSILON)[:, None]


class ReturnScale(RewardScale, ABC):
    """Scales made from the discounted returns of finished episodes.

    G_t = r_t + gamma G_{t+1} for every step of an episode, backward from 0 where it terminated and
    from mean(r) / (1 - gamma) where it was truncated (BRC: never from the critic, which would chase
    its own scale). Until a task's first episode has ended, its rewards count as 0.
    """

    def __init__(
        self, num_tasks: int, device: torch.device, gamma: float, support: float, horizon: int
    ) -> None:
        """support: normalised returns shall fit into [-support, support]. horizon: longest episode
        in steps."""
        super().__init__(num_tasks, device)
        self.gamma, self.support, self.horizon = gamma, support, horizon
        self.count, self.mean, self.squares, self.largest = (
            torch.zeros(num_tasks, dtype=torch.float64, device=device) for _ in range(4)
        )
        """Moments of G, and the largest |G| or |r| so far, per task. |r| matters before the episode
        with a task's first reward has ended: a sampled reward never exceeds the support."""
        self._rewards = np.empty((0, 0, 0))  # [step, task, env] of the episodes under way
        self._lengths = np.zeros((0, 0), dtype=np.int64)  # [task, env]

    def stored(self, rewards: Tensor) -> Tensor:
        torch.maximum(self.largest, rewards.abs().amax(1), out=self.largest)
        return super().stored(rewards)

    def observe(
        self, rewards: NDArray[np.float64], terminated: NDArray[np.bool_], ended: NDArray[np.bool_]
    ) -> None:
        if not self._lengths.size:
            self._rewards = np.empty((self.horizon, *rewards.shape))
            self._lengths = np.zeros(rewards.shape, dtype=np.int64)
        m, n = rewards.shape
        self._rewards[self._lengths, np.arange(m)[:, None], np.arange(n)] = rewards
        self._lengths += 1
        if not ended.any():
            return
        for length in np.unique(self._lengths[ended]).tolist():
            these = ended & (self._lengths == length)
            returns = discounted_returns(
                self._rewards[:length, these], terminated[these], self.gamma
            )
            tasks = np.nonzero(these)[0]  # of each of these episodes
            summaries = torch.zeros(4, m, dtype=torch.float64)
            for task in np.unique(tasks).tolist():
                summaries[:, task] = summary(torch.from_numpy(returns[:, tasks == task]))
            self._add(summaries.to(self.mean.device))
        self._lengths[ended] = 0

    def _add(self, summaries: Tensor) -> None:
        """Chan et al.'s update of every task's moments with a batch of returns, maybe empty.

        summaries [quantity, task]: as `summary` has them, or zeros.
        """
        new, mean, spread, largest = summaries
        total = (self.count + new).clamp(min=1)
        delta = (mean - self.mean) * (new > 0)
        self.squares += spread + delta.square() * self.count * new / total
        self.mean += delta * new / total
        self.count += new
        torch.maximum(self.largest, largest, out=self.largest)

    @abstractmethod
    def _measure(self, temperature: Tensor) -> Tensor:
        """[task] float64, from the moments of the returns; temperature [task]."""

    def divisor(self, temperature: Tensor) -> Tensor:
        measure = self._measure(temperature.double()).clamp(min=EPSILON)
        return torch.where(self.count > 0, measure, torch.inf)


class ReturnRange(ReturnScale):
    """`return_range`: (max |G| + alpha |target entropy| / (2 (1 - gamma))) / support, with the
    current temperature alpha: bounds of the soft return (BRC, as released in November 2025)."""

    def __init__(self, *args: Any, target_entropy: float) -> None:
        super().__init__(*args)
        self.target_entropy = target_entropy

    def _measure(self, temperature: Tensor) -> Tensor:
        bonus = temperature * abs(self.target_entropy) / (2.0 * (1.0 - self.gamma))
        return (self.largest + bonus) / self.support


class ReturnStd(ReturnScale):
    """`return_std`: max(standard deviation of G, max |G| / support).

    FastTD3 and FlashSAC take the discounted sum of past rewards for G, which also needs no finished
    episode; ours is the return that the critic learns.
    """

    def _measure(self, temperature: Tensor) -> Tensor:
        std = (self.squares / self.count.clamp(min=1)).sqrt()
        return torch.maximum(std, self.largest / self.support)


def summary(returns: Tensor) -> Tensor:
    """Number, mean, squared deviations and largest magnitude [4] of one task's returns."""
    mean = returns.mean()
    squares = (returns - mean).square().sum()
    number = torch.tensor(returns.numel(), dtype=torch.float64)
    return torch.stack([number, mean, squares, returns.abs().max()])


def discounted_returns(
    rewards: NDArray[np.float64], terminated: NDArray[np.bool_], gamma: float
) -> NDArray[np.float64]:
    """G of every step [step, episode] of episodes of equal length; terminated [episode]."""
    value = np.where(terminated, 0.0, rewards.mean(0) / (1.0 - gamma))
    returns = np.empty_like(rewards)
    for t in range(len(rewards) - 1, -1, -1):
        returns[t] = value = rewards[t] + gamma * value
    return returns


def create_scale(config: Config, action_dim: int, device: torch.device) -> RewardScale:
    """The scale that `replay.reward_normalization` names."""
    m, entropy = config.num_tasks, config.agent.target_entropy_scale * action_dim
    returns = (m, device, config.agent.gamma, config.critic.support, config.env.horizon)
    match config.replay.reward_normalization:
        case "none":
            return RewardScale(m, device)
        case "sample":
            return RewardSigma(m, device)
        case "mean_reward":
            return MeanReward(m, device)
        case "ema":
            return MovingAverage(m, device, config.replay.ema_alpha)
        case "return_range":
            return ReturnRange(*returns, target_entropy=entropy)
        case "return_std":
            return ReturnStd(*returns)
