"""Independent component alignment."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.smto.base import GramianSMTO, register
from mtrl.smto.solvers import spectrum


@register("aligned_mtl", "aligned")
class AlignedMTL(GramianSMTO):
    """Aligned-MTL (Senushkin et al. 2023, Algorithm 1): the gradient matrix made orthogonal.

    With G = V L V^T, w = sqrt(l_min) V L^(-1/2) V^T 1/m: all singular values of the gradient
    matrix become its smallest one. Eigenvalues up to l_max m eps count as zero, as in the authors'
    code. On the mean scale. The eigendecomposition waits for a CUDA device.
    """

    capturable = False

    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        scaled = gramian / gramian.diagonal().max().clamp(min=1e-300)
        values, vectors, kept = spectrum(scaled)
        smallest = torch.where(kept, values, values[-1]).amin().clamp(min=0.0)
        shrink = torch.where(kept, (smallest / torch.where(kept, values, 1.0)).sqrt(), 0.0)
        return vectors @ (shrink * vectors.mean(0))
