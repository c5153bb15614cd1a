"""From a per-task loss to one direction, computing only what the SMTO asks for.

Tasks own disjoint rows of the batch, so all task gradients come out of one batched backward
(vmap over grad), at about the cost of the backward of their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vjp, vmap

from mtrl.smto.base import SMTO, gram_matrix

TaskLoss = Callable[..., tuple[Tensor, Tensor]]
"""(network, *inputs) -> (loss, auxiliary). With inputs [task, ...] both are [task]; without the
task dimension (under vmap) both are scalars."""


class Combined(NamedTuple):
    losses: Tensor
    """[task] detached."""
    auxiliary: Tensor
    """[task] detached."""
    gradients: tuple[Tensor, ...]
    """The SMTO's direction, shaped like the network's parameters."""
    weights: Tensor | None
    """[task] the SMTO's weights, where it has weights."""


def combined_gradients(
    smto: SMTO, task_loss: TaskLoss, network: nn.Module, inputs: Sequence[Tensor]
) -> Combined:
    """Per-task losses on `inputs` (each [task, ...]) and the SMTO's direction for `network`."""
    weights: Tensor | None
    if smto.needs == "losses":
        values, loss_of = _functional(task_loss, network)
        with torch.no_grad():  # as in jacobian
            losses, backward, auxiliary = vjp(  # type: ignore[misc]
                lambda v: loss_of(v, *inputs), values, has_aux=True
            )
            weights = smto.weights(losses=losses)
            (named,) = backward(weights.to(losses.dtype))
        return Combined(losses, auxiliary, tuple(named.values()), weights)

    matrix, losses, auxiliary = jacobian(task_loss, network, inputs)
    if smto.needs == "gramian":
        weights = smto.weights(losses=losses, gramian=gram_matrix(matrix))
        direction = weights.to(matrix.dtype) @ matrix
    else:
        weights = None
        direction = smto.combine(matrix, losses)
    parameters = tuple(network.parameters())
    pieces = direction.split([p.numel() for p in parameters])
    gradients = tuple(d.view_as(p) for d, p in zip(pieces, parameters, strict=True))
    return Combined(losses, auxiliary, gradients, weights)


def jacobian(
    task_loss: TaskLoss, network: nn.Module, inputs: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """-> J [task, P], parameters flattened in the network's order; losses, auxiliary [task]."""
    values, loss_of = _functional(task_loss, network)
    split = vmap(grad_and_value(loss_of, has_aux=True), in_dims=(None, *[0] * len(inputs)))
    with torch.no_grad():  # networks the loss also uses (the actor's critic) must leave no graph
        gradients, (losses, auxiliary) = split(values, *inputs)
    matrix = torch.cat([gradient.flatten(1) for gradient in gradients.values()], dim=1)
    return matrix, losses, auxiliary


def _functional(
    task_loss: TaskLoss, network: nn.Module
) -> tuple[dict[str, Tensor], Callable[..., tuple[Tensor, Tensor]]]:
    """Parameters by name, and the loss as a pure function of them and the inputs."""

    def loss_of(values: dict[str, Tensor], *inputs: Tensor) -> tuple[Tensor, Tensor]:
        def call(*args: Any) -> Any:
            return functional_call(network, values, args)

        return task_loss(call, *inputs)

    return {name: p.detach() for name, p in network.named_parameters()}, loss_of
