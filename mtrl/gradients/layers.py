"""The backward of one loss per task, as far as all tasks share it, in networks of recorded layers.

`layer_gradients` makes one forward and one backward to the layers' outputs. It is a pure function
of tensors, which torch.compile takes. The task gradients are then products of what each layer saw
and what came back (`TaskGradients`): as a Jacobian, piece by piece for a Gramian, or weighted,
which is one product per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtrl.gradients.buffer import Buffer
from mtrl.networks.layers import Term, layers_of, recording
from mtrl.smto.source import gram_matrix

TaskLoss = Callable[..., tuple[Tensor, Tensor]]
"""(network, *inputs) -> (loss, auxiliary). With inputs [task, ...] both are [task]."""

GRAMIAN_CHUNK = 1 << 18
"""Columns of J at a time where only its Gramian is asked for: as fast as all at once, with less
memory."""


class Layers(NamedTuple):
    """What the task gradients are made of, detached."""

    losses: Tensor
    """[task]"""
    auxiliary: Tensor
    """[task]"""
    terms: tuple[Term, ...]
    """Of each parameter, in the network's order."""


def layer_gradients(task_loss: TaskLoss, network: nn.Module, *inputs: Tensor) -> Layers:
    with recording(network) as records:
        losses, auxiliary = task_loss(network, *inputs)
    outputs = [record.output for record in records]
    gradients = torch.autograd.grad(losses.sum(), outputs, materialize_grads=True)
    m = len(losses)
    terms: list[Term] = []
    for layer in layers_of(network):
        seen = [_by_task(r.seen.detach(), m) for r in records if r.layer is layer]
        back = [
            _by_task(gradient, m)
            for record, gradient in zip(records, gradients, strict=True)
            if record.layer is layer
        ]
        if not seen:
            raise ValueError(f"the loss does not call the layer {layer}")
        once = len(seen) == 1  # a layer that is called again has seen more samples
        terms += layer.terms(
            seen[0] if once else torch.cat(seen, 2), back[0] if once else torch.cat(back, 2)
        )
    return Layers(losses.detach(), auxiliary.detach(), tuple(terms))


def _by_task(values: Tensor, m: int) -> Tensor:
    """[copies, task ..., dim] -> [copies, task, sample, dim]"""
    return values.reshape(len(values), m, -1, values.shape[-1])


class TaskGradients:
    """Task gradients of a network's parameters.

    Parameters of which every task has its own (rows of a table, heads) stay out of J. They get
    their task's gradient times 1/m, as in the mean of the losses, whatever the method.
    """

    def __init__(self, network: nn.Module, layers: Layers) -> None:
        self.losses = layers.losses
        of_one_task = {
            id(p) for layer in layers_of(network) if layer.of_one_task for p in layer.parameters()
        }
        self.parameters = list(network.parameters())
        self._own: dict[int, Term] = {}
        self._shared: dict[int, tuple[int, Term]] = {}  # with the first column in J
        self.columns = 0
        for index, (p, term) in enumerate(zip(self.parameters, layers.terms, strict=True)):
            if id(p) in of_one_task:
                self._own[index] = term
            else:
                self._shared[index] = self.columns, term
                self.columns += p.numel()

    def jacobian(self, buffer: Buffer) -> Tensor:
        """J [task, P] of the shared parameters, in the buffer."""
        matrix = buffer.take(len(self.losses), self.columns, self.losses)
        for start, size, fill in self._blocks(None):
            fill(matrix[:, start : start + size])
        return matrix

    def gramian(self, chunk_size: int, buffer: Buffer) -> Tensor:
        """J J^T [task, task], as `gram_matrix`, from pieces of J that are dropped at once."""
        m = len(self.losses)
        total = torch.zeros(m, m, dtype=torch.float64, device=self.losses.device)
        for _, size, fill in self._blocks(chunk_size):
            columns = buffer.take(m, size, self.losses)
            fill(columns)
            total += gram_matrix(columns)
        return total.to(self.losses.dtype)

    def _blocks(
        self, chunk_size: int | None
    ) -> Iterator[tuple[int, int, Callable[[Tensor], object]]]:
        """Neighbouring columns of J: first column, their number, and what writes them into a
        given [task, number]. Products are split to about chunk_size columns."""
        for start, (x, d, _) in self._shared.values():
            copies, m, _, fan_out = d.shape
            if x is None:
                rows = d.transpose(0, 1).reshape(m, -1)
                yield start, rows.shape[1], _copy(rows)
                continue
            fan_in = x.shape[-1]
            step = fan_in if chunk_size is None else min(fan_in, max(1, chunk_size // fan_out))
            for copy in range(copies):
                for first in range(0, fan_in, step):
                    some = x[copy, ..., first : first + step].transpose(1, 2)
                    size = some.shape[1] * fan_out
                    yield start + (copy * fan_in + first) * fan_out, size, _product(some, d[copy])

    def weighted(self, weights: Tensor) -> tuple[Tensor, ...]:
        """sum_t w_t g_t, shaped like the network's parameters."""
        w = weights[:, None, None]
        found = {}
        for index, (_, (x, d, bf16)) in self._shared.items():
            if x is None:
                found[index] = (d * w).sum(1)
                continue
            x, d = (x * w, d) if x.shape[-1] < d.shape[-1] else (x, d * w)  # the smaller one
            if bf16:
                x, d = x.bfloat16(), d.bfloat16()
            found[index] = torch.bmm(x.flatten(1, 2).transpose(1, 2), d.flatten(1, 2)).to(w.dtype)
        return self._with_own(found)

    def split(self, direction: Tensor) -> tuple[Tensor, ...]:
        """A direction [P] of the shared parameters, shaped like the network's parameters."""
        sizes = [self.parameters[index].numel() for index in self._shared]
        return self._with_own(dict(zip(self._shared, direction.split(sizes), strict=True)))

    def _with_own(self, found: dict[int, Tensor]) -> tuple[Tensor, ...]:
        for index, (x, d, _) in self._own.items():
            gradient = d if x is None else x.transpose(2, 3) @ d
            found[index] = gradient / len(self.losses)
        return tuple(found[index].view_as(p) for index, p in enumerate(self.parameters))


def _product(a: Tensor, b: Tensor) -> Callable[[Tensor], object]:
    """Fill with a @ b [task, rows, columns], flattened."""
    return lambda out: torch.bmm(a, b, out=out.unflatten(1, (a.shape[1], b.shape[2])))


def _copy(values: Tensor) -> Callable[[Tensor], object]:
    return lambda out: out.copy_(values)
