"""The critics: independent networks side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtrl.networks.layers import TaskTable


class Critic(nn.Module):
    """Independent Q functions: inputs [..., input], actions [..., action] -> [member, ..., output],
    without the last dimension where `outputs` is 1."""

    def __init__(self, body: nn.Module, outputs: int = 1, table: TaskTable | None = None) -> None:
        """body: [..., input + action] -> [member, ..., outputs]. table: learned task codes, which
        take the place of those at the end of inputs [task, ..., input]."""
        super().__init__()
        self.table, self.body, self.outputs = table, body, outputs

    def forward(self, inputs: Tensor, actions: Tensor) -> Tensor:
        if self.table is not None:
            codes = F.normalize(self.table(inputs[None])[0], dim=-1)
            inputs = torch.cat([inputs[..., : -codes.shape[-1]], codes], dim=-1)
        out: Tensor = self.body(torch.cat([inputs, actions], dim=-1))
        return out.squeeze(-1) if self.outputs == 1 else out


@torch.no_grad()
def move_target(target: nn.Module, critic: nn.Module, tau: float) -> None:
    """target <- (1 - tau) target + tau critic"""
    torch._foreach_lerp_(list(target.parameters()), list(critic.parameters()), tau)
