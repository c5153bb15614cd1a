"""From task gradients to one direction, computing only what the method needs.

Given J, the direction w @ J is one matrix-vector product, a few percent of the backward, where the
weighted gradient takes every layer's product again. So J is kept; only with a chunk size, for
networks whose J does not fit, is it made in pieces for the Gramian.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtrl.gradients.buffer import Buffer
from mtrl.gradients.layers import GRAMIAN_CHUNK, Layers, TaskGradients, TaskLoss
from mtrl.smto.base import SMTO, gram_matrix


class Direction(NamedTuple):
    losses: Tensor
    """[task] detached."""
    auxiliary: Tensor
    """[task] detached."""
    gradients: tuple[Tensor, ...]
    """The SMTO's direction, shaped like the network's parameters."""
    weights: Tensor | None
    """[task] the SMTO's weights, where it has weights."""
    gramian: Tensor | None = None
    """[task, task] where the SMTO needs it or it was asked for."""


@torch.no_grad()
def combine(
    smto: SMTO,
    network: nn.Module,
    layers: Layers,
    *,
    buffer: Buffer,
    chunk_size: int | None = None,
    gramian: bool = False,
) -> Direction:
    """The SMTO's direction for `network`.

    chunk_size: at most about this many of J's columns exist at a time (a Jacobian method needs
    all P in any case). Raises MemoryError, before allocating, if the columns do not fit.
    gramian: give the Gramian too, where the method does without it.
    """
    rows, losses = TaskGradients(network, layers), layers.losses
    weights: Tensor | None = None
    matrix: Tensor | None = None
    match smto.needs:
        case "losses":
            weights = smto.weights(losses=losses)
            gradients = rows.weighted(weights.to(losses.dtype))
        case "gramian" if chunk_size is not None:
            matrix = rows.gramian(chunk_size, buffer)
            weights = smto.weights(losses=losses, gramian=matrix)
            gradients = rows.weighted(weights.to(losses.dtype))
        case "gramian":
            jacobian = rows.jacobian(buffer)
            matrix = gram_matrix(jacobian)
            weights = smto.weights(losses=losses, gramian=matrix)
            gradients = rows.split(weights.to(losses.dtype) @ jacobian)
        case "jacobian":
            jacobian = rows.jacobian(buffer)
            gradients = rows.split(smto.direction(jacobian, losses))
    if gramian and matrix is None:
        # In memory of its own: a larger shared buffer would move, under a captured update.
        matrix = rows.gramian(chunk_size or GRAMIAN_CHUNK, Buffer())
    return Direction(losses, layers.auxiliary, gradients, weights, matrix)


def plain_direction(
    smto: SMTO, task_loss: TaskLoss, network: nn.Module, *inputs: Tensor
) -> Direction:
    """Of a method that needs the losses alone: one ordinary backward of their weighted sum."""
    losses, auxiliary = task_loss(network, *inputs)
    weights = smto.weights(losses=losses.detach())
    gradients = torch.autograd.grad(
        losses, list(network.parameters()), weights.to(losses.dtype), materialize_grads=True
    )
    return Direction(losses.detach(), auxiliary.detach(), gradients, weights)
