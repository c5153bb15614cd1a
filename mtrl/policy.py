"""The policy's networks: all of an agent that acting needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.config import Config
from mtrl.networks.actor import Actor
from mtrl.networks.bodies import create_body
from mtrl.networks.encoder import InputEncoder


def make_encoder(config: Config, observation_dim: int) -> InputEncoder:
    return InputEncoder(
        config.num_tasks,
        observation_dim,
        observation_norm=config.network.observation_norm,
        task_encoding=config.network.task_encoding,
        task_dim=config.network.task_dim,
    )


def make_actor(config: Config, input_dim: int, action_dim: int) -> Actor:
    net = config.network
    body = create_body(
        net.body,
        input_dim,
        2 * action_dim,
        width=net.width,
        depth=net.depth,
        layer_norm=net.layer_norm,
        bf16=config.learner.precision == "bf16",
    )
    return Actor(body, net.log_std_min, net.log_std_max, net.log_std_bound)


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
    """Observation and action dimensions of an agent's state, which has `encoder` and `actor`."""
    *_, last_bias = (value for name, value in state["actor"].items() if "bias" in name)
    return len(state["encoder"]["mean"]), last_bias.shape[-1] // 2
