"""Task gradients of a loss, by the road that the agent takes; and the oracle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mtrl.gradients.buffer import Buffer
from mtrl.gradients.combine import Direction, combine
from mtrl.gradients.general import general_gradients
from mtrl.gradients.layers import TaskGradients, layer_gradients
from mtrl.networks.layers import is_recorded, layers_of
from mtrl.smto import create


def layers(task_loss: Any, network: nn.Module, inputs: Any) -> Any:
    gradients = layer_gradients if is_recorded(network) else general_gradients
    return gradients(task_loss, network, *inputs)


def jacobian(task_loss: Any, network: nn.Module, inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """-> J [task, P], parameters flattened in the network's order; losses, auxiliary [task]."""
    found = layers(task_loss, network, inputs)
    return TaskGradients(network, found, Buffer()).jacobian(), found.losses, found.auxiliary


def combined_gradients(
    smto: Any, task_loss: Any, network: nn.Module, inputs: Any, **options: Any
) -> Direction:
    buffer = options.pop("buffer", None) or Buffer()
    return combine(smto, network, layers(task_loss, network, inputs), buffer=buffer, **options)


def separate_gradients(task_loss: Any, network: nn.Module, inputs: Any) -> list[list[Tensor]]:
    """[task][parameter]: one backward per task."""
    losses, _ = task_loss(network, *inputs)
    parameters = list(network.parameters())
    return [
        list(torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True))
        for loss in losses
    ]


def squared_error(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    loss = (network(x) - y).square().mean((0, 2, 3))
    return loss, loss


def check_task_gradients(network: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
    """A network of recorded layers, in float64, against one backward per task: its Jacobian and
    Gramian on what tasks share, and a weighted gradient."""
    assert is_recorded(network)
    m = len(inputs[0])
    separate = separate_gradients(squared_error, network, inputs)
    of_one_task = {
        id(p) for layer in layers_of(network) if layer.of_one_task for p in layer.parameters()
    }
    own = [id(p) in of_one_task for p in network.parameters()]
    rows = torch.stack(
        [
            torch.cat([g.flatten() for g, mine in zip(task, own, strict=True) if not mine])
            for task in separate
        ]
    )
    matrix, *_ = jacobian(squared_error, network, inputs)
    torch.testing.assert_close(matrix, rows, rtol=1e-9, atol=1e-9)

    weights = torch.rand(m) + 0.1
    for chunk_size in (None, 3):
        smto = create("fixed", m, weights=weights.tolist())
        found = combined_gradients(
            smto, squared_error, network, inputs, chunk_size=chunk_size, gramian=True
        )
        assert found.gramian is not None
        torch.testing.assert_close(found.gramian, rows @ rows.T, rtol=1e-9, atol=1e-9)
        w = found.weights
        assert w is not None
        per_parameter = list(zip(*separate, strict=True))
        for gradients, got, mine in zip(per_parameter, found.gradients, own, strict=True):
            # What one task alone uses gets its gradient times 1/m, whatever the weights.
            factors = torch.full_like(w, 1.0 / m) if mine else w
            expected = sum(f * g for f, g in zip(factors, gradients, strict=True))
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
