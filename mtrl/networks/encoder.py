"""What actor and critics see of an observation: standardised, with the task id."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

OBSERVATION_CLIP = 5.0
DEVIATION_FLOOR = 1e-2  # coordinates that hardly move in the warm-up are not blown up


class InputEncoder(nn.Module):
    """Standardise, add the task id: observations [task, ..., obs] -> inputs [task, ..., input]."""

    mean: Tensor
    deviation: Tensor
    identity: Tensor

    def __init__(
        self,
        num_tasks: int,
        observation_dim: int,
        *,
        observation_norm: bool = False,
        task_encoding: Literal["one_hot", "none"] = "one_hot",
    ) -> None:
        super().__init__()
        self.num_tasks, self.observation_norm = num_tasks, observation_norm
        self.task_encoding = task_encoding
        self.output_dim = observation_dim + (num_tasks if task_encoding == "one_hot" else 0)
        self.register_buffer("mean", torch.zeros(observation_dim))
        self.register_buffer("deviation", torch.ones(observation_dim))
        self.register_buffer("identity", torch.eye(num_tasks), persistent=False)

    def set_statistics(self, mean: Tensor, deviation: Tensor) -> None:
        """Fix the statistics [obs] used by observation_norm."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.clamp(min=DEVIATION_FLOOR))

    def forward(self, observations: Tensor) -> Tensor:
        if self.observation_norm:
            observations = (observations - self.mean) / self.deviation
            observations = observations.clamp(-OBSERVATION_CLIP, OBSERVATION_CLIP)
        if self.task_encoding == "none":
            return observations
        m = len(self.identity)
        shape = (m, *[1] * (observations.dim() - 2), m)
        one_hot = self.identity.view(shape).expand(*observations.shape[:-1], m)
        return torch.cat([observations, one_hot], dim=-1)
