"""Fixed weights chosen during the first part of the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor

from mtrl.smto.base import SMTO, Needs
from mtrl.smto.registry import register
from mtrl.smto.solvers import DOUBLE, floored, ridge, spectrum

Cost = Literal["equal_magnitude", "condition_number", "loss_scale"]
Combination = Literal["last", "mean", "linear"]


@register("autoscale")
class AutoScale(SMTO):
    """AutoScale (Yang et al. 2025): explore weights by a gradient metric, then keep them fixed.

    The first `exploration` share of `total_steps` calls is cut into `windows` equal windows (the
    rounding rest is left to the second phase). Each trains with the weights found in the one
    before, at first uniform ones. At its end the weights w >= 0, sum w = 1, minimise a `cost`:

    - equal_magnitude: w_i proportional to 1 / mean |g_i|;
    - loss_scale: w_i proportional to 1 / mean l_i (the Gramian is then never needed);
    - condition_number: that of diag(w) J, by Adam on log w for the window's mean Gramian.

    A task that had no gradient (or no loss) in a window gets the mean weight of the others.

    Then the windows' weights are combined (`last`, their `mean`, or a `linear` fit over windows,
    evaluated one window later and kept positive) and stay, at the cost of unitary scalarisation.
    The paper averages the metric itself, and its solver, number of windows and point of
    extrapolation are not published: here windows average lengths, losses or Gramians, and
    there are 10 windows. On the mean scale. total_steps counts calls of `weights`.
    """

    needs: Needs = "gramian"
    total: Tensor
    found: Tensor

    def __init__(
        self,
        num_tasks: int,
        *,
        total_steps: int = 10_000,
        exploration: float = 0.2,
        windows: int = 10,
        cost: Cost = "equal_magnitude",
        combination: Combination = "linear",
    ) -> None:
        if cost not in ("equal_magnitude", "condition_number", "loss_scale"):
            raise ValueError(
                f"cost must be equal_magnitude, condition_number or loss_scale, not {cost!r}"
            )
        if combination not in ("last", "mean", "linear"):
            raise ValueError(f"combination must be last, mean or linear, not {combination!r}")
        if not 0 < exploration <= 1:
            raise ValueError(f"exploration must be in (0, 1], not {exploration}")
        if windows < 1:
            raise ValueError(f"windows must be at least 1, not {windows}")
        self.length = int(total_steps * exploration) // windows
        if self.length < 1:
            raise ValueError(
                f"total_steps must give each of the {windows} windows at least one step in a share "
                f"of {exploration}, but is {total_steps}"
            )
        self.cost, self.combination, self.windows = cost, combination, windows
        self.wants_positive_losses = cost == "loss_scale"
        super().__init__(num_tasks)
        shape = (num_tasks, num_tasks) if cost == "condition_number" else (num_tasks,)
        uniform = torch.full((windows + 1, num_tasks), 1.0 / num_tasks, dtype=torch.float64)
        self.register_buffer("total", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("found", uniform)
        self.calls = 0
        self._choose_needs()

    @property
    def weighs_losses(self) -> bool:
        return True

    @property
    def exploring(self) -> bool:
        return self.calls < self.length * self.windows

    def _choose_needs(self) -> None:
        gramian = self.exploring and self.cost != "loss_scale"
        self.needs = "gramian" if gramian else "losses"

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        given = gramian if self.needs == "gramian" else losses
        if given is None:
            raise ValueError(f"AutoScale needs the {self.needs} in this step")
        weights = self.found[min(self.calls // self.length, self.windows)].clone()
        if self.exploring:
            self._collect(given.detach().double())
            self.calls += 1
            if self.calls % self.length == 0:
                self._close(self.calls // self.length, torch.finfo(given.dtype).eps)
            self._choose_needs()
        return weights

    def _collect(self, given: Tensor) -> None:
        if self.cost == "loss_scale":
            self.total += self.observe(given)
        elif self.cost == "equal_magnitude":
            self.total += given.diagonal().clamp(min=0.0).sqrt()
        else:
            self.total += given / given.diagonal().max().clamp(min=1e-300)

    def _close(self, window: int, precision: float) -> None:
        """Set the weights of the next window, or of the second phase, from this window's sums."""
        if self.cost == "condition_number":
            found, weights = self.total.diagonal(), best_conditioned(self.total, precision)
        else:
            found, weights = self.total, 1.0 / floored(self.total)
        # A task without a gradient in this window would get all the weight: it gets the mean.
        exists = found > 0
        mean = torch.where(exists, weights, 0.0).sum() / exists.sum().clamp(min=1)
        weights = torch.where(exists, weights, torch.where(exists.any(), mean, 1.0))
        self.found[window] = weights / weights.sum()
        self.total.zero_()
        if window == self.windows:
            self.found[window] = self._combined(self.found[1:])

    def _combined(self, found: Tensor) -> Tensor:
        if self.combination == "last" or len(found) == 1:
            return found[-1]
        mean = found.mean(0)
        if self.combination == "mean":
            return mean
        time = torch.arange(len(found), dtype=found.dtype, device=found.device)
        time = time - time.mean()
        slope = (time @ found) / (time @ time)
        weights = mean + slope * (time[-1] + 1.0)
        weights = torch.maximum(weights, 0.1 * found.amin(0))
        return weights / weights.sum()

    @property
    def capturable(self) -> bool:
        return not self.exploring

    def start_again(self, fresh: Self) -> None:
        """Nothing: a run explores once, and keeps what it has found."""

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {"calls": self.calls, "length": self.length}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        super().set_extra_state(state)
        self.calls = state["calls"]
        self.length = state["length"]  # a run that is made longer does not explore again
        self._choose_needs()


def best_conditioned(gramian: Tensor, precision: float = DOUBLE, iterations: int = 200) -> Tensor:
    """Weights [m] that make the condition number of diag(w) G diag(w) small; sum is not fixed.

    Adam on log w from equal lengths, with the exact derivative 2 (v_max^2 - v_min^2) of
    log(l_max / l_min), l_min the smallest nonzero one; the best iterate.
    """
    lengths = floored(gramian.diagonal().clamp(min=0.0).sqrt())
    log_weights = -lengths.log()
    shift, moment, square = (torch.zeros_like(lengths) for _ in range(3))
    blur = ridge(precision, len(gramian))  # far above what rounding makes of a zero gradient
    best, best_cost = shift, torch.full_like(shift[0], torch.inf)
    for step in range(1, iterations + 1):
        scale = (log_weights + shift).exp()
        values, vectors, inverse = spectrum(gramian * scale * scale[:, None], precision)
        largest, lowest = inverse.max(0)
        cost = (values[-1].clamp(min=1e-300) * largest.clamp(min=1e-300)).log()
        best = torch.where(cost < best_cost, shift, best)
        best_cost = torch.minimum(cost, best_cost)
        gradient = 2.0 * (
            vectors[:, -1].square() - vectors.index_select(1, lowest[None])[:, 0] ** 2
        )
        moment = 0.9 * moment + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient.square()
        rate = 0.1 * (1.0 - (step - 1) / iterations)
        size = (square / (1.0 - 0.99**step)).sqrt() + blur
        update = (moment / (1.0 - 0.9**step)) / size
        shift = shift - rate * update
    return (log_weights + best).exp()
