"""Coordinate-wise random gradient dropping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtrl.smto.base import RandomSMTO
from mtrl.smto.registry import register


@register("graddrop", "gradient_sign_dropout")
class GradDrop(RandomSMTO):
    """GradDrop (Chen et al. 2020, Algorithm 1): per coordinate, only entries of one sign.

    With positive purity p = (1 + sum_i g_i / sum_i |g_i|) / 2 and u uniform in [0, 1], one per
    coordinate, the positive entries are kept if p > u, else the negative ones; a share `leak` of
    the dropped ones survives. The direction is the sum over tasks (expected: the sum of the
    gradients) divided by m. On the parameter gradients, as in Kurin et al. 2022 (who rescale the
    result to the norm of the plain sum; the paper drops gradients of activations).
    """

    needs = "jacobian"
    capturable = True

    def __init__(self, num_tasks: int, *, leak: float = 0.0, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        if not 0 <= leak <= 1:
            raise ValueError(f"leak must be in [0, 1], not {leak}")
        self.leak = leak

    def direction(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        total, size = jacobian.sum(0), _column_norms(jacobian)
        # Sums of the positive and of the negative entries; no [m, P] mask is needed.
        positive, negative = (0.5 * (total + size)).clamp(min=0.0), 0.5 * (total - size)
        u = torch.rand(
            total.shape, generator=self.generator, device=total.device, dtype=total.dtype
        )
        kept = torch.where(positive > u * size, positive, negative.clamp(max=0.0))
        return (self.leak * total + (1.0 - self.leak) * kept) / self.num_tasks

    def kept(self, jacobian: Tensor) -> Tensor:
        """The share of each entry [m, P] that a draw keeps: 1, or `leak`. `direction`, for callers
        that apply it to other gradients than those that decide."""
        size = _column_norms(jacobian)
        u = torch.rand(size.shape, generator=self.generator, device=size.device, dtype=size.dtype)
        positive = 0.5 * (jacobian.sum(0) + size) > u * size
        return torch.where(torch.where(positive, jacobian, -jacobian) > 0, 1.0, self.leak)


def _column_norms(jacobian: Tensor) -> Tensor:
    """sum_i |g_i| [P]. Row by row: torch's own norm over few long rows is twenty times slower."""
    size = jacobian[0].abs()
    row_size = torch.empty_like(size)
    for row in jacobian[1:]:
        size += torch.abs(row, out=row_size)
    return size


@register("graddrop_random", "sign_agnostic_graddrop")
class SignAgnosticGradDrop(RandomSMTO):
    """Sign-agnostic GradDrop (Kurin et al. 2022, Appendix D.3): each entry dropped at random.

    Each of the m x P entries is kept with probability 1 - p, whatever its sign. The direction is
    the sum divided by m (1 - p), so that the mean gradient is expected for every p in [0, 1).
    p is rounded to a multiple of 2^-16: an entry's fate takes 16 random bits, not a float; 8 where
    they suffice.
    """

    needs = "jacobian"
    capturable = True

    def __init__(self, num_tasks: int, *, p: float = 0.5, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        if not 0 <= p < 1:
            raise ValueError(f"p must be in [0, 1), not {p}")
        self.p = float(p)

    def direction(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        kind = torch.int8 if (self.p * 2**8).is_integer() else torch.int16
        values = 2 ** (8 * kind.itemsize)
        dropped = min(round(self.p * values), values - 1)
        columns = jacobian.shape[1]
        size = -(-columns * kind.itemsize // 8)
        words = torch.empty(size, dtype=torch.int64, device=jacobian.device)
        total = torch.zeros_like(jacobian[0])
        for row in jacobian:  # one mask at a time: m x P numbers are never stored
            bits = words.random_(-(2**63), None, generator=self.generator).view(kind)
            total.addcmul_(row, bits[:columns] >= dropped - values // 2)
        return total / (self.num_tasks * (1.0 - dropped / values))
