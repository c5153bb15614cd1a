"""Conflict-averse gradient descent."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mtrl.smto.base import GramianSMTO
from mtrl.smto.registry import register
from mtrl.smto.solvers import convex, for_lengths, ridge, simplex_with_norm


@register("cagrad")
class CAGrad(GramianSMTO):
    """CAGrad (Liu et al. 2021, Algorithm 1): the best worst-case descent near the mean gradient.

    d = g_0 + c |g_0| g_w / |g_w|, where w minimises g_w . g_0 + c |g_0| |g_w| over the simplex and
    g_0 is the mean gradient. |d - g_0| = c |g_0|, so d is not on the mean scale unless `rescale`
    (as numbered in the authors' code) is 2: 0: none, as in the paper; 1: d / (1 + c^2); 2:
    d / (1 + c). Where g_w or g_0 vanishes but for rounding, so does d - g_0. Zero gradients take no
    part in the minimum. Solved by an interior-point method instead of SciPy's SLSQP or 20 SGD
    steps. Certificate: the duality gap between max_d min_i g_i . d and its bound, relative to
    |g_0| max |g_i|.
    """

    def __init__(self, num_tasks: int, *, c: float = 0.4, rescale: int = 0, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        if not 0 <= c < 1:
            raise ValueError(f"c must be in [0, 1), not {c}")
        if rescale not in (0, 1, 2):
            raise ValueError(f"rescale must be 0, 1 or 2, not {rescale}")
        self.c, self.rescale = c, rescale

    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        mean = gramian.new_full((self.num_tasks,), 1.0 / self.num_tasks)
        if self.c == 0:
            return mean
        # Lengths in units of the largest one, the objective in units of that times |g_0|.
        largest = gramian.diagonal().max().clamp(min=1e-300)
        scaled = gramian / largest
        share = scaled.mean().clamp(min=1e-20)  # |g_0|^2
        # The radius vanishes with a g_0 that is nothing but rounding.
        c = self.c * share / (share.square() + ridge(self.precision) ** 2).sqrt()
        # A zero gradient can be neither helped nor harmed: it is kept out of the minimum.
        absent = (gramian.diagonal() <= 0).to(scaled)
        linear = scaled @ mean / share.sqrt() + 2.0 * absent
        smooth = convex(scaled, for_lengths(scaled, self.precision))
        # In 0.4% of rank-3 problems of ten tasks c = 0.9 is not solved by 18; 0.4 is in all.
        w = simplex_with_norm(smooth, linear, c, iterations=18 if self.c <= 0.5 else 24)
        norm = (w @ smooth @ w).sqrt()

        def gap() -> Tensor:
            product = scaled @ w
            bound = w @ linear + c * (w @ product).clamp(min=0.0).sqrt()
            return bound - (linear + c / norm * product).min()

        self._certificates["duality_gap"] = gap
        weights = mean + c * share.sqrt() / norm * w
        return weights / (1.0, 1.0 + self.c**2, 1.0 + self.c)[self.rescale]
