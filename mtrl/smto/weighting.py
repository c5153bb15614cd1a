"""Methods with constant weights: unitary scalarisation and fixed weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtrl.smto.base import SMTO
from mtrl.smto.registry import register


def _like(losses: Tensor | None, gramian: Tensor | None) -> Tensor:
    given = losses if losses is not None else gramian
    if given is None:
        raise ValueError("weights() needs losses or a Gramian")
    return given


@register("unitary", "mean")
class Unitary(SMTO):
    """Plain mean of the task losses (Kurin et al. 2022, eq. 2, divided by m)."""

    needs = "losses"
    capturable = True
    compilable = True

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        given = _like(losses, gramian)
        return given.new_full((self.num_tasks,), 1.0 / self.num_tasks)


@register("fixed")
class Fixed(SMTO):
    """Given constant weights, normalised to mean 1 over tasks, then the mean.

    Uniform weights equal `unitary`. Raises ValueError unless `weights` has one finite,
    non-negative entry per task and a positive sum.
    """

    needs = "losses"
    capturable = True
    compilable = True
    given: Tensor

    def __init__(self, num_tasks: int, *, weights: Sequence[float] = ()) -> None:
        super().__init__(num_tasks)
        given = torch.as_tensor(weights, dtype=torch.float64)
        if given.shape != (num_tasks,) or not (given.isfinite() & (given >= 0)).all():
            raise ValueError(f"weights must be {num_tasks} finite non-negative numbers: {weights}")
        if given.sum() <= 0:
            raise ValueError("weights: at least one must be positive")
        self.register_buffer("given", given / given.sum(), persistent=False)

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        return self.given.to(_like(losses, gramian).dtype)
