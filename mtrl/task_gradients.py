"""From a per-task loss to one direction, computing only what the SMTO asks for.

Tasks own disjoint rows of the batch, so all task gradients come out of one batched backward, at
about the cost of the backward of their sum (mtrl.shared_backward), into one buffer [task, P].

Given J, the direction w @ J is one matrix-vector product, a few percent of the backward, where a
second, weighted backward costs a whole one. So J is kept; only with `chunk_size`, for networks
whose J does not fit, is it made piecewise for the Gramian and the direction computed anew.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vjp

from mtrl.replay import free_memory
from mtrl.shared_backward import Layers, LayerSplit, Split, TaskLoss, call, split_backward
from mtrl.smto.base import SMTO, gram_matrix

GRAMIAN_CHUNK = 1 << 18
"""Columns of J at a time where only its Gramian is wanted: as fast as all at once, less memory."""


class Combined(NamedTuple):
    losses: Tensor
    """[task] detached."""
    auxiliary: Tensor
    """[task] detached."""
    gradients: tuple[Tensor, ...]
    """The SMTO's direction, shaped like the network's parameters."""
    weights: Tensor | None
    """[task] the SMTO's weights, where it has weights."""
    gramian: Tensor | None = None
    """[task, task] float64, where the SMTO needed it."""


class Buffer:
    """Memory for task gradients, kept from one update to the next: fresh pages cost as much time
    as the products that fill them."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def take(self, tasks: int, columns: int, like: Tensor) -> Tensor:
        """[tasks, columns], uninitialised; MemoryError, before allocating, if it will not fit."""
        held = self._memory
        if held is None or held.numel() < tasks * columns or held.device != like.device:
            self._memory = held = None
            need, free = like.element_size() * tasks * columns, free_memory(like.device)
            if need > free:
                raise MemoryError(
                    f"the gradients of {tasks} tasks, {columns:,} parameters each, need "
                    f"{need / 2**30:.1f} GiB on {like.device}, where {free / 2**30:.1f} GiB are "
                    "free; agent.chunk_size bounds this for methods that need the Gramian"
                )
            self._memory = held = torch.empty(tasks * columns, dtype=like.dtype, device=like.device)
        return held[: tasks * columns].view(tasks, columns)


def combined_gradients(
    smto: SMTO,
    task_loss: TaskLoss,
    network: nn.Module,
    inputs: Sequence[Tensor],
    *,
    shared: Collection[str] | None = None,
    chunk_size: int | None = None,
    buffer: Buffer | None = None,
) -> Combined:
    """Per-task losses on `inputs` (each [task, ...]) and the SMTO's direction for `network`.

    shared: names of the parameters in the Gramian; None = all. The others (task-specific heads)
    get the gradient of the plain mean of the losses, whatever the method.
    chunk_size: at most about this many of J's columns exist at a time (a Jacobian method needs
    all P in any case). Raises MemoryError, before allocating, if the columns do not fit.
    """
    buffer = buffer or Buffer()
    names, own = _shared_and_own(network, shared)
    everything = dict(network.named_parameters())
    m = inputs[0].shape[0]

    if smto.needs == "losses":
        values = {name: p.detach() for name, p in everything.items()}
        with torch.no_grad():  # networks the loss also uses (the actor's critic): no graph
            losses, backward, auxiliary = vjp(  # type: ignore[misc]  # three values with has_aux
                lambda v: call(task_loss, network, v, inputs), values, has_aux=True
            )
            weights = smto.weights(losses=losses)
            (gradients,) = backward(weights.to(losses.dtype))
            if own:
                (plain,) = backward(torch.full_like(losses, 1.0 / m))
                gradients |= {name: plain[name] for name in own}
        return Combined(losses, auxiliary, tuple(gradients[name] for name in everything), weights)

    split = split_backward(task_loss, network, names, own, inputs)
    pieces, *of_smto = _direction(smto, split, chunk_size, buffer)
    found = dict(zip(names, pieces, strict=True)) | dict(zip(own, split.own_gradients, strict=True))
    directions = tuple(found[name] for name in everything)
    return Combined(split.losses, split.auxiliary, directions, *of_smto)


def combined_layers(
    smto: SMTO, network: nn.Module, layers: Layers, *, chunk_size: int | None, buffer: Buffer
) -> Combined:
    """`combined_gradients` of MLPs, from their `layer_gradients`."""
    split = LayerSplit(network, layers)
    return Combined(split.losses, split.auxiliary, *_direction(smto, split, chunk_size, buffer))


def _direction(
    smto: SMTO, split: Split, chunk_size: int | None, buffer: Buffer
) -> tuple[tuple[Tensor, ...], Tensor | None, Tensor | None]:
    """-> the direction, shaped like the parameters in J, and weights and Gramian if there are."""
    weights: Tensor | None = None
    matrix: Tensor | None = None
    losses, dtype, m = split.losses, split.parameters[0].dtype, len(split.losses)
    if smto.needs == "losses":
        with torch.no_grad():
            weights = smto.weights(losses=losses)
            return split.weighted(weights.to(dtype)), weights, None
    if smto.needs == "gramian" and chunk_size is not None:
        matrix = _gramian(split, m, chunk_size, buffer)
        weights = smto.weights(losses=losses, gramian=matrix)
        pieces = split.weighted(weights.to(dtype))
    else:
        rows = _jacobian(split, m, buffer)
        if smto.needs == "gramian":
            matrix = gram_matrix(rows)
            weights = smto.weights(losses=losses, gramian=matrix)
            direction = weights.to(dtype) @ rows
        else:
            direction = smto.direction(rows, losses)
        parts = direction.split([p.numel() for p in split.parameters])
        pieces = tuple(d.view_as(p) for d, p in zip(parts, split.parameters, strict=True))
    return pieces, weights, matrix


def task_gramian(
    task_loss: TaskLoss,
    network: nn.Module,
    inputs: Sequence[Tensor],
    *,
    shared: Collection[str] | None = None,
    chunk_size: int | None = None,
    buffer: Buffer | None = None,
) -> Tensor:
    """G = J J^T [task, task], for methods that do without it; as combined_gradients."""
    names, _ = _shared_and_own(network, shared)
    split = split_backward(task_loss, network, names, [], inputs)
    return _gramian(split, inputs[0].shape[0], chunk_size or GRAMIAN_CHUNK, buffer or Buffer())


def jacobian(
    task_loss: TaskLoss, network: nn.Module, inputs: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """-> J [task, P], parameters flattened in the network's order; losses, auxiliary [task]."""
    names = [name for name, _ in network.named_parameters()]
    split = split_backward(task_loss, network, names, [], inputs)
    return _jacobian(split, inputs[0].shape[0], Buffer()), split.losses, split.auxiliary


def _shared_and_own(
    network: nn.Module, shared: Collection[str] | None
) -> tuple[list[str], list[str]]:
    names = [name for name, _ in network.named_parameters()]
    if shared is None:
        return names, []
    if unknown := set(shared) - set(names):
        raise ValueError(f"shared names no parameters of the network: {sorted(unknown)}")
    return [n for n in names if n in shared], [n for n in names if n not in shared]


def _jacobian(split: Split, m: int, buffer: Buffer) -> Tensor:
    matrix = buffer.take(m, split.columns, split.losses)
    for block in split.blocks(None):
        block.fill(matrix[:, block.start : block.start + block.size])
    return matrix


def _gramian(split: Split, m: int, chunk_size: int, buffer: Buffer) -> Tensor:
    """G [task, task] as `gram_matrix` makes it, from blocks of J that are dropped at once."""
    total = torch.zeros(m, m, dtype=torch.float64, device=split.losses.device)
    for block in split.blocks(chunk_size):
        columns = buffer.take(m, block.size, split.losses)
        block.fill(columns)
        total += gram_matrix(columns)
    return total.to(split.losses.dtype)
