"""Recorded layers: the primitives that networks are made of.

The tasks own disjoint rows of a batch, so one ordinary backward to the layers' outputs gives every
task's gradient: a layer knows what its parameters' gradients are from what it saw and what came
back. A network is any `nn.Module` that is made of these; residual connections, concatenations and
mixtures are plain Python in between, and a layer may be called more than once.

Shapes: [copies, ..., dim]. Copies are independent networks side by side, computed as one batched
product (an ensemble of critics). For task gradients the dimension behind them is the task.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Term(NamedTuple):
    """The task gradients of one parameter, [copies, task, in, out]: x^T d, or d itself."""

    x: Tensor | None
    """[copies, task, sample, in]"""
    d: Tensor
    """[copies, task, sample, out]; without x [copies, task, 1, out]"""
    bf16: bool = False
    """Whether the layer multiplies in bf16. A weighted gradient does so too, as in a plain
    backward; the task gradients themselves do not."""


class Record(NamedTuple):
    """One call of a layer."""

    layer: Layer
    seen: Tensor
    """[copies, ..., in]"""
    output: Tensor
    """[copies, ..., out]"""


class Layer(nn.Module, ABC):
    """Base class. `forward` ends with `return self._record(seen, output)`."""

    of_one_task = False
    """Whether each parameter is [copies, task, ...], a part of its own for every task."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[Record] | None = None

    @property
    def is_recorded(self) -> bool:
        return self._records is not None

    def _record(self, seen: Tensor, output: Tensor) -> Tensor:
        if self._records is not None:
            self._records.append(Record(self, seen, output))
        return output

    @abstractmethod
    def terms(self, seen: Tensor, gradient: Tensor) -> tuple[Term, ...]:
        """Of each parameter, in their order, from what the layer saw [copies, task, sample, in] and
        the loss gradient at its output [copies, task, sample, out]."""


def layers_of(network: nn.Module) -> list[Layer]:
    """In the order of the network's parameters."""
    return [module for module in network.modules() if isinstance(module, Layer)]


def is_recorded(network: nn.Module) -> bool:
    """Whether all its parameters are recorded layers'."""
    of_layers = {id(p) for layer in layers_of(network) for p in layer.parameters()}
    return all(id(p) in of_layers for p in network.parameters())


@contextlib.contextmanager
def recording(network: nn.Module) -> Iterator[list[Record]]:
    """Collect every call of the network's layers."""
    layers = layers_of(network)
    records: list[Record] = []
    for layer in layers:
        layer._records = records
    try:
        yield records
    finally:
        for layer in layers:
            layer._records = None


def relu(x: Tensor, layer: Layer) -> Tensor:
    """ReLU of this layer's output: in place, unless a gradient will be asked for there."""
    return F.relu(x, inplace=not layer.is_recorded)


def _xavier(*shape: int) -> nn.Parameter:
    """Xavier-uniform weights [..., fan_in, fan_out] (Kurin et al. 2022)."""
    bound = math.sqrt(6.0 / (shape[-2] + shape[-1]))
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def _sum(gradient: Tensor) -> Term:
    """Of a parameter that is added to every row."""
    return Term(None, gradient.sum(2, keepdim=True))


def _beside(parameter: Tensor, x: Tensor) -> Tensor:
    """[copies, 1, dim] with as many dimensions as x [copies, ..., dim]."""
    return parameter.view(len(parameter), *[1] * (x.dim() - 2), parameter.shape[-1])


class Linear(Layer):
    """x W + b of each copy."""

    def __init__(
        self, fan_in: int, fan_out: int, *, copies: int = 1, bias: bool = True, bf16: bool = False
    ) -> None:
        """bf16: the product in bf16."""
        super().__init__()
        self.bf16 = bf16
        self.weight = _xavier(copies, fan_in, fan_out)
        self.bias = nn.Parameter(torch.zeros(copies, 1, fan_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        leading = x.shape[1:-1]
        rows, weight = x if x.dim() == 3 else x.flatten(1, -2), self.weight
        if self.bf16:
            output = torch.bmm(rows.bfloat16(), weight.bfloat16()).float()
        else:
            output = torch.bmm(rows, weight)
        if self.bias is not None:
            output = output + self.bias
        return self._record(x, output if x.dim() == 3 else output.unflatten(1, leading))

    def terms(self, seen: Tensor, gradient: Tensor) -> tuple[Term, ...]:
        product = Term(seen, gradient, self.bf16)
        return (product,) if self.bias is None else (product, _sum(gradient))


class LayerNorm(Layer):
    """Standardised over the last dimension, times a gain and plus a bias, if it has them."""

    unit: Tensor
    zero: Tensor

    def __init__(
        self, width: int, *, copies: int = 1, gain: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(copies, 1, width)) if gain else None
        self.bias = nn.Parameter(torch.zeros(copies, 1, width)) if bias else None
        # Constants: with a (unit) gain given, PyTorch takes its faster CPU kernel.
        self.register_buffer("unit", torch.ones(width), persistent=False)
        self.register_buffer("zero", torch.zeros(width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        output = normal = F.layer_norm(x, x.shape[-1:], self.unit, self.zero)
        if self.gain is not None:
            output = output * _beside(self.gain, x)
        if self.bias is not None:
            output = output + _beside(self.bias, x)
        return self._record(normal, output)

    def terms(self, seen: Tensor, gradient: Tensor) -> tuple[Term, ...]:
        of_gain = () if self.gain is None else (_sum(gradient * seen),)
        return of_gain if self.bias is None else (*of_gain, _sum(gradient))


class TaskTable(Layer):
    """One learned row per task: an embedding."""

    of_one_task = True

    def __init__(self, num_tasks: int, width: int, *, copies: int = 1) -> None:
        super().__init__()
        rows = torch.randn(copies, num_tasks, 1, width)
        self.rows = nn.Parameter(rows / math.sqrt(width))

    def forward(self, x: Tensor | None = None) -> Tensor:
        """[copies, task, ..., any] -> the tasks' rows for each of its entries,
        [copies, task, ..., width]. Without x: each row once, [copies, task, 1, width]."""
        rows = self.rows.clone()  # a view that is made without gradients confuses counters of flops
        if x is None:
            return self._record(self.rows, rows)
        copies, m, _, width = rows.shape
        rows = self._record(x, rows.view(copies, m, *[1] * (x.dim() - 3), width))
        return rows.expand(*rows.shape[:2], *x.shape[2:-1], width)

    def terms(self, seen: Tensor, gradient: Tensor) -> tuple[Term, ...]:
        return (_sum(gradient),)


class TaskLinear(Layer):
    """x W_t + b_t: weights of its own for each task (heads, or the coefficients of a mixture)."""

    of_one_task = True

    def __init__(
        self, num_tasks: int, fan_in: int, fan_out: int, *, copies: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = _xavier(copies, num_tasks, fan_in, fan_out)
        self.bias = nn.Parameter(torch.zeros(copies, num_tasks, 1, fan_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[copies, task, ..., in] -> [copies, task, ..., out]"""
        output = x.reshape(*x.shape[:2], -1, x.shape[-1]) @ self.weight
        if self.bias is not None:
            output = output + self.bias
        return self._record(x, output.reshape(*x.shape[:-1], output.shape[-1]))

    def terms(self, seen: Tensor, gradient: Tensor) -> tuple[Term, ...]:
        product = Term(seen, gradient)
        return (product,) if self.bias is None else (product, _sum(gradient))


class Mixture(Layer):
    """Sets of one parameter, mixed by each task's own coefficients: sum_k w_tk W_k."""

    def __init__(self, sets: int, fan_in: int, fan_out: int, *, copies: int = 1) -> None:
        super().__init__()
        self.sets = _xavier(copies, sets, fan_in, fan_out)

    def forward(self, coefficients: Tensor) -> Tensor:
        """[copies, task, 1, set] -> [copies, task, in, out]"""
        mixed = torch.bmm(coefficients.squeeze(2), self.sets.flatten(2))
        output = self._record(coefficients, mixed[:, :, None])
        return output.view(*mixed.shape[:2], *self.sets.shape[2:])

    def terms(self, seen: Tensor, gradient: Tensor) -> tuple[Term, ...]:
        return (Term(seen, gradient),)
