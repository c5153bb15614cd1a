"""Where task gradients come from, as a method sees them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from mtrl.smto.solvers import kernels

Form = TypeVar("Form")
SourceForm = TypeVar("SourceForm", covariant=True)


class Source(Protocol[SourceForm]):
    """Where task gradients come from; what a method does not need is never made."""

    @property
    def losses(self) -> Tensor:
        """[task] detached."""

    def gramian(self) -> Tensor:
        """J J^T [task, task]"""

    def jacobian(self) -> Tensor:
        """J [task, P]"""

    def weighted(self, weights: Tensor) -> SourceForm:
        """weights @ J, in the source's own form."""

    def shaped(self, direction: Tensor) -> SourceForm:
        """A direction [P] in that form."""


class Chosen(NamedTuple, Generic[Form]):
    direction: Form
    weights: Tensor | None
    """[task] the method's weights, where it has weights."""
    gramian: Tensor | None
    """[task, task] where the method needs it."""


class Rows(NamedTuple):
    """The rows of a Jacobian [task, P] that exists: a `Source`."""

    matrix: Tensor
    losses: Tensor

    def gramian(self) -> Tensor:
        return gram_matrix(self.matrix)

    def jacobian(self) -> Tensor:
        return self.matrix

    def weighted(self, weights: Tensor) -> Tensor:
        return weights.to(self.matrix.dtype) @ self.matrix

    def shaped(self, direction: Tensor) -> Tensor:
        return direction


class Backwards:
    """Task gradients of losses that a user's own network has: a `Source` of one backward a task.

    Its form is a list, one tensor for each of the parameters.
    """

    def __init__(self, losses: Tensor, parameters: Sequence[Tensor]) -> None:
        self._losses, self._parameters = losses, parameters

    @property
    def losses(self) -> Tensor:
        return self._losses.detach()

    @cached_property
    def _rows(self) -> Tensor:
        rows = [self._gradients(loss) for loss in self._losses]
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])

    def _gradients(self, loss: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(
            loss, self._parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return list(found)

    def gramian(self) -> Tensor:
        return gram_matrix(self._rows)

    def jacobian(self) -> Tensor:
        return self._rows

    def weighted(self, weights: Tensor) -> list[Tensor]:
        if "_rows" in vars(self):  # they are there already
            return self.shaped(weights.to(self._rows.dtype) @ self._rows)
        return self._gradients(weights.to(self._losses.dtype) @ self._losses)

    def shaped(self, direction: Tensor) -> list[Tensor]:
        parts = direction.split([p.numel() for p in self._parameters])
        return [part.view_as(p) for part, p in zip(parts, self._parameters, strict=True)]


BLOCK = 4096
"""Columns of J whose products are summed in its own precision. One float32 sum over 10^6 columns
may be wrong by 1e-4, by other amounts on every processor; over a block it is by 1e-7."""


def gram_matrix(jacobian: Tensor) -> Tensor:
    """J J^T [m, m] in the Jacobian's precision, never TF32; summed in float64 over blocks."""
    dtype, (m, columns) = jacobian.dtype, jacobian.shape
    if dtype == torch.float32 and (kernel := kernels(jacobian)):
        gramian: Tensor = kernel.gramian(jacobian)
        return gramian
    whole = columns - columns % BLOCK
    rest = jacobian[:, whole:]
    with _without_tf32() if jacobian.is_cuda else contextlib.nullcontext():
        total = (rest @ rest.T).double()
        if whole:
            blocks = jacobian[:, :whole].view(m, -1, BLOCK).transpose(0, 1)
            total += torch.bmm(blocks, blocks.mT).sum(0, dtype=torch.float64)
    return total.to(dtype)


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """float32 products on CUDA in float32, whatever the program allows elsewhere."""
    matmul = torch.backends.cuda.matmul
    # Before PyTorch 2.9 a flag, and since then an error to read where the new setting was used.
    new = hasattr(matmul, "fp32_precision")
    name, exact = ("fp32_precision", "ieee") if new else ("allow_tf32", False)
    before = getattr(matmul, name)
    setattr(matmul, name, exact)
    try:
        yield
    finally:
        setattr(matmul, name, before)
