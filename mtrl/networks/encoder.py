"""What actor and critics see of an observation: standardised, with a code of its task."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

TaskEncoding = Literal["one_hot", "learned", "none"]

OBSERVATION_CLIP = 5.0
STD_FLOOR = 1e-2  # coordinates that hardly move in the warm-up are not blown up


class InputEncoder(nn.Module):
    """Standardise, append the task's code: observations [task, ..., obs] -> [task, ..., input].

    Learned codes are the critic's, which puts its own in their place (`Critic`): here are copies,
    for the actor, which does not move them.
    """

    mean: Tensor
    std: Tensor
    codes: Tensor

    def __init__(
        self,
        num_tasks: int,
        observation_dim: int,
        *,
        observation_norm: bool = False,
        task_encoding: TaskEncoding = "one_hot",
        task_dim: int = 32,
    ) -> None:
        super().__init__()
        self.num_tasks, self.observation_norm = num_tasks, observation_norm
        width = {"one_hot": num_tasks, "learned": task_dim, "none": 0}[task_encoding]
        self.output_dim = observation_dim + width
        self.register_buffer("mean", torch.zeros(observation_dim))
        self.register_buffer("std", torch.ones(observation_dim))
        codes = (
            torch.eye(num_tasks) if task_encoding == "one_hot" else torch.zeros(num_tasks, width)
        )
        self.register_buffer("codes", codes, persistent=task_encoding == "learned")

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Fix the statistics [obs] used by observation_norm."""
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=STD_FLOOR))

    def forward(self, observations: Tensor) -> Tensor:
        if self.observation_norm:
            observations = (observations - self.mean) / self.std
            observations = observations.clamp(-OBSERVATION_CLIP, OBSERVATION_CLIP)
        m, width = self.codes.shape
        shape = (m, *[1] * (observations.dim() - 2), width)
        codes = self.codes.view(shape).expand(*observations.shape[:-1], width)
        return torch.cat([observations, codes], dim=-1)
