"""Conflict-free inverse gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.smto.base import GramianSMTO
from mtrl.smto.registry import register
from mtrl.smto.solvers import cosines, cut_off, floored, spectrum


@register("conflict_free", "con_fig")
class ConFIG(GramianSMTO):
    """ConFIG (Liu, Chu & Thuerey 2024, eqs. 2-3): the same cosine with all gradients.

    u = U^+ 1 with U the unit gradients, and the direction is u / |u| times the MEAN of the
    gradients' projections on it (the paper sums). u points where that of `imtl_g` does; its length
    is bounded, since it shrinks as gradients cancel. U^+ = U^T C^+ with C the matrix of cosines;
    eigenvalues that rounding cannot tell from zero count as zero, with a smooth transition, and so
    does |u|^2 (the authors: least squares, or a pseudo-inverse of U). A zero gradient gets weight
    0.
    """

    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        cosine, lengths = cosines(gramian)
        _, vectors, inverse = spectrum(cosine, self.precision)
        x = vectors @ (inverse * vectors.sum(0))  # C^+ 1
        reached = cosine @ x  # u . g_i / |g_i|: 1, unless gradients are dependent
        square = x @ reached
        share = square / (square.square() + cut_off(self.precision) ** 4)
        x = torch.where(lengths > 0, x / floored(lengths), 0.0)
        return (lengths * reached).mean() * share * x
