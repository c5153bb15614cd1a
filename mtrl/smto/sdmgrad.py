"""Direction-oriented multi-objective descent."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mtrl.smto.base import GramianSMTO
from mtrl.smto.registry import register
from mtrl.smto.solvers import convex, for_lengths, simplex_quadratic


@register("sdmgrad")
class SDMGrad(GramianSMTO):
    """SDMGrad (Xiao et al. 2023, eq. 8): MGDA pulled towards the mean gradient.

    w minimises |g_w + lambda g_0|^2 over the simplex, g_0 the mean gradient; the direction
    (g_w + lambda g_0) / (1 + lambda) is on the mean scale, MGDA's for lambda = 0 and the mean for
    lambda -> infinity. `strength` is the paper's lambda (0.6 in its RL experiments). w is solved
    for exactly at every step; the authors take 20 SGD steps from the last w, on gradients of
    three mini-batches. Certificate: the duality gap, relative to (1 + lambda) max |g_i|^2.
    """

    def __init__(self, num_tasks: int, *, strength: float = 0.6, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        if not strength >= 0:
            raise ValueError(f"strength must not be negative, but is {strength}")
        self.strength = strength

    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        # Divided by (1 + lambda)^2, in v = w / (1 + lambda) + ...: all terms stay of order 1.
        scaled = gramian / gramian.diagonal().max().clamp(min=1e-300)
        share = 1.0 / (1.0 + self.strength)
        hessian, linear = share * scaled, (1.0 - share) * scaled.mean(1)
        w = simplex_quadratic(convex(hessian, for_lengths(scaled, self.precision)), linear)
        w = w / w.sum()

        def gap() -> Tensor:
            gradient = hessian @ w + linear
            return w @ gradient - gradient.min()

        self._certificates["duality_gap"] = gap
        return share * w + (1.0 - share) / self.num_tasks
