"""Fair bargaining between tasks: Nash-MTL and FairGrad."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtrl.smto.base import GramianSMTO
from mtrl.smto.registry import register
from mtrl.smto.solvers import balance, convex, cosines, ridge


class _Bargaining(GramianSMTO):
    """G w = w^(-1/alpha), over the tasks whose gradient is not zero; then a bound on |d|.

    With update_every above 1 the bound is that of the step that solves: reused weights are not
    clipped again.
    """

    alpha: float
    iterations: int

    def __init__(self, num_tasks: int, *, max_norm: float = 1.0, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        if not max_norm >= 0:
            raise ValueError(f"max_norm must not be negative, but is {max_norm}")
        self.max_norm = max_norm

    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        cosine, lengths = cosines(gramian)
        exists = lengths > 0
        largest = lengths.max()
        unit = torch.where(largest > 0, largest, 1.0)
        relative = torch.where(exists, lengths / unit, 1.0)
        # x_i = w_i |g_i|; a zero gradient is replaced by one orthogonal to all. The ridge bounds x
        # where gradients oppose each other exactly and w would be infinite.
        added = max(1e-8, ridge(self.precision, self.num_tasks))
        matrix = convex(cosine + torch.diag_embed((~exists).to(cosine)), added)
        exponent = 1.0 / self.alpha
        kappa = relative ** (exponent - 1.0)
        x = balance(matrix, kappa, self.alpha, self.iterations)
        self._certificates["residual"] = lambda: (
            ((matrix @ x) * x**exponent / kappa - 1.0).abs().max()
        )
        weights = torch.where(exists, x / relative, 0.0) * unit ** (-2.0 / (1.0 + exponent))
        if self.max_norm > 0:
            y = torch.where(exists, x, 0.0) * unit ** (1.0 - 2.0 / (1.0 + exponent))
            norm = (y @ (matrix @ y)).sqrt()  # of a d that cancels, more than rounding
            weights = weights * self.max_norm / norm.clamp(min=self.max_norm)
        return weights


@register("nash_mtl", "nash")
class NashMTL(_Bargaining):
    """Nash-MTL (Navon et al. 2022, Algorithm 1): the bargaining solution G w = 1 / w, w > 0.

    |d|^2 = m whatever the gradients' scale, then clipped to max_norm (0: never): with the default
    of 1 every direction has length 1, not the mean scale. Newton's method on the equations
    instead of the authors' sequence of convex programs on the CPU; the clip acts on d itself (in
    the public code a bound of 1 has no effect). Certificate: the largest |w_i (G w)_i - 1|.
    """

    alpha = 1.0
    iterations = 16


@register("fairgrad")
class FairGrad(_Bargaining):
    """FairGrad (Ban & Ji 2024, eq. 4): alpha-fair descent, G w = w^(-1/alpha), w > 0.

    alpha = 1 is Nash-MTL, large alpha tends to MGDA's max-min fairness. |d| = (sum w^(1 - 1/alpha))
    ^(1/2), clipped to max_norm (0: never); not the mean scale. Newton's method on the equations
    instead of SciPy's least squares. alpha in [0.5, 8]. Certificate: the largest
    |w_i^(1/alpha) (G w)_i - 1|.
    """

    iterations = 20

    def __init__(self, num_tasks: int, *, alpha: float = 2.0, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        if not 0.5 <= alpha <= 8:
            raise ValueError(f"alpha must be in [0.5, 8], not {alpha}")
        self.alpha = alpha
