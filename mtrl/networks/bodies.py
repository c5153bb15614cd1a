"""Bodies: what stands between the inputs and the outputs of actor and critics.

[..., input] -> [copies, ..., output], for any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtrl.networks.layers import LayerNorm, Linear, TaskLinear
from mtrl.networks.shape import Dense, Shape


def _outputs(head: Linear | TaskLinear, x: Tensor, leading: torch.Size) -> Tensor:
    """x [copies, row, width] -> [copies, *leading, outputs]."""
    if isinstance(head, TaskLinear):
        x = x.view(len(x), *leading, x.shape[-1])
    outputs: Tensor = head(x)
    return outputs.view(len(x), *leading, outputs.shape[-1])


def _rows(x: Tensor, copies: int) -> Tensor:
    """[..., input] -> [copies, row, input], without copying anything."""
    return x.reshape(1, -1, x.shape[-1]).expand(copies, -1, -1)


class MLP(nn.Module):
    """Independent ReLU networks on the same input. With layer_norm, hidden layers are
    relu(LayerNorm(x W) + b), without a gain: the next layer's weights can express it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.copies = shape.copies
        self.hidden = nn.ModuleList(shape.trunk(shape.inputs, shape.depth))
        self.head = shape.head(shape.width)

    def forward(self, x: Tensor) -> Tensor:
        leading, x = x.shape[:-1], _rows(x, self.copies)
        for layer in self.hidden:
            x = layer(x)
        return _outputs(self.head, x, leading)


class Block(nn.Module):
    """x + Dense(Dense(x)), without a ReLU at the end."""

    def __init__(self, width: int, copies: int, bf16: bool) -> None:
        super().__init__()
        first, second = (Linear(width, width, copies=copies, bf16=bf16) for _ in range(2))
        self.first = Dense(first, LayerNorm(width, copies=copies))
        self.second = Dense(second, LayerNorm(width, copies=copies), relu=False)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.second(self.first(x))
        return x + change


class Residual(nn.Module):
    """A first layer, `depth` residual blocks, which always normalise, and a linear head: the
    networks of BRC (Nauman et al. 2025)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.copies = copies = shape.copies
        first = Linear(shape.inputs, shape.width, copies=copies)
        self.first = Dense(first, LayerNorm(shape.width, copies=copies))
        blocks = (Block(shape.width, copies, shape.bf16) for _ in range(shape.depth))
        self.blocks = nn.ModuleList(blocks)
        self.head = shape.head(shape.width)

    def forward(self, x: Tensor) -> Tensor:
        leading, x = x.shape[:-1], _rows(x, self.copies)
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return _outputs(self.head, x, leading)
