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
from mtrl.smto.base import SMTO


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
    chosen = smto.choose(TaskGradients(network, layers, buffer, chunk_size))
    matrix = chosen.gramian
    if gramian and matrix is None:
        matrix = gramian_of(network, layers, chunk_size)
    return Direction(layers.losses, layers.auxiliary, chosen.direction, chosen.weights, matrix)


def gramian_of(network: nn.Module, layers: Layers, chunk_size: int | None) -> Tensor:
    """G [task, task], where the method does without it."""
    # In memory of its own: a larger shared buffer would move, under a captured update.
    return TaskGradients(network, layers, Buffer(), chunk_size or GRAMIAN_CHUNK).gramian()


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
