"""Gradient projection: every task's gradient is altered where it meets another one."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from mtrl.smto.base import GramianSMTO, RandomSMTO
from mtrl.smto.registry import register
from mtrl.smto.solvers import cosines, kernels, ridge


class _Projection(RandomSMTO, GramianSMTO):
    """Rows g_i' start as unit gradients g_i / |g_i| and meet the others in an order of their own.

    g_i' = sum_k A_ik g_k / |g_k|; only A and the products with all unit gradients are kept, so
    the m - 1 meetings of all rows i take m steps of [m, m] work.
    """

    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        m = self.num_tasks
        order = torch.rand(m, m, generator=self.generator, device=self.generator.device)
        return self.project(gramian, order.argsort(dim=1))

    def project(self, gramian: Tensor, order: Tensor) -> Tensor:
        """Weights [m] for given orders [m, m]; row i: in which order task i meets the others."""
        cosine, lengths = cosines(gramian)
        coefficients = self.meet(cosine, order)
        inverse = torch.where(lengths > 0, 1.0 / lengths, 0.0)
        return (lengths @ coefficients) * inverse / len(order)

    @abstractmethod
    def meet(self, cosine: Tensor, order: Tensor) -> Tensor:
        """A [m, m], from the cosines [m, m] and `order`."""


def _meetings(cosine: Tensor, order: Tensor) -> Tensor:
    """[m, m], as ordered: 1, or 0 where a task would meet itself or a zero gradient."""
    exists = cosine.diagonal() > 0
    itself = torch.eye(len(order), dtype=torch.bool, device=order.device)
    return (exists[:, None] & exists & ~itself).to(cosine).gather(1, order)


def _coefficients(order: Tensor, added: list[Tensor]) -> Tensor:
    """A [m, m]: 1 for a task's own gradient, and what each of its meetings added."""
    own = torch.eye(len(order), dtype=added[0].dtype, device=order.device)
    return own.scatter_add(1, order, torch.stack(added, dim=1))


@register("pcgrad")
class PCGrad(_Projection):
    """PCGrad (Yu et al. 2020, Algorithm 1), as weights on the Gramian.

    g_i' starts as g_i; for every other task j in random order, if g_i'.g_j < 0:
    g_i' -= (g_i'.g_j / |g_j|^2) g_j. The direction is the MEAN of the g_i' (the paper sums, as do
    Kurin et al. 2022 on supervised tasks; their code for RL averages). Every task has its own
    order, as in the paper (some public code shares one); a zero g_j is skipped.
    """

    def meet(self, cosine: Tensor, order: Tensor) -> Tensor:
        if kernel := kernels(cosine):
            return kernel.project(cosine, order)
        products = cosine.clone()  # g_i' . g_k / |g_k|
        meets, added = _meetings(cosine, order), []
        steps = zip(order.unbind(1), meets.unbind(1), cosine[order].unbind(1), strict=True)
        for j, met, others in steps:
            product = products.gather(1, j[:, None])[:, 0]
            change = product.clamp(max=0.0) * met
            products.addcmul_(change[:, None], others, value=-1.0)
            added.append(-change)
        return _coefficients(order, added)


@register("gradvac", "gradient_vaccine")
class GradVac(_Projection):
    """Gradient Vaccine (Wang et al. 2021, Algorithm 1): cosines are raised to a running target.

    For every other task j in random order: with phi = cos(g_i', g_j) below the target phi_ij,
    g_j is added to g_i' until their cosine is the target (eq. 4); then phi_ij moves to phi by
    the share beta. The targets start at 0, where the method is PCGrad. The direction is the MEAN
    of the g_i' (the paper sums); all parameters are one group. Targets count as at most 1 - 5e-4
    (float64 gradients: 1 - 1e-6): nearer to 1, the cosine's rounding would show in the weights.
    """

    targets: Tensor

    def __init__(self, num_tasks: int, *, beta: float = 0.5, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be in [0, 1], not {beta}")
        self.beta = beta
        zeros = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)
        self.register_buffer("targets", zeros)

    def meet(self, cosine: Tensor, order: Tensor) -> Tensor:
        nearest = 1.0 - max(1e-6, 16.0 * ridge(self.precision))
        if kernel := kernels(cosine):
            blur = ridge(self.precision)
            return kernel.vaccinate(cosine, order, self.targets, self.beta, nearest, blur)
        meets = _meetings(cosine, order)
        targets = self.targets.gather(1, order)
        wanted = targets.clamp(-nearest, nearest)
        tangents = wanted / (1.0 - wanted * wanted).sqrt()
        products = cosine.clone()
        squares = cosine.diagonal().clone()  # |g_i'|^2
        added, measured = [], []

        def real(square: Tensor) -> Tensor:
            """1, or 0 where it is nothing but rounding."""
            fourth = square.square().square()
            return fourth / (fourth + ridge(self.precision) ** 4)

        steps = zip(
            order.unbind(1), meets.unbind(1), cosine[order].unbind(1),
            wanted.unbind(1), tangents.unbind(1), strict=True,
        )  # fmt: skip
        for j, met, others, target, tangent in steps:
            product = products.gather(1, j[:, None])[:, 0]
            # Rounding remains of a g_i' that has vanished, and of the sine of a parallel one.
            square = squares.clamp(min=1e-24)
            whole = real(square)
            phi = whole * (product / square.sqrt()).clamp(-1.0, 1.0)
            sine = 1.0 - phi * phi
            change = (square * whole * sine * real(sine)).sqrt() * tangent - product
            change = change * (phi < target) * met
            products.addcmul_(change[:, None], others)
            squares = squares + change * (2.0 * product + change)
            added.append(change)
            measured.append(phi)
        moved = targets + self.beta * (torch.stack(measured, dim=1) - targets) * meets
        self.targets.scatter_(1, order, moved)
        return _coefficients(order, added)
