"""Soft Actor-Critic losses (Haarnoja et al. 2018), one value per task.

Pure functions of networks and tensors: [..., sample, dim] -> loss [...]; with the task
dimension they give [task], without it (under vmap) one task's scalar. Noise is an argument.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtrl.networks.actor import sample_action

Network = Callable[..., Any]


class Value(ABC):
    """What the critics' outputs [member, ...] mean, and what they learn."""

    outputs = 1
    """Of one member, for one state and action."""
    per_task_head = False
    """Whether the last layer has weights of its own for every task."""

    @abstractmethod
    def value(self, outputs: Tensor) -> Tensor:
        """Members' outputs [member, ...] -> one value [...]."""

    @abstractmethod
    def target(
        self,
        outputs: Tensor,
        rewards: Tensor,
        discounts: Tensor,
        bonus: Tensor,
        bound: Tensor | None = None,
    ) -> Tensor:
        """y from the outputs for the successors; bound: its upper clip."""

    @abstractmethod
    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """[...], summed over members."""

    def summary(self, loss: Tensor, target: Tensor) -> Tensor:
        """What `follow` wants to know of a batch, [task, ...], from loss [task] and targets."""
        return loss

    def follow(self, summary: Tensor, critics: Iterable[nn.Module]) -> bool:
        """After a step of the critics: move what depends on the targets; -> whether any does."""
        return False

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that change in place."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


class ScalarValue(Value):
    """Critics that give one number: y is a number, the loss a squared error."""

    def __init__(self, ensemble: Literal["min", "mean"] = "min") -> None:
        """ensemble: the smallest of the members' values (Fujimoto et al. 2018), or their mean."""
        self.ensemble = ensemble

    def value(self, outputs: Tensor) -> Tensor:
        """Members' outputs [member, ...] -> one value [...]."""
        return outputs.amin(0) if self.ensemble == "min" else outputs.mean(0)

    def target(
        self,
        outputs: Tensor,
        rewards: Tensor,
        discounts: Tensor,
        bonus: Tensor,
        bound: Tensor | None = None,
    ) -> Tensor:
        """y = rewards + discounts (value - bonus), [...]; bound: its upper clip."""
        y = rewards + discounts * (self.value(outputs) - bonus)
        return y if bound is None else torch.minimum(y, bound)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """sum_k (Q_k - y)^2, [...]."""
        return (outputs - target).square().sum(0)


class CategoricalValue(Value):
    """Critics that give a distribution of the return over fixed atoms (Bellemare et al. 2017, C51):
    logits [member, ..., bin]; the loss is the cross-entropy to the projected target.

    The target is projected onto the atoms by two-hot weights: mass between two atoms goes to both
    in proportion, so that its mean is kept. As a sum over all pairs of atoms, which is
    deterministic on every device where scattering would not be.
    """

    def __init__(
        self,
        bins: int,
        support: float,
        device: torch.device,
        ensemble: Literal["min", "mean"] = "mean",
    ) -> None:
        """bins: atoms, evenly spaced in [-support, support].

        ensemble: the target's distribution is that of the member with the smallest mean (FastTD3),
        or the mean of all (BRC).
        """
        self.outputs, self.support, self.ensemble = bins, support, ensemble
        self.atoms = torch.linspace(-support, support, bins, device=device)
        self.index = torch.arange(bins, device=device, dtype=torch.float32)
        self.width = 2.0 * support / (bins - 1)

    def value(self, outputs: Tensor) -> Tensor:
        """Logits [member, ..., bin] -> one expected value [...]."""
        means = torch.softmax(outputs, dim=-1) @ self.atoms
        return means.amin(0) if self.ensemble == "min" else means.mean(0)

    def target(
        self,
        outputs: Tensor,
        rewards: Tensor,
        discounts: Tensor,
        bonus: Tensor,
        bound: Tensor | None = None,
    ) -> Tensor:
        """Probabilities [..., bin] of rewards + discounts (Z - bonus), Z the members' return."""
        members = torch.softmax(outputs, dim=-1)
        if self.ensemble == "min":
            lowest = (members @ self.atoms).argmin(0, keepdim=True)[..., None]
            chosen = lowest.expand(1, *members.shape[1:])
            probabilities = members.gather(0, chosen).squeeze(0)
        else:
            probabilities = members.mean(0)
        moved = (rewards - discounts * bonus)[..., None] + discounts[..., None] * self.atoms
        if bound is not None:
            moved = torch.minimum(moved, bound[..., None])
        position = ((moved + self.support) / self.width).clamp(0.0, float(self.outputs - 1))
        two_hot = (1.0 - (position[..., None] - self.index).abs()).clamp(min=0.0)
        return (probabilities[..., None] * two_hot).sum(-2)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """sum_k H(target, softmax(logits_k)), [...]."""
        return -(target * torch.log_softmax(outputs, dim=-1)).sum(-1).sum(0)


def bellman_target(
    actor: Network,
    target_critic: Network,
    value: Value,
    next_inputs: Tensor,
    rewards: Tensor,
    discounts: Tensor,
    noise: Tensor,
    temperature: Tensor,
    bound: Tensor | None = None,
) -> Tensor:
    """y = r + discount (Q'(s', a') - alpha log pi(a'|s')), a' ~ pi(.|s'), as `value` has it.

    rewards, discounts [..., sample]; noise [..., sample, action]; temperature and bound (the upper
    clip) broadcast against [..., sample]. The discount is gamma^n, and 0 where the episode
    terminated within these n steps; truncated transitions bootstrap.
    """
    mean, log_std = actor(next_inputs)
    next_actions, log_prob = sample_action(mean, log_std, noise)
    outputs = target_critic(next_inputs, next_actions)
    return value.target(outputs, rewards, discounts, temperature * log_prob, bound)


def critic_loss(
    critic: Network, value: Value, inputs: Tensor, actions: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean over samples, summed over the critics: (Q_k - y)^2, or the cross-entropy to y; and the
    value's summary of the batch."""
    loss = value.loss(critic(inputs, actions), targets).mean(-1)
    return loss, value.summary(loss, targets)


def actor_loss(
    actor: Network,
    critic: Network,
    value: Value,
    inputs: Tensor,
    noise: Tensor,
    temperature: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean over samples of alpha log pi(a|s) - Q(s, a); also the mean log-probability."""
    mean, log_std = actor(inputs)
    actions, log_prob = sample_action(mean, log_std, noise)
    q = value.value(critic(inputs, actions))
    return (temperature * log_prob - q).mean(-1), log_prob.mean(-1)


def temperature_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """-alpha (log pi + target entropy), per task; log_alpha [task] or [1], log_prob [task]."""
    return -torch.exp(log_alpha) * (log_prob.detach() + target_entropy)
