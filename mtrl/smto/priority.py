"""One task comes first, the others are only not to be left behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtrl.smto.base import GramianSMTO
from mtrl.smto.registry import register
from mtrl.smto.solvers import convex, cosines, cut_off, quadratic_program, ridge


@register("pcd", "priority_constrained")
class PCD(GramianSMTO):
    """PCD (Varam & AlHajri 2026, Definition 4.1, Algorithm 1): one task first, progress for all.

    d is the vector nearest to s_p g_p, p the `primary` task, with g_j . d >= tau s_j |g_j|^2 for
    every other j; scales s_i = 1 / (root of the average of |g_i|^2, which decays by `beta` and
    weighs all steps alike at first). The direction is d at the length of g_p: with equal gradients
    the mean scale, otherwise the primary task's. A zero g_p makes it zero. One quadratic program of
    size m by an interior point method, on cosines regularised as in `upgrad` (the authors try all
    sets of active constraints), to which a tau of that size or less is lost. Where constraints
    contradict one another, d misses them by as little as it can, and is s_p g_p if rounding leaves
    nothing of it (the authors: s_p g_p in both cases). No eps is added to the averages: gradients
    of any scale count. Certificate: the largest tau s_j |g_j| that a task does not get, in units of
    the largest s_i |g_i|.
    """

    squares: Tensor
    count: Tensor

    def __init__(
        self,
        num_tasks: int,
        *,
        primary: int = 0,
        tau: float = 0.02,
        beta: float = 0.999,
        **options: Any,
    ) -> None:
        super().__init__(num_tasks, **options)
        if not 0 <= primary < num_tasks:
            raise ValueError(f"primary must be a task in 0..{num_tasks - 1}, not {primary}")
        if not 0 <= tau <= 1:
            raise ValueError(f"tau must be in [0, 1], not {tau}")
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be in [0, 1), not {beta}")
        self.primary, self.tau, self.beta = primary, tau, beta
        self.register_buffer("squares", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        cosine, lengths = cosines(gramian)
        relative = self.relative(lengths)
        # Not by an assignment, which a CUDA graph cannot capture: it copies from the host.
        first = (torch.arange(len(lengths), device=lengths.device) == self.primary).to(lengths)
        others = 1.0 - first
        # d = sum_i y_i g_i / |g_i|, where y are multipliers of the constraints: the dual problem.
        own = (first @ relative) * first
        wanted = self.tau * relative
        pairs = cosine * others * others[:, None] + first.diag()
        added = max(1e-6, ridge(self.precision, self.num_tasks))
        linear = (cosine @ own - wanted) * others + first
        y = own + others * quadratic_program(convex(pairs, added), linear, None, iterations=16)
        products = cosine @ y
        missing = (wanted - products) * others
        self._certificates["shortfall"] = lambda: missing.clamp(min=0.0).max()

        # Rounding is all that is left of a d that is much shorter than its parts. So steep, because
        # weights that cancel are longer than what they leave: by 1 / square^(1/2), 300 in float32.
        # y shows rounding before the cosines do, since it is free where constraints contradict one
        # another: hence not at cut_off itself.
        total = y.sum().clamp(min=1e-300)
        square = (y @ products).clamp(min=0.0) / total.square()
        least = (3.0 * cut_off(self.precision)) ** 16
        remains = square**8 / (square**8 + least)
        unit = square**7.5 / (square**8 + least) * y / total
        if self.tau > 0:  # without, d = 0 contradicts nothing
            unit = unit + (1.0 - remains) * first
        return torch.where(lengths > 0, (first @ lengths) * unit / lengths, 0.0)

    def relative(self, lengths: Tensor) -> Tensor:
        """s_i |g_i| [m], after this step's lengths; the largest counts as 1."""
        self.count += 1.0
        share = (1.0 - self.beta) / (1.0 - self.beta**self.count)
        self.squares.lerp_(lengths.square(), share)
        usual = self.squares.sqrt()
        relative = torch.where(usual > 0, lengths / usual, 0.0)
        return relative / relative.max().clamp(min=1e-300)
