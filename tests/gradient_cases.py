"""Task gradients of a loss, by the road that the agent takes; and the oracle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mtrl.gradients.buffer import Buffer
from mtrl.gradients.combine import Direction, combine
from mtrl.gradients.general import general_gradients
from mtrl.gradients.layers import TaskGradients, layer_gradients
from mtrl.networks.layers import is_recorded


def layers(task_loss: Any, network: nn.Module, inputs: Any) -> Any:
    gradients = layer_gradients if is_recorded(network) else general_gradients
    return gradients(task_loss, network, *inputs)


def jacobian(task_loss: Any, network: nn.Module, inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """-> J [task, P], parameters flattened in the network's order; losses, auxiliary [task]."""
    found = layers(task_loss, network, inputs)
    return TaskGradients(network, found).jacobian(Buffer()), found.losses, found.auxiliary


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
