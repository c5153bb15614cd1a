"""The policy's networks: all of an agent that acting needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.config import Config
from mtrl.networks.actor import Actor
from mtrl.networks.encoder import InputEncoder
from mtrl.networks.make import make_actor, make_encoder


class DeterministicPolicy(nn.Module):
    """tanh of the mean: observations [task, ..., obs] -> actions [task, ..., action] in [-1, 1]."""

    def __init__(self, encoder: InputEncoder, actor: Actor) -> None:
        super().__init__()
        self.encoder, self.actor = encoder, actor

    def forward(self, observations: Tensor) -> Tensor:
        mean, _ = self.actor(self.encoder(observations))
        return torch.tanh(mean)


def make_policy(config: Config, observation_dim: int, action_dim: int) -> DeterministicPolicy:
    encoder = make_encoder(config, observation_dim)
    return DeterministicPolicy(encoder, make_actor(config, encoder.output_dim, action_dim))


def stored_dimensions(state: Mapping[str, Any]) -> tuple[int, int]:
    """Observation and action dimensions of an agent's state."""
    return len(state["encoder"]["mean"]), state["action_dim"]
