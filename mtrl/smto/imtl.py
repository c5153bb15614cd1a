"""Impartial multi-task learning on gradients, alone and with learned loss scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtrl.smto.base import GramianSMTO, LearnedSMTO
from mtrl.smto.registry import register
from mtrl.smto.solvers import cosines, cut_off, floored, spectrum


def equal_projections(gramian: Tensor, precision: float) -> Tensor:
    """Weights [m] with sum 1 and equal projections w @ J . g_i / |g_i|; 0 if there are none."""
    cosine, lengths = cosines(gramian)
    _, vectors, inverse = spectrum(cosine, precision)
    x = vectors @ (inverse * vectors.sum(0))  # C^+ 1
    # The rest 1 - C x is orthogonal to all gradients; where they cancel it is all there is.
    x = x + cut_off(precision) * (1.0 - cosine @ x)
    weights = torch.where(lengths > 0, x / floored(lengths), 0.0)
    total = weights.sum()
    usable = total.abs() > 1e-12 * weights.abs().sum()
    return torch.where(usable, weights / torch.where(usable, total, 1.0), 0.0)


@register("imtl_g")
class IMTLG(GramianSMTO):
    """IMTL-G (Liu et al. 2021, eq. 6): equal projections on all unit gradients, weights of sum 1.

    w is proportional to C^+ 1 / |g|, with C the matrix of cosines (the authors solve with the first
    task as reference, and add 1e-6 I to the matrix). For independent gradients that is G^+ |g| as
    in Quinton & Rey's generalisation; for dependent ones ours does not depend on the gradients'
    lengths. Zero gradients get weight 0. Weights may be negative and are unbounded when the
    gradients nearly cancel; they are equal, but for the lengths, if C 1 is zero.
    """

    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        return equal_projections(gramian, self.precision)


@register("imtl")
class IMTL(LearnedSMTO, GramianSMTO):
    """IMTL (Liu et al. 2021, Algorithm 1): IMTL-G on the gradients of the losses scaled by IMTL-L.

    Weights e^s a, with a the IMTL-G weights of the scaled gradients e^(s_i) g_i. IMTL-G's direction
    depends on gradient lengths by its length only, so s changes just that. s as in `imtl_l`; heads
    get the gradients of the scaled losses' mean, as there (Kurin et al.'s code).
    """

    wants_positive_losses = True
    scale: Tensor
    """[m] e^s of the last solve."""

    def __init__(self, num_tasks: int, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        self.register_buffer("scale", torch.ones(num_tasks, dtype=torch.float64))

    def head_weights(self, weights: Tensor | None) -> Tensor:
        return self.scale / self.num_tasks

    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        losses = self.observe(losses)
        scale = self.scale.copy_(self.parameter.exp())
        self.descend(scale * losses - 1.0)
        return scale * equal_projections(gramian * scale * scale[:, None], self.precision)
