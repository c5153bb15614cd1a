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
from mtrl.smto.source import gram_matrix


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


class _Layers:
    """Task gradients from what layers saw: a `Source` of gradients shaped like the parameters."""

    def __init__(self, rows: TaskGradients, buffer: Buffer, chunk_size: int | None) -> None:
        self.rows, self.losses = rows, rows.losses
        self._buffer, self._chunk_size = buffer, chunk_size
        self._dense: Tensor | None = None

    def gramian(self) -> Tensor:
        if self._chunk_size is not None:
            return self.rows.gramian(self._chunk_size, self._buffer)
        self._dense = self.rows.dense_jacobian(self._buffer)
        return self.rows.with_outer(gram_matrix(self._dense))

    def jacobian(self) -> Tensor:
        return self.rows.jacobian(self._buffer)

    def weighted(self, weights: Tensor) -> tuple[Tensor, ...]:
        return self.rows.weighted(weights.to(self.losses.dtype), self._dense)

    def shaped(self, direction: Tensor) -> tuple[Tensor, ...]:
        return self.rows.split(direction)


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
    rows = TaskGradients(network, layers)
    chosen = smto.choose(_Layers(rows, buffer, chunk_size))
    matrix = chosen.gramian
    if gramian and matrix is None:
        matrix = gramian_of(rows, chunk_size)
    return Direction(layers.losses, layers.auxiliary, chosen.direction, chosen.weights, matrix)


def gramian_of(rows: TaskGradients, chunk_size: int | None) -> Tensor:
    """G [task, task], where the method does without it."""
    # In memory of its own: a larger shared buffer would move, under a captured update.
    return rows.gramian(chunk_size or GRAMIAN_CHUNK, Buffer())


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
