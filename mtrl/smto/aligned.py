"""Independent component alignment."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.smto.base import GramianSMTO, register


@register("aligned_mtl", "aligned")
class AlignedMTL(GramianSMTO):
    """Aligned-MTL (Senushkin et al. 2023, Algorithm 1): the gradient matrix made orthogonal.

    With G = V L V^T, w = sqrt(l_min) V L^(-1/2) V^T 1/m: all singular values of the gradient
    matrix become its smallest one. Eigenvalues up to l_max m eps count as zero, eps that of
    float32, in which Gramians are usually computed. On the mean scale. The eigendecomposition
    makes CUDA devices wait for the host: the only method that does.
    """

    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        scaled = gramian / gramian.diagonal().max().clamp(min=1e-300)
        values, vectors = torch.linalg.eigh(scaled)
        largest = values[-1]
        kept = values > largest * self.num_tasks * torch.finfo(torch.float32).eps
        smallest = torch.where(kept, values, largest).amin().clamp(min=0.0)
        shrink = torch.where(kept, (smallest / torch.where(kept, values, 1.0)).sqrt(), 0.0)
        return vectors @ (shrink * vectors.mean(0))
