"""Conflict-averse gradient descent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtrl.smto.base import GramianSMTO, register
from mtrl.smto.solvers import CENTRE, convex, interior_point


@register("cagrad")
class CAGrad(GramianSMTO):
    """CAGrad (Liu et al. 2021, Algorithm 1): the best worst-case descent near the mean gradient.

    d = g_0 + c |g_0| g_w / |g_w|, where w minimises g_w . g_0 + c |g_0| |g_w| over the simplex and
    g_0 is the mean gradient. |d - g_0| = c |g_0|, so d is not on the mean scale unless `rescale`
    (as numbered in the authors' code) is 2: 0: none, as in the paper; 1: d / (1 + c^2); 2:
    d / (1 + c). The norm is smoothed: where g_w vanishes, d - g_0 shrinks. Zero gradients take no
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
        m, c = self.num_tasks, self.c
        mean = gramian.new_full((m,), 1.0 / m)
        if c == 0:
            return mean
        # In units of |g_0|; a vanishing g_0 is floored, its direction is zero with any w.
        largest = gramian.diagonal().max().clamp(min=1e-300)
        unit = torch.maximum(gramian.mean(), 1e-20 * largest)
        scaled = gramian / unit
        length = (largest / unit).sqrt()
        scaled = convex(scaled / length**2) * length**2
        # A zero gradient can be neither helped nor harmed: it is kept out of the minimum.
        absent = (gramian.diagonal() <= 0).to(scaled)
        linear = scaled @ mean + 2.0 * length * absent

        def cone(w: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """G w, |g_w| smoothed by the cone's barrier, and its derivative's denominator."""
            product = scaled @ w
            width = target * length / c
            root = (width.square() + (w @ product).clamp(min=0.0)).sqrt()
            return product, width + root, root

        def model(w: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            product, norm, root = cone(w, target)
            hessian = scaled - torch.outer(product, product) / (norm * root)
            return (linear + c / norm * product) / length, c / (norm * length) * hessian

        plane = torch.ones_like(mean)
        w = interior_point(model, mean, plane, iterations=18)
        w = w / w.sum()
        product, norm, _ = cone(w, w.new_full((), CENTRE))
        descent = linear + c / norm * product
        bound = w @ linear + c * (w @ product).clamp(min=0.0).sqrt()
        self._certificates["duality_gap"] = (bound - descent.min()) / length
        weights = mean + c / norm * w
        return weights / (1.0, 1.0 + c * c, 1.0 + c)[self.rescale]
