"""Soft Actor-Critic losses (Haarnoja et al. 2018), one value per task.

Pure functions of networks and tensors: [..., sample, dim] -> loss [...]; with the task
dimension they give [task], without it (under vmap) one task's scalar. Noise is an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtrl.networks import sample_action

Network = Callable[..., Any]


def bellman_target(
    actor: Network,
    target_critic: Network,
    next_inputs: Tensor,
    rewards: Tensor,
    terminated: Tensor,
    noise: Tensor,
    temperature: Tensor,
    gamma: float,
) -> Tensor:
    """y = r + gamma (1 - terminated) (min_k Q'_k(s', a') - alpha log pi(a'|s')), a' ~ pi(.|s').

    rewards, terminated [..., sample]; noise [..., sample, action]; temperature broadcasts
    against [..., sample]. Truncated transitions bootstrap: only `terminated` stops it.
    """
    mean, log_std = actor(next_inputs)
    next_actions, log_prob = sample_action(mean, log_std, noise)
    value = target_critic(next_inputs, next_actions).amin(0) - temperature * log_prob
    return rewards + gamma * (1.0 - terminated) * value


def critic_loss(critic: Network, inputs: Tensor, actions: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples of (Q_1 - y)^2 + (Q_2 - y)^2."""
    return (critic(inputs, actions) - targets).square().sum(0).mean(-1)


def actor_loss(
    actor: Network, critic: Network, inputs: Tensor, noise: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean over samples of alpha log pi(a|s) - min_k Q_k(s, a); also the mean log-probability."""
    mean, log_std = actor(inputs)
    actions, log_prob = sample_action(mean, log_std, noise)
    value = critic(inputs, actions).amin(0)
    return (temperature * log_prob - value).mean(-1), log_prob.mean(-1)


def temperature_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """-alpha (log pi + target entropy), per task; log_alpha [task] or [1], log_prob [task]."""
    return -torch.exp(log_alpha) * (log_prob.detach() + target_entropy)
