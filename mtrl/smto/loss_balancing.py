"""Task weights from the losses alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtrl.smto.base import SMTO, LearnedSMTO
from mtrl.smto.registry import register

ROUNDING = 1e-5
"""Of losses, relative: a hundred times float32's, so that it moves no weight by more than 1%."""


@register("uw", "uncertainty_weighting")
class UncertaintyWeighting(LearnedSMTO):
    """Uncertainty Weighting (Kendall et al. 2018, Section 3.2): learned task variances.

    Minimises sum_i e^(-s_i) l_i / 2 + s_i / 2 over s = log sigma^2 too, from s = 0; the optimum is
    e^s = l. Weights e^(-s) / m: at first those of `unitary` (the factor 1/2 is left out), later
    about 1 / (m l), not on the mean scale. s has its own Adam, one step after each use, instead of
    being one of the network's parameters.
    """

    needs = "losses"
    capturable = True
    wants_positive_losses = True

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        losses = self.observe(losses)
        precision = torch.exp(-self.parameter)
        self.descend(0.5 - 0.5 * precision * losses)
        return precision / self.num_tasks


@register("imtl_l")
class IMTLL(LearnedSMTO):
    """IMTL-L (Liu et al. 2021, Section 3.2): learned scales that make all scaled losses equal.

    Minimises sum_i e^(s_i) l_i - s_i over s too, from s = 0; the optimum is e^s = 1 / l. Weights
    e^s / m, later about 1 / (m l), not on the mean scale. s has its own Adam, one step after each
    use, instead of being one of the network's parameters.
    """

    needs = "losses"
    capturable = True
    wants_positive_losses = True

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        losses = self.observe(losses)
        scale = self.parameter.exp()
        self.descend(scale * losses - 1.0)
        return scale / self.num_tasks


@register("si", "scale_invariant")
class ScaleInvariant(SMTO):
    """Scale-invariant loss (1/m) sum_i log l_i, the baseline of Navon et al. 2022 (Section 5).

    Weights 1 / (m l): the direction does not change when a loss is multiplied by a constant. Not
    on the mean scale. Losses below 1e-8 count as 1e-8.
    """

    needs = "losses"
    capturable = True
    wants_positive_losses = True

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        return 1.0 / (self.num_tasks * self.observe(losses))


@register("gls", "geometric_loss")
class GeometricLoss(SMTO):
    """Geometric loss strategy (Chennupati et al. 2019, eq. 2): the geometric mean of the losses.

    Weights (prod_j l_j)^(1/m) / (m l_i): those of `si` times the geometric mean itself. With equal
    losses they are 1/m; otherwise they are not on the mean scale. Losses below 1e-8 count as 1e-8.
    """

    needs = "losses"
    capturable = True
    wants_positive_losses = True

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        losses = self.observe(losses)
        return losses.log().mean().exp() / (self.num_tasks * losses)


@register("dwa", "dynamic_weight_average")
class DynamicWeightAverage(SMTO):
    """Dynamic Weight Average (Liu et al. 2019, eq. 7): more weight for losses that fall slowly.

    w = softmax(r / T), r = mean loss of the last window / of the window before it; uniform until
    two windows are complete. The weights sum to 1 (the paper: m). `window`: steps per average, for
    the paper's epoch; temperature: the paper's T. Losses that can be negative are shifted as those
    of others, both windows by the same bound.
    """

    needs = "losses"
    capturable = True
    wants_positive_losses = True
    total: Tensor
    """Sum of this window's losses, not shifted: what they are shifted by may change."""
    last: Tensor
    """Mean of the last complete window, not shifted."""
    ratio: Tensor
    count: Tensor

    def __init__(self, num_tasks: int, *, temperature: float = 2.0, window: int = 1000) -> None:
        super().__init__(num_tasks)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.temperature, self.window = temperature, window
        nothing = torch.full((num_tasks,), torch.nan, dtype=torch.float64)
        self.register_buffer("total", torch.zeros_like(nothing))
        self.register_buffer("last", nothing)
        self.register_buffer("ratio", torch.ones_like(nothing))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        self.observe(losses)
        assert losses is not None  # or `observe` has raised
        weights = (self.ratio / self.temperature).softmax(0)
        self.total += losses.detach().double()
        self.count += 1.0
        complete = self.count == self.window
        mean = self.total / self.count
        ratio = (self.shift(mean) / self.shift(self.last)).nan_to_num(nan=1.0)  # the first window
        self.ratio.copy_(torch.where(complete, ratio, self.ratio))
        self.last.copy_(torch.where(complete, mean, self.last))
        self.total *= ~complete
        self.count *= ~complete
        return weights


@register("famo")
class FAMO(LearnedSMTO):
    """FAMO (Liu et al. 2023, Algorithm 1): logits that slow down the fastest improving tasks.

    z = softmax(xi); weights c z / l with c = 1 / sum(z / l), so they sum to 1. xi follows
    delta = log l_before - log l_after, of one batch before and after the step, through the softmax,
    with Adam and the weight decay `decay` (the paper's gamma). Costs one more forward. Differences:
    the lower bound of each loss is tracked, not given; c divides the weights as in the paper (the
    authors' code multiplies the loss by it).
    """

    needs = "losses"
    capturable = True
    wants_positive_losses = True
    wants_losses_after = True
    before: Tensor
    """[m] losses of this step, not shifted: what they are shifted by may change."""

    def __init__(
        self, num_tasks: int, *, lr: float = 0.025, decay: float = 1e-3, **options: Any
    ) -> None:
        super().__init__(num_tasks, lr=lr, **options)
        if decay < 0:
            raise ValueError(f"decay must not be negative, but is {decay}")
        self.decay = decay
        self.register_buffer("before", torch.ones(num_tasks, dtype=torch.float64))
        self._waits = False

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        if self._waits:
            raise RuntimeError("FAMO learns from the losses after a step: call after_step(losses)")
        positive = self.observe(losses)
        assert losses is not None  # or `observe` has raised
        self.before.copy_(losses)
        self._waits = True
        weights = self.parameter.softmax(0) / positive
        return weights / weights.sum()

    def after_step(self, losses: Tensor) -> None:
        after = self.observe(losses)
        share = self.parameter.softmax(0)
        gain = self.shift(self.before).log() - after.log()
        self.descend(share * (gain - share @ gain) + self.decay * self.parameter)
        self._waits = False


class _Scalarisation(SMTO):
    """One number made of all losses, by a preference among the tasks and an ideal point."""

    needs = "losses"
    capturable = True
    preference: Tensor
    """[m] mean 1."""
    ideal: Tensor

    def __init__(
        self, num_tasks: int, *, preference: Sequence[float] = (), ideal: Sequence[float] = ()
    ) -> None:
        super().__init__(num_tasks)
        weight = torch.as_tensor(preference or [1.0] * num_tasks, dtype=torch.float64)
        point = torch.as_tensor(ideal or [0.0] * num_tasks, dtype=torch.float64)
        if weight.shape != (num_tasks,) or not (weight.isfinite() & (weight > 0)).all():
            raise ValueError(f"preference must be {num_tasks} positive numbers: {preference}")
        if point.shape != (num_tasks,) or not point.isfinite().all():
            raise ValueError(f"ideal must be {num_tasks} finite numbers: {ideal}")
        self.register_buffer("preference", weight / weight.mean(), persistent=False)
        self.register_buffer("ideal", point, persistent=False)


@register("stch", "smooth_tchebycheff")
class SmoothTchebycheff(_Scalarisation):
    """Smooth Tchebycheff scalarisation (Lin et al. 2024, eq. 8): a smooth maximum of the losses.

    Gradient weights of mu log sum_i exp(lambda_i (l_i - z_i) / mu): lambda softmax(lambda (l - z)
    / mu). For mu -> 0 only the largest loss counts, for mu -> infinity all alike. mu has the unit
    of the losses. preference: lambda [m], normalised to mean 1 (default: all 1, the weights then
    sum to 1); ideal: z [m] (default 0). Losses of any sign; no warm-up and no logarithm of the
    losses, which the authors' supervised code has.
    """

    def __init__(self, num_tasks: int, *, mu: float = 1.0, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        if not mu > 0:
            raise ValueError(f"mu must be positive, not {mu}")
        self.mu = mu

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        losses = self.observe(losses)
        return self.preference * (self.preference * (losses - self.ideal) / self.mu).softmax(0)


@register("pbi", "boundary_intersection")
class BoundaryIntersection(_Scalarisation):
    """PBI (Zhang & Li 2007, MOEA/D): the mean of the losses, and how far they are from a line.

    Gradient weights of d1 + theta d2, where d1 is the length of l - z along the line of the
    preference and d2 its distance from it, over the sum of the line's unit vector: with equal
    preferences (1 + theta (l_i - mean) / std) / m, which sum to 1. On the line they are the
    preference's own. z: `ideal` [m] (default 0). Losses of any sign. Where theta is larger than
    1 / (m - 1)^(1/2), tasks of small losses can get negative weights and lose what they learned:
    our default of 0.1 is not, up to 100 tasks (the paper, which has few objectives and takes no
    gradients: 5).
    """

    def __init__(self, num_tasks: int, *, theta: float = 0.1, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        if not theta >= 0:
            raise ValueError(f"theta must not be negative, but is {theta}")
        self.theta = theta

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        distance = self.observe(losses) - self.ideal
        line = self.preference / self.preference.norm()
        along = line @ distance
        across = distance - along * line
        # Losses on the line are off it by their rounding, whose direction means nothing.
        blur = ROUNDING * distance.norm()
        length = (across.square().sum() + blur.square()).sqrt().clamp(min=1e-300)
        return (line + self.theta * across / length) / line.sum()
