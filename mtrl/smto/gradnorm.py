"""Gradient normalisation with learned task weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtrl.smto.base import GramianSMTO, LearnedSMTO
from mtrl.smto.registry import register
from mtrl.smto.solvers import floored, ridge


@register("gradnorm")
class GradNorm(LearnedSMTO, GramianSMTO):
    """GradNorm (Chen et al. 2018, Algorithm 1): weights that balance the tasks' gradient norms.

    Learns w, from all 1, to minimise sum_i | w_i |g_i| - mean_j(w_j |g_j|) r_i^alpha |, the target
    held constant; r_i is l_i / (first l_i), relative to its mean over tasks. After each Adam step w
    is kept above 1e-3 and scaled to sum m, and the direction is the weighted mean. Norms are of
    all shared parameters (the paper: of the last shared layer), relative to their mean; a norm that
    equals its target but for rounding is left where it is. Losses that can be negative are shifted
    as those of others, the first ones by the same bound.
    """

    wants_positive_losses = True
    weighs_losses = True
    initial: Tensor
    """[m] the first losses, not shifted: what they are shifted by may change."""

    def __init__(
        self, num_tasks: int, *, alpha: float = 1.5, lr: float = 0.025, **options: Any
    ) -> None:
        super().__init__(num_tasks, lr=lr, **options)
        self.alpha = alpha
        self.parameter.fill_(1.0)
        unknown = torch.full((num_tasks,), torch.nan, dtype=torch.float64)
        self.register_buffer("initial", unknown)

    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        positive = self.observe(losses)
        assert losses is not None  # or `observe` has raised
        weights = self.parameter / self.num_tasks
        self.initial.copy_(torch.where(self.initial.isnan(), losses.detach(), self.initial))
        progress = positive / self.shift(self.initial)
        lengths = floored(gramian.diagonal().clamp(min=0.0).sqrt())
        lengths = lengths / lengths.mean()
        norms = self.parameter * lengths
        target = norms.mean() * (progress / progress.mean()) ** self.alpha
        missed = norms - target
        apart = missed.abs() > ridge(self.precision) * target
        self.descend(lengths * torch.sign(missed) * apart)
        self.parameter.clamp_(min=1e-3)
        self.parameter.mul_(self.num_tasks / self.parameter.sum())
        return weights
