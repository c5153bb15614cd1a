"""Projections onto the cone where no task is harmed."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.smto.base import GramianSMTO
from mtrl.smto.registry import register
from mtrl.smto.solvers import convex, cosines, dual_cone_projections, quadratic_program, ridge


@register("upgrad")
class UPGrad(GramianSMTO):
    """UPGrad (Quinton & Rey 2024, Section 3): the mean of all gradients projected onto a cone.

    Each g_i is replaced by the nearest vector of {d: g_j . d >= 0 for all j}; the direction is
    their mean, so (to first order) no loss rises. m quadratic programs of size m, solved together
    by an interior point method; cosines are regularised by 3e-5 m, those of float64 gradients by
    1e-6 (the authors' library: the Gramian by 1e-4 of its trace). Certificate: the largest conflict
    left, -g_i'.g_j / (|g_i| |g_j|) with g_i' the projected g_i.
    """

    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        cosine, lengths = cosines(gramian)
        added = max(1e-6, ridge(self.precision, self.num_tasks))
        rows = dual_cone_projections(convex(cosine, added))
        self._certificates["conflict"] = lambda: (-(rows @ cosine)).clamp(min=0.0).max()
        weights = lengths @ rows
        return torch.where(lengths > 0, weights / lengths, 0.0) / self.num_tasks


@register("dual_proj")
class DualProj(GramianSMTO):
    """DualProj (Lopez-Paz & Ranzato 2017, eq. 11): the mean gradient projected onto a cone.

    The direction is the vector of {d: g_j . d >= 0 for all j} that is nearest to the mean gradient:
    GEM's projection, with all tasks as its memories. Where nothing conflicts with the mean, it is
    the mean. One quadratic program of size m by an interior point method, on cosines regularised as
    in `upgrad`; its multipliers are at least 0 (GEM's code: 0.5, a margin). Certificate: the
    largest conflict left, -g_j.d / (|g_j| max_i |g_i|).
    """

    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        cosine, lengths = cosines(gramian)
        added = max(1e-6, ridge(self.precision, self.num_tasks))
        matrix = convex(cosine, added)
        unit = lengths.max().clamp(min=1e-300)
        mean = lengths / unit / self.num_tasks  # in unit gradients
        x = mean + quadratic_program(matrix, matrix @ mean, None, iterations=16)
        self._certificates["conflict"] = lambda: (-(cosine @ x)).clamp(min=0.0).max()
        return torch.where(lengths > 0, x * (unit / lengths), 0.0)
