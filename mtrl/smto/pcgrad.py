"""Gradient projection."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.smto.base import RandomSMTO, register


@register("pcgrad")
class PCGrad(RandomSMTO):
    """PCGrad (Yu et al. 2020, Algorithm 1), as weights on the Gramian.

    g_i' starts as g_i; for every other task j in random order, if g_i'.g_j < 0:
    g_i' -= (g_i'.g_j / |g_j|^2) g_j. The direction is the MEAN of the g_i' (the paper sums; Kurin
    et al. 2022 average, as here). Each g_i' stays in the span of the original gradients, so its
    coefficients C[i] [m, m] and the Gramian suffice. Every task has its own order, as in the
    paper (some public code shares one); a zero g_j is skipped.
    """

    needs = "gramian"

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        if gramian is None:
            raise ValueError("pcgrad wants the Gramian")
        m = self.num_tasks
        order = torch.rand(m, m, generator=self.generator, device=self.generator.device)
        return self.project(gramian, order.argsort(dim=1))

    def project(self, gramian: Tensor, order: Tensor) -> Tensor:
        """Weights [m] for given orders [m, m]; row i: in which order task i meets the others."""
        m = self.num_tasks
        rows = torch.arange(m, device=gramian.device)
        norms = gramian.diagonal()
        coefficients = torch.eye(m, dtype=gramian.dtype, device=gramian.device)
        for j in order.unbind(1):  # m steps, all rows i at once
            dots = (coefficients * gramian[j]).sum(1)  # g_i' . g_j
            conflict = (dots < 0) & (norms[j] > 0) & (rows != j)
            scale = torch.where(
                conflict, dots / norms[j].clamp(min=torch.finfo(norms.dtype).tiny), 0.0
            )
            coefficients[rows, j] -= scale
        return coefficients.mean(0)
