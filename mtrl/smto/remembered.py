"""Methods that remember gradients: a number for each parameter, or for each task and parameter."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtrl.smto.base import SMTO
from mtrl.smto.registry import register
from mtrl.smto.source import Chosen, Form, Source


class _Remembering(SMTO):
    """A method whose state is as long as the Jacobian's rows, and made by the first step."""

    needs = "jacobian"
    memory: Tensor
    """[m, P] or [P], in the Jacobian's dtype; empty before the first step."""

    def __init__(self, num_tasks: int, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        # Its size is the network's, so the state's shapes cannot be checked: it is extra state.
        self.register_buffer("memory", torch.zeros(num_tasks, 0), persistent=False)

    @property
    def is_empty(self) -> bool:
        return self.memory.numel() == 0

    @property
    def capturable(self) -> bool:
        return not self.is_empty

    def make_room(self, like: Tensor) -> None:
        """Zeros of its shape, before the first step."""
        if self.is_empty:
            self.memory = torch.zeros_like(like)

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {"memory": self.memory}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        super().set_extra_state(state)
        self.memory = state["memory"].to(self.memory.device, copy=True)


class _RowWeights(_Remembering):
    """Its direction is a weighted sum of the rows, and its weights need the rows."""

    def choose(self, source: Source[Form]) -> Chosen[Form]:
        weights, direction = self.weigh(source.jacobian())
        return Chosen(source.shaped(direction), weights, None)

    @abstractmethod
    def weigh(self, jacobian: Tensor) -> tuple[Tensor, Tensor]:
        """J [m, P] -> weights w [m], direction w J [P]."""


@register("db_mtl")
class DBMTL(_Remembering):
    """DB-MTL (Lin et al. 2023, Algorithm 1): logarithms of the losses, gradients of one length.

    Gradients g_i / l_i of log l_i are averaged over steps, b = beta_k b + (1 - beta_k) g / l from
    b = 0 with beta_k = beta / k^sigma, and scaled up to the longest: the direction is the MEAN of
    b_i max_j |b_j| / |b_i| (the paper sums). Not on the mean scale, but on that of gradients of log
    l. With sigma = 0, as in the authors' library, old gradients outweigh new ones where losses
    fall fast; our default lets the average fade. Remembers m x P numbers.
    """

    wants_positive_losses = True
    count: Tensor
    factors: Tensor
    """[m] 1 / (m l) of this step: heads get the gradients of the mean of log l."""

    def __init__(
        self, num_tasks: int, *, beta: float = 0.9, sigma: float = 0.5, **options: Any
    ) -> None:
        super().__init__(num_tasks, **options)
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be in [0, 1), not {beta}")
        if not sigma >= 0:
            raise ValueError(f"sigma must not be negative, but is {sigma}")
        self.beta, self.sigma = beta, sigma
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        even = torch.full((num_tasks,), 1.0 / num_tasks, dtype=torch.float64)
        self.register_buffer("factors", even)

    def head_weights(self, weights: Tensor | None) -> Tensor:
        return self.factors

    def direction(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        losses = self.observe(losses)
        self.factors.copy_(1.0 / (self.num_tasks * losses))
        self.make_room(jacobian)
        self.count += 1.0
        kept = self.beta / self.count**self.sigma
        self.memory.mul_(kept.to(jacobian.dtype))
        self.memory.addcmul_(jacobian, ((1.0 - kept) / losses).to(jacobian.dtype)[:, None])
        lengths = torch.stack([row.norm() for row in self.memory])
        scale = torch.where(lengths > 0, lengths.max() / lengths, 0.0) / self.num_tasks
        return scale @ self.memory


@register("excess_mtl")
class ExcessMTL(_RowWeights):
    """ExcessMTL (He et al. 2024, Algorithm 1): more weight for tasks far from convergence.

    The excess risk of task i is estimated by e_i = g_i^T H_i^-1 g_i, H_i the diagonal root of the
    sum of its squared gradients (eqs. 6-7). Weights w, from 1/m, are multiplied by exp(step_size
    e_i / (first e_i)) and normalised at every step but the first. The first e_i is the first that
    is not zero (the paper: a mean over the first epochs; the authors' code: that of the first step,
    as here). On the mean scale (the authors: weights sum to m). Remembers m x P numbers.
    """

    weighs_losses = True
    log_weights: Tensor
    first: Tensor

    def __init__(self, num_tasks: int, *, step_size: float = 0.01, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        if not step_size > 0:
            raise ValueError(f"step_size must be positive, not {step_size}")
        self.step_size = step_size
        zeros = torch.zeros(num_tasks, dtype=torch.float64)
        self.register_buffer("log_weights", zeros.log_softmax(0))
        self.register_buffer("first", zeros)

    def weigh(self, jacobian: Tensor) -> tuple[Tensor, Tensor]:
        self.make_room(jacobian)
        excess = []
        for row, squares in zip(jacobian, self.memory, strict=True):  # no second J at a time
            squares.addcmul_(row, row)
            share = row.square() / squares.sqrt()
            excess.append(share.nan_to_num_(nan=0.0).sum(dtype=torch.float64))  # 0 / 0
        found = torch.stack(excess)
        begun = self.first > 0
        ratio = torch.where(begun, found / torch.where(begun, self.first, 1.0), 0.0)
        self.first.copy_(torch.where(begun, self.first, found))
        self.log_weights.copy_((self.log_weights + self.step_size * ratio).log_softmax(0))
        weights = self.log_weights.exp()
        return weights, weights.to(jacobian.dtype) @ jacobian


@register("modo")
class MoDo(_RowWeights):
    """MoDo (Chen et al. 2023, Algorithm 1): MGDA's weights by single steps, double sampling.

    w, from 1/m, becomes the projection of w - gamma (J' J^T w + rho w) onto the simplex, J and J'
    the gradients of two mini-batches, so that their noise does not bias the step. Approximated: J'
    is the Jacobian of this step and J that of the step BEFORE, at parameters one step older, which
    saves the second and third backward; the direction is w J' (the paper: of a third mini-batch).
    So J^T w is the direction before, and these P numbers are all that is remembered.
    gamma has the unit of 1 / |g|^2: the direction follows the gradients' scale, the speed of w does
    not. On the mean scale. gamma and rho are the defaults of LibMTL.
    """

    shares: Tensor

    def __init__(
        self, num_tasks: int, *, gamma: float = 1e-3, rho: float = 0.1, **options: Any
    ) -> None:
        super().__init__(num_tasks, **options)
        if not gamma > 0:
            raise ValueError(f"gamma must be positive, not {gamma}")
        if not rho >= 0:
            raise ValueError(f"rho must not be negative, but is {rho}")
        self.gamma, self.rho = gamma, rho
        uniform = torch.full((num_tasks,), 1.0 / num_tasks, dtype=torch.float64)
        self.register_buffer("shares", uniform)

    def weigh(self, jacobian: Tensor) -> tuple[Tensor, Tensor]:
        if not self.is_empty:  # at first there is nothing to sample twice
            slope = (jacobian @ self.memory).double() + self.rho * self.shares
            self.shares.copy_(projected_on_simplex(self.shares - self.gamma * slope))
        direction = self.shares.to(jacobian.dtype) @ jacobian
        self.make_room(direction)
        self.memory.copy_(direction)
        return self.shares.clone(), direction


def projected_on_simplex(point: Tensor) -> Tensor:
    """The nearest w [m] >= 0 with sum 1 (Held, Wolfe & Crowder 1974)."""
    point = point - point.max()  # changes nothing, and keeps far points exact
    ordered = point.sort(descending=True).values
    count = torch.arange(1, len(point) + 1, device=point.device)
    level = (ordered.cumsum(0) - 1.0) / count
    # The k largest stay: their levels rise as long as the next one is above them.
    return (point - level.max()).clamp(min=0.0)
