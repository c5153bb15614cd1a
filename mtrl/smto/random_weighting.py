"""Random task weights, blind to losses and gradients."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from mtrl.smto.base import RandomSMTO
from mtrl.smto.registry import register


class _RandomWeights(RandomSMTO):
    needs = "losses"
    capturable = True

    @abstractmethod
    def draw(self) -> Tensor:
        """Fresh weights [m], float64, on the generator's device."""

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        return self.draw()

    def _empty(self) -> Tensor:
        return torch.empty(self.num_tasks, dtype=torch.float64, device=self.generator.device)


@register("rlw_normal", "rlw")
class RLWNormal(_RandomWeights):
    """Random Loss Weighting (Lin et al. 2022, Section 3.1): softmax of standard normal numbers.

    A fresh draw every step; the weights sum to 1 (Kurin et al. scale them to sum to m).
    """

    def draw(self) -> Tensor:
        return self._empty().normal_(generator=self.generator).softmax(0)


@register("rlw_dirichlet")
class RLWDirichlet(_RandomWeights):
    """Random Loss Weighting (Lin et al. 2022, Section 3.1): uniform on the simplex, Dirichlet(1).

    A fresh draw every step, as normalised exponential numbers; the weights sum to 1.
    """

    def draw(self) -> Tensor:
        exponential = self._empty().exponential_(generator=self.generator)
        return exponential / exponential.sum()


@register("rgd", "random_grad_drop")
class RandomGradDrop(_RandomWeights):
    """Random Grad Drop (Kurin et al. 2022, Proposition 4): each task kept with probability p.

    Weights are Bernoulli(p) / (p m): divided by p, which the paper does not, so that the expected
    direction is the mean gradient for every p in (0, 1].
    """

    def __init__(self, num_tasks: int, *, p: float = 0.5, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        if not 0 < p <= 1:
            raise ValueError(f"p must be in (0, 1], not {p}")
        self.p = p

    def draw(self) -> Tensor:
        kept = self._empty().bernoulli_(self.p, generator=self.generator)
        return kept / (self.p * self.num_tasks)
