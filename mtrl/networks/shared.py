"""One network for all tasks."""

from __future__ import annotations

from torch import nn

from mtrl.networks.bodies import MLP, Residual
from mtrl.networks.registry import register_network
from mtrl.networks.shape import Shape


@register_network("shared", any_body=True)
def shared_network(shape: Shape) -> nn.Module:
    """One network for all tasks, which see their code in the input."""
    return Residual(shape) if shape.body == "residual" else MLP(shape)
