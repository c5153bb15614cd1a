"""Bodies: what stands between the inputs and the outputs of actor and critics.

[..., input] -> [copies, ..., output], for any leading dimensions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mtrl.networks.layers import LayerNorm, Linear, TaskLinear, relu

BodyKind = Literal["mlp", "residual"]


def create_body(
    kind: BodyKind,
    input_dim: int,
    output_dim: int,
    *,
    width: int,
    depth: int,
    layer_norm: bool = False,
    bf16: bool = False,
    copies: int = 1,
    heads: int | None = None,
) -> nn.Module:
    """depth: hidden layers of an MLP, or residual blocks (which always normalise). heads: a last
    layer for each of so many tasks; None = one for all."""
    if kind == "residual":
        return Residual(copies, input_dim, output_dim, width, depth, bf16, heads)
    return MLP(copies, input_dim, output_dim, width, depth, layer_norm, bf16, heads)


Head = Linear | TaskLinear


def _head(copies: int, fan_in: int, fan_out: int, heads: int | None) -> Head:
    if heads is None:
        return Linear(fan_in, fan_out, copies=copies)
    return TaskLinear(heads, fan_in, fan_out, copies=copies)


def _outputs(head: Head, x: Tensor, leading: torch.Size) -> Tensor:
    """x [copies, row, width] -> [copies, *leading, outputs]."""
    if isinstance(head, TaskLinear):
        x = x.view(len(x), *leading, x.shape[-1])
    outputs: Tensor = head(x)
    return outputs.view(len(x), *leading, outputs.shape[-1])


def _rows(x: Tensor, copies: int) -> Tensor:
    """[..., input] -> [copies, row, input], without copying anything."""
    return x.reshape(1, -1, x.shape[-1]).expand(copies, -1, -1)


class Dense(nn.Module):
    """ReLU(LayerNorm(x W + b)), of which the norm and the ReLU may be left out."""

    def __init__(self, linear: Linear, norm: LayerNorm | None, *, relu: bool = True) -> None:
        super().__init__()
        self.linear, self.norm, self.relu = linear, norm, relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if self.norm is not None:
            x = self.norm(x)
        return relu(x, self.norm or self.linear) if self.relu else x


class MLP(nn.Module):
    """Independent ReLU networks on the same input. With layer_norm, hidden layers are
    relu(LayerNorm(x W) + b), without a gain: the next layer's weights can express it."""

    def __init__(
        self,
        copies: int,
        input_dim: int,
        output_dim: int,
        width: int,
        depth: int,
        layer_norm: bool,
        bf16: bool = False,
        heads: int | None = None,
    ) -> None:
        """bf16: products between hidden layers in bf16; observations and outputs need more."""
        super().__init__()
        self.copies = copies
        self.hidden = nn.ModuleList()
        for fan_in in (input_dim, *[width] * (depth - 1)):
            bf16_here = bf16 and len(self.hidden) > 0
            linear = Linear(fan_in, width, copies=copies, bias=not layer_norm, bf16=bf16_here)
            norm = LayerNorm(width, copies=copies, gain=False) if layer_norm else None
            self.hidden.append(Dense(linear, norm))
        self.head = _head(copies, width, output_dim, heads)

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
    """A first layer, residual blocks, a linear head: the networks of BRC (Nauman et al. 2025)."""

    def __init__(
        self,
        copies: int,
        input_dim: int,
        output_dim: int,
        width: int,
        depth: int,
        bf16: bool = False,
        heads: int | None = None,
    ) -> None:
        """depth: blocks. bf16: the blocks' products in bf16; observations and outputs need more."""
        super().__init__()
        self.copies = copies
        first = Linear(input_dim, width, copies=copies)
        self.first = Dense(first, LayerNorm(width, copies=copies))
        self.blocks = nn.ModuleList(Block(width, copies, bf16) for _ in range(depth))
        self.head = _head(copies, width, output_dim, heads)

    def forward(self, x: Tensor) -> Tensor:
        leading, x = x.shape[:-1], _rows(x, self.copies)
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return _outputs(self.head, x, leading)
