"""Methods around the smallest vector in the convex hull of the task gradients."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from mtrl.smto.base import GramianSMTO
from mtrl.smto.registry import register
from mtrl.smto.solvers import convex, cosines, cut_off, floored, kernels, min_norm, ridge

Normalisation = Literal["none", "l2", "loss", "loss+"]


class _MinNorm(GramianSMTO):
    normalisation: Normalisation
    raw = False

    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        cosine, lengths = cosines(gramian)
        lengths = floored(lengths)
        by_loss, by_length = self.normalisation.startswith("loss"), self.normalisation[-1] in "2+"
        scales = self.observe(losses) if by_loss else torch.ones_like(lengths)
        scales = scales * lengths if by_length else scales
        # y_i = a_i |g_i| / s_i: the simplex becomes the plane sum_i y_i s_i / |g_i| = 1.
        plane = scales / lengths
        plane = plane / plane.max()
        y = min_norm(convex(cosine, ridge(self.precision, self.num_tasks)), plane)

        hull = plane * y / (plane @ y)  # a

        def gap() -> Tensor:
            products = cosine @ (hull / plane) / plane
            return (hull @ products - products.min()) * plane.min().square()

        self._certificates["duality_gap"] = gap
        weights = y / lengths
        return hull if self.raw else weights / weights.sum()


@register("mgda")
class MGDA(_MinNorm):
    """MGDA (Desideri 2012; Sener & Koltun 2018, eq. 3): the min-norm point of the convex hull.

    Minimises |sum_i a_i g_i / s_i|^2 over the simplex, s by `normalisation`: none: 1; l2: |g_i|;
    loss: l_i; loss+: l_i |g_i|. The direction is that point, scaled so that the weights a_i / s_i
    of the g_i sum to 1: a common descent direction on the mean scale. (Kurin et al. leave the l2
    version at a norm of at most 1 in RL.) With l2 it is EDM. raw: the weights of the g_i are a, as
    in the code of MGDA-UB; the direction may then oppose a task. Only the loss normalisations need
    positive losses. Certificate: the duality gap of that problem, relative to the largest
    |g_i / s_i|^2. A zero gradient makes the direction zero.
    """

    def __init__(
        self,
        num_tasks: int,
        *,
        normalisation: Normalisation = "none",
        raw: bool = False,
        **options: Any,
    ) -> None:
        if normalisation not in ("none", "l2", "loss", "loss+"):
            raise ValueError(
                f"normalisation must be none, l2, loss or loss+, not {normalisation!r}"
            )
        self.normalisation, self.raw = normalisation, raw
        self.wants_positive_losses = normalisation.startswith("loss")
        super().__init__(num_tasks, **options)


@register("edm", "central_direction")
class EDM(_MinNorm):
    """EDM (Katrutsa et al. 2020): the min-norm point of the unit gradients, on the mean scale.

    d = gamma sum_i a_i g_i / |g_i|, gamma = 1 / sum_i(a_i / |g_i|): all tasks in the hull's
    support have the same cosine with d. Also called the central direction (Nakamura et al. 2022).
    When a gradient is zero, so is the direction. Certificate as in MGDA.
    """

    normalisation = "l2"


@register("cdtt", "task_tensioner")
class CDTT(EDM):
    """Central direction with task tensioners (Nakamura, Grassi & Wolf 2022; Gama & Grassi's CDTT).

    The EDM direction d is pulled to every g_i by a unit vector times the task's tension
    t_i = alpha / (1 + exp(e - e x_i)) + 1 - alpha, x_i = (mean |g_i| of the last `window` steps) /
    (the same, one step earlier) + log10 l_i: tasks that diverge or have large losses pull more.
    Then, task by task, where the result opposes g_i it is moved towards g_i until orthogonal.
    Each pull and correction mixes the weights with a task's own, so they keep summing to 1. EDM
    alone until window + 1 steps have been seen. alpha in [0, 1]: 0 makes all tensions 1; our
    default, 0.5, is a guess; the window of 10 steps is that of the public code. Tensions pull with
    a length of at most 1 whatever the gradients' scale. A zero gradient makes the direction zero.
    """

    wants_positive_losses = True
    history: Tensor

    def __init__(
        self, num_tasks: int, *, alpha: float = 0.5, window: int = 10, **options: Any
    ) -> None:
        super().__init__(num_tasks, **options)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], not {alpha}")
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.alpha, self.window = alpha, window
        empty = torch.full((window + 1, num_tasks), torch.nan, dtype=torch.float64)
        self.register_buffer("history", empty)

    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        central = weights = super().solve(gramian, losses)
        lengths = floored(gramian.diagonal().clamp(min=0.0).sqrt())
        self.history.copy_(torch.cat([self.history[1:], lengths[None]]))
        growth = self.history[1:].sum(0) / self.history[:-1].sum(0)
        strain = growth + self.observe(losses).log10()
        tension = self.alpha * torch.sigmoid(math.e * (strain - 1.0)) + 1.0 - self.alpha
        tension = tension.nan_to_num(nan=0.0)  # the window is not full yet

        # The step towards g_i is t_i (g_i - d) / |g_i - d|; a task at d itself cannot pull. With
        # r = |g_i - d| / unit, 1 / r is replaced by r^3 / (r^4 + cut_off^2). Rounding makes one or
        # two eps of r^2 = 0, which then pull by less than eps^1/2 / 3: little beside 1 / m.
        products = gramian @ weights
        squares = (gramian.diagonal() + weights @ products).clamp(min=1e-300)
        distance = (1.0 - 2.0 * products / squares).clamp(min=0.0)
        pull = tension * distance**1.5 / (distance.square() + cut_off(self.precision) ** 2)
        pull = pull / squares.sqrt()
        weights = weights + pull - pull.sum() * weights
        weights = corrected(gramian, weights)
        return torch.where((gramian.diagonal() > 0).all(), weights, central)


def corrected(gramian: Tensor, weights: Tensor) -> Tensor:
    """Weights [m] of a direction that task by task is moved towards g_i until orthogonal to it,
    where it opposes g_i."""
    if kernel := kernels(gramian):
        return kernel.correct(gramian, weights)
    for i in range(len(gramian)):
        product, square = gramian[i] @ weights, gramian[i, i]
        share = -product / (square - product).clamp(min=1e-300)
        share = torch.where(product < 0, share, 0.0)
        weights = weights * (1.0 - share)
        weights[i] += share
    return weights
