"""The policy: a Gaussian whose samples a tanh takes into [-1, 1]."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Actor(nn.Module):
    """Tanh-Gaussian policy: inputs [..., input] -> mean, log_std [..., action] before the tanh."""

    def __init__(
        self,
        body: nn.Module,
        log_std_min: float = -20.0,
        log_std_max: float = 2.0,
        log_std_bound: Literal["clamp", "tanh"] = "clamp",
    ) -> None:
        """body: [..., input] -> [1, ..., 2 action]."""
        super().__init__()
        self.body = body
        self.log_std_min, self.log_std_max = log_std_min, log_std_max
        self.log_std_bound = log_std_bound

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.body(inputs)[0].chunk(2, dim=-1)
        low, high = self.log_std_min, self.log_std_max
        if self.log_std_bound == "clamp":
            return mean, log_std.clamp(low, high)
        return mean, low + 0.5 * (high - low) * (torch.tanh(log_std) + 1.0)


def sample_action(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reparameterised tanh-Gaussian sample and its log-probability [...].

    log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)) is exact where 1 - tanh^2 rounds to 0
    (Kurin et al. use log(relu(1 - a^2) + 1e-6)).
    """
    u = torch.addcmul(mean, log_std.exp(), noise)
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
    squash = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
    return torch.tanh(u), (gaussian - squash).sum(-1)
