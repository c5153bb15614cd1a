"""Soft Actor-Critic losses (Haarnoja et al. 2018), one value per task.

Pure functions of networks and tensors: [..., sample, dim] -> loss [...]; with the task
dimension they give [task], without it (under vmap) one task's scalar. Noise is an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtrl.networks.actor import sample_action
from mtrl.networks.values import Value

Network = Callable[..., Any]


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
