"""PopArt: critics that learn normalised values, whose scale moves without moving the values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtrl.losses import ScalarValue

SMALLEST_DEVIATION = 1e-4


class PopArtValue(ScalarValue):
    """PopArt (van Hasselt et al. 2016), a scale for every task (Hessel et al. 2019).

    Q = sigma n + mu, with n the critic's output and mu, sigma the moments of the task's targets y;
    the loss is (n - (y - mu) / sigma)^2. When the moments move, the last layer, of which every task
    has its own, is rescaled so that Q stays what it was, in the target critic too. The first batch
    sets them without that: a small task's layer would become as large as its rewards are small.
    Our moments are those of the targets before this update (the paper's include it).
    """

    per_task_head = True

    def __init__(
        self,
        num_tasks: int,
        rate: float,
        device: torch.device,
        ensemble: Literal["min", "mean"] = "min",
    ) -> None:
        """rate: share of the newest batch in the moments, once 1 / rate batches have been seen."""
        super().__init__(ensemble)
        self.rate = rate
        self.mean, self.square, self.batches = (
            torch.zeros(shape, dtype=torch.float64, device=device)
            for shape in (num_tasks, num_tasks, ())
        )
        self.square += 1.0

    @property
    def deviation(self) -> Tensor:
        """sigma [task], float64."""
        variance = self.square - self.mean.square()
        return variance.clamp(min=0.0).sqrt().clamp(min=SMALLEST_DEVIATION)

    def value(self, outputs: Tensor) -> Tensor:
        """Outputs [member, task, sample] -> Q [task, sample]."""
        mean, deviation = self.mean.float()[:, None], self.deviation.float()[:, None]
        return super().value(outputs * deviation + mean)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        # The first batch's moments are its own: one large step would fill Adam's second moments.
        new = self.batches == 0
        mean = torch.where(new, target.mean(-1), self.mean.float())[:, None]
        deviation = torch.where(new, target.std(-1, correction=0), self.deviation.float())
        normal = (target - mean) / deviation.clamp(min=SMALLEST_DEVIATION)[:, None]
        return super().loss(outputs, normal)

    def summary(self, loss: Tensor, target: Tensor) -> Tensor:
        """Mean and mean square of the targets, [task, 2]."""
        return torch.stack([target.mean(-1), target.square().mean(-1)], dim=-1)

    @torch.no_grad()
    def follow(self, summary: Tensor, critics: Iterable[nn.Module]) -> bool:
        """Move the moments, and the critics' last layers against them."""
        mean, deviation = self.mean.clone(), self.deviation
        self.batches += 1.0
        share = (1.0 / self.batches).clamp(min=self.rate)  # at first the mean of all batches
        self.mean.lerp_(summary[:, 0].double(), share)
        self.square.lerp_(summary[:, 1].double(), share)
        now, first = self.deviation, self.batches == 1
        ratio = torch.where(first, 1.0, deviation / now)[:, None, None].float()
        shift = torch.where(first, 0.0, (mean - self.mean) / now)[:, None, None].float()
        for critic in critics:
            head: Any = critic.get_submodule("body.head")
            head.weight.mul_(ratio)
            head.bias.mul_(ratio).add_(shift)
        return True

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "square": self.square, "batches": self.batches}
