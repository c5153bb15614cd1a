"""Independent component alignment."""

from __future__ import annotations

from torch import Tensor

from mtrl.smto.base import GramianSMTO
from mtrl.smto.registry import register
from mtrl.smto.solvers import spectrum


@register("aligned_mtl", "aligned")
class AlignedMTL(GramianSMTO):
    """Aligned-MTL (Senushkin et al. 2023, Algorithm 1): the gradient matrix made orthogonal.

    With G = V L V^T, w = sqrt(l_min) V L^(-1/2) V^T 1/m: all singular values of the gradient
    matrix become its smallest one. Eigenvalues that rounding cannot tell from zero count as zero,
    with a smooth transition (the authors': a jump at l_max m eps). On the mean scale.
    """

    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        scaled = gramian / gramian.diagonal().max().clamp(min=1e-300)
        _, vectors, inverse = spectrum(scaled, self.precision)
        shrink = (inverse / inverse.max().clamp(min=1e-300)).sqrt()
        return vectors @ (shrink * vectors.mean(0))
