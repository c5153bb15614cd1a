"""Networks assembled from the recorded layers: task gradients against one backward per task."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from gradient_cases import check_task_gradients, combined_gradients, squared_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtrl.networks.layers import (
    LayerNorm,
    Linear,
    TaskLinear,
    TaskTable,
    is_recorded,
    layers_of,
    recording,
)
from mtrl.networks.shape import BodyKind
from mtrl.networks.shape import Shape as NetworkShape
from mtrl.networks.shared import shared_network
from mtrl.smto import create

IN, OUT, WIDTH = 3, 2, 4


@dataclasses.dataclass(frozen=True)
class Shape:
    tasks: int
    samples: int
    copies: int
    depth: int
    gain: bool
    bias: bool
    skip: bool
    shared: bool
    """One hidden layer, called `depth` times."""
    table: bool
    mixture: bool
    """Experts, weighted by coefficients of each task's own."""
    heads: bool


class Assembled(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        copies, m = shape.copies, shape.tasks
        self.table = TaskTable(m, 2, copies=copies) if shape.table else None
        width = IN + 2 * shape.table
        self.first = Linear(width, WIDTH, copies=copies, bias=shape.bias)
        hidden = 1 if shape.shared else shape.depth
        self.linears = nn.ModuleList(
            Linear(WIDTH, WIDTH, copies=copies, bias=shape.bias) for _ in range(hidden)
        )
        self.norms = nn.ModuleList(
            LayerNorm(WIDTH, copies=copies, gain=shape.gain, bias=shape.bias) for _ in range(hidden)
        )
        self.experts = nn.ModuleList(
            Linear(WIDTH, WIDTH, copies=copies) for _ in range(2 * shape.mixture)
        )
        self.coefficients = TaskLinear(m, WIDTH, 2, copies=copies) if shape.mixture else None
        self.head = (
            TaskLinear(m, WIDTH, OUT, copies=copies, bias=shape.bias)
            if shape.heads
            else Linear(WIDTH, OUT, copies=copies, bias=shape.bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[task, sample, in] -> [copies, task, sample, out]"""
        x = x.expand(self.shape.copies, *x.shape)
        if self.table is not None:
            x = torch.cat([x, self.table(x)], -1)
        x = torch.tanh(self.first(x))
        for index in range(self.shape.depth):
            layer = 0 if self.shape.shared else index
            y = torch.tanh(self.norms[layer](self.linears[layer](x)))
            x = x + y if self.shape.skip else y
        if self.coefficients is not None:
            weights = torch.softmax(self.coefficients(x), -1)
            x = sum(weights[..., k : k + 1] * expert(x) for k, expert in enumerate(self.experts))
        outputs: Tensor = self.head(x)
        return outputs


shapes = st.builds(
    Shape,
    tasks=st.integers(1, 3),
    samples=st.integers(1, 3),
    copies=st.integers(1, 2),
    depth=st.integers(0, 3),
    **{
        name: st.booleans()
        for name in ("gain", "bias", "skip", "shared", "table", "mixture", "heads")
    },
)


@given(shape=shapes, seed=st.integers(0, 2**31))
@settings(max_examples=60)
def test_task_gradients_are_those_of_separate_backwards(shape: Shape, seed: int) -> None:
    if shape.shared and shape.depth == 0:
        shape = dataclasses.replace(shape, depth=1)
    torch.manual_seed(seed)
    network = Assembled(shape).double()
    with torch.no_grad():  # zero biases would hide a gradient in the wrong place
        for parameter in network.parameters():
            parameter.normal_()
    m = shape.tasks
    inputs = torch.randn(m, shape.samples, IN).double(), torch.randn(m, shape.samples, OUT).double()
    check_task_gradients(network, inputs)


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_bodies_are_made_of_recorded_layers(kind: BodyKind) -> None:
    wanted = NetworkShape(("task",), IN, OUT, width=WIDTH, depth=2, layer_norm=True, copies=2)
    body = shared_network(dataclasses.replace(wanted, body=kind))
    assert is_recorded(body)
    x = torch.randn(3, 5, IN)
    expected = body(x)
    with recording(body) as records:
        torch.testing.assert_close(body(x), expected)
    assert [record.layer for record in records] == layers_of(body)
    assert not any(layer.is_recorded for layer in layers_of(body))


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_bf16_products_are_those_of_a_plain_backward(kind: BodyKind) -> None:
    torch.manual_seed(0)
    wanted = NetworkShape(("task",), IN, OUT, width=32, depth=3, body=kind, bf16=True)
    body = shared_network(wanted)
    inputs = torch.randn(3, 20, IN), torch.randn(3, 20, OUT)
    parameters = list(body.parameters())
    plain = torch.autograd.grad(squared_error(body, *inputs)[0].mean(), parameters)
    combined = combined_gradients(create("unitary", 3), squared_error, body, inputs)
    for one, two in zip(plain, combined.gradients, strict=True):
        assert two.dtype == torch.float32
        assert (one - two).norm() <= 1e-2 * one.norm()  # two roundings of 2^-9 each
