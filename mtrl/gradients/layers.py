"""The backward of one loss per task, as far as all tasks share it, in networks of recorded layers.

`layer_gradients` makes one forward and one backward to the layers' outputs. It is a pure function
of tensors, which torch.compile takes. The task gradients are then matrix products of what each
layer saw and what came back (`TaskGradients`): as a Jacobian, piece by piece for a Gramian, or
weighted, which is one product per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
    """Task gradients of a network's parameters: a `Source` of gradients shaped like these.

    chunk_size: the Gramian is made from about this many of J's columns at a time; None = of all,
    which then also serve the weighted gradient.

    Where a layer saw one sample per task (a mixture of parameter sets saw the task's coefficients),
    a task gradient is the outer product of two vectors. Its Gramian and its weighted gradient need
    the vectors alone, so these never become columns there.

    Parameters of which every task has its own (rows of a table, heads) stay out of J. They get
    their task's gradient times 1/m, as in the mean of the losses, whatever the method.
    """

    def __init__(
        self, network: nn.Module, layers: Layers, buffer: Buffer, chunk_size: int | None = None
    ) -> None:
        self.losses, self._buffer, self._chunk_size = layers.losses, buffer, chunk_size
        self._columns: Tensor | None = None
        """J without the outer products, once the Gramian was made of it."""
        of_one_task = {
            id(p) for layer in layers_of(network) if layer.of_one_task for p in layer.parameters()
        }
        self.parameters = list(network.parameters())
        self._own: dict[int, Term] = {}
        self._shared: dict[int, Term] = {}
        self._dense: dict[int, Term] = {}
        self._outer: dict[int, Term] = {}
        for index, (p, term) in enumerate(zip(self.parameters, layers.terms, strict=True)):
            if id(p) in of_one_task:
                self._own[index] = term
                continue
            self._shared[index] = term
            if term.x is not None and term.x.shape[2] == 1:
                self._outer[index] = term
            else:
                self._dense[index] = term

    def jacobian(self) -> Tensor:
        """J [task, P] of the shared parameters, in the buffer."""
        return self._columns_of(self._shared)

    def _columns_of(self, terms: dict[int, Term]) -> Tensor:
        columns = sum(self.parameters[index].numel() for index in terms)
        matrix = self._buffer.take(len(self.losses), columns, self.losses)
        start = 0
        for size, fill in _blocks(terms.values(), None):
            fill(matrix[:, start : start + size])
            start += size
        return matrix

    def gramian(self) -> Tensor:
        """J J^T [task, task], as `gram_matrix`."""
        if self._chunk_size is None:
            self._columns = self._columns_of(self._dense)
            return self._with_outer(gram_matrix(self._columns))
        m = len(self.losses)
        total = torch.zeros(m, m, dtype=torch.float64, device=self.losses.device)
        for size, fill in _blocks(self._dense.values(), self._chunk_size):
            columns = self._buffer.take(m, size, self.losses)  # that of the last piece
            fill(columns)
            total += gram_matrix(columns)
        return self._with_outer(total.to(self.losses.dtype))

    def _with_outer(self, gramian: Tensor) -> Tensor:
        """J J^T, from that of the other columns."""
        for x, d, _ in self._outer.values():
            assert x is not None
            for a, b in zip(x.squeeze(2), d.squeeze(2), strict=True):
                gramian = gramian + gram_matrix(a) * gram_matrix(b)
        return gramian

    def weighted(self, weights: Tensor) -> tuple[Tensor, ...]:
        """sum_t w_t g_t."""
        weights = weights.to(self.losses.dtype)
        w = weights[:, None, None]
        terms, found = self._shared, {}
        if self._columns is not None:
            terms, found = self._outer, self._cut(self._dense, weights @ self._columns)
        for index, (x, d, bf16) in terms.items():
            if x is None:
                found[index] = (d * w).sum(1)
                continue
            x, d = (x * w, d) if x.shape[-1] < d.shape[-1] else (x, d * w)  # the smaller one
            if bf16:
                x, d = x.bfloat16(), d.bfloat16()
            found[index] = torch.bmm(x.flatten(1, 2).transpose(1, 2), d.flatten(1, 2)).to(w.dtype)
        return self._with_own(found)

    def shaped(self, direction: Tensor) -> tuple[Tensor, ...]:
        """A direction [P] of the shared parameters."""
        return self._with_own(self._cut(self._shared, direction))

    def _cut(self, terms: dict[int, Term], direction: Tensor) -> dict[int, Tensor]:
        sizes = [self.parameters[index].numel() for index in terms]
        return dict(zip(terms, direction.split(sizes), strict=True))

    def _with_own(self, found: dict[int, Tensor]) -> tuple[Tensor, ...]:
        for index, (x, d, _) in self._own.items():
            gradient = d if x is None else x.transpose(2, 3) @ d
            found[index] = gradient / len(self.losses)
        return tuple(found[index].view_as(p) for index, p in enumerate(self.parameters))


def _blocks(
    terms: Iterable[Term], chunk_size: int | None
) -> Iterator[tuple[int, Callable[[Tensor], object]]]:
    """Neighbouring columns of J: their number, and what writes them into a given [task, number].
    Products are split to about chunk_size columns."""
    for x, d, _ in terms:
        copies, m, _, fan_out = d.shape
        if x is None:
            rows = d.transpose(0, 1).reshape(m, -1)
            yield rows.shape[1], _copy(rows)
            continue
        fan_in = x.shape[-1]
        step = fan_in if chunk_size is None else min(fan_in, max(1, chunk_size // fan_out))
        for copy in range(copies):
            for first in range(0, fan_in, step):
                some = x[copy, ..., first : first + step].transpose(1, 2)
                yield some.shape[1] * fan_out, _product(some, d[copy])


def _product(a: Tensor, b: Tensor) -> Callable[[Tensor], object]:
    """Fill with a @ b [task, rows, columns], flattened."""
    return lambda out: torch.bmm(a, b, out=out.unflatten(1, (a.shape[1], b.shape[2])))


def _copy(values: Tensor) -> Callable[[Tensor], object]:
    return lambda out: out.copy_(values)
