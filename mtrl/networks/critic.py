"""The critics: independent networks side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtrl.config import Config
from mtrl.networks.bodies import create_body


class Critic(nn.Module):
    """Independent Q functions: inputs [..., input], actions [..., action] -> [member, ..., output],
    without the last dimension where `outputs` is 1."""

    def __init__(self, body: nn.Module, outputs: int = 1) -> None:
        """body: [..., input + action] -> [member, ..., outputs]."""
        super().__init__()
        self.body, self.outputs = body, outputs

    def forward(self, inputs: Tensor, actions: Tensor) -> Tensor:
        out: Tensor = self.body(torch.cat([inputs, actions], dim=-1))
        return out.squeeze(-1) if self.outputs == 1 else out


def make_critic(config: Config, input_dim: int, outputs: int) -> Critic:
    net, critic = config.network, config.critic
    body = create_body(
        critic.body or net.body,
        input_dim,
        outputs,
        width=critic.width or net.width,
        depth=critic.depth or net.depth,
        layer_norm=net.layer_norm,
        bf16=config.learner.precision == "bf16",
        copies=critic.members,
    )
    return Critic(body, outputs)


@torch.no_grad()
def move_target(target: nn.Module, critic: nn.Module, tau: float) -> None:
    """target <- (1 - tau) target + tau critic"""
    torch._foreach_lerp_(list(target.parameters()), list(critic.parameters()), tau)
