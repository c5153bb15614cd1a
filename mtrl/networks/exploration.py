"""The random part of acting while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Exploration:
    """Noise of the policy's actions, and the uniform actions of the warm-up, from one stream."""

    def __init__(self, shape: Sequence[int], seed: int, longest: int, device: torch.device) -> None:
        """shape: [task, env, action]. longest: steps for which an environment keeps a noise at
        most; 1 = fresh noise at every step.

        Their number k is drawn from Zeta(2), P(k) ~ 1 / k^2, up to the longest (FlashSAC, 2026).
        """
        self.generator = torch.Generator(device).manual_seed(seed)
        self.shape, self.longest, self.device = tuple(shape), longest, device
        self._noise = torch.zeros(self.shape, device=device)
        self._left = torch.zeros(*self.shape[:-1], 1, dtype=torch.int64, device=device)
        """[task, env, 1] steps for which the noise is still kept."""
        shares = 1.0 / torch.arange(1, longest + 1, dtype=torch.float64).square()
        cumulative = (shares / shares.sum()).cumsum(0)
        self._cumulative = cumulative[:-1].to(device)  # the last is 1, which no draw reaches

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Standard normal, [task, ..., action]; of this object's shape where it is kept."""
        fresh = torch.randn(shape, generator=self.generator, device=self.device)
        if self.longest == 1:
            return fresh
        uniform = torch.rand(
            self._left.shape, generator=self.generator, device=self.device, dtype=torch.float64
        )
        steps = 1 + torch.searchsorted(self._cumulative, uniform, right=True)
        ended = self._left == 0
        self._noise.copy_(torch.where(ended, fresh, self._noise))
        self._left.copy_(torch.where(ended, steps, self._left) - 1)
        return self._noise

    def uniform(self) -> Tensor:
        """[task, env, action] in [-1, 1]."""
        uniform = torch.rand(self.shape, generator=self.generator, device=self.device)
        return 2.0 * uniform - 1.0

    def state_dict(self) -> dict[str, Tensor]:
        """What is kept beside the generator's stream."""
        return {} if self.longest == 1 else {"noise": self._noise, "left": self._left}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
