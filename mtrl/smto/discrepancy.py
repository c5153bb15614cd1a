"""Weights that keep the weighted losses close to one another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mtrl.smto.base import LearnedSMTO
from mtrl.smto.registry import register


@register("ldc_mtl")
class LDCMTL(LearnedSMTO):
    """LDC-MTL (Xiao et al. 2025, the authors' code for CelebA): weighted losses stay close.

    With s = sigmoid(z), z learned from all 1, network and z descend
    sum_i s_i l_i / (sum_j s_j) + strength * sum_i |s_i l_i - s_{i+1} l_{i+1}|, the denominator held
    constant: the single-level form of a bilevel problem. Weights s_i (1 / sum_j s_j + strength *
    slope_i), slope_i in -2..2 from the signs of the two gaps: they depend on the order of the
    tasks, start at about 1 / m, and for a large strength can be negative. z has its own Adam, one
    step after each use. Not here: a router that computes z from the network's features, and losses
    that are first divided by their initial values, which the authors use for other data.
    """

    needs = "losses"
    capturable = True
    wants_positive_losses = True

    def __init__(self, num_tasks: int, *, strength: float = 0.01, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        if not strength >= 0:
            raise ValueError(f"strength must not be negative, but is {strength}")
        self.strength = strength
        self.parameter.fill_(1.0)

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        losses = self.observe(losses)
        share = self.parameter.sigmoid()
        signs = torch.sign(torch.diff(share * losses))
        slope = functional.pad(signs, (1, 0)) - functional.pad(signs, (0, 1))
        factor = 1.0 / share.sum() + self.strength * slope
        self.descend(factor * losses * share * (1.0 - share))
        return factor * share
