"""What the critics' outputs mean and learn: numbers, distributions, or normalised numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtrl.config import Config

SMALLEST_STD = 1e-4


class Value(ABC):
    """What the critics' outputs [member, ...] mean, and what they learn."""

    outputs = 1
    """Of one member, for one state and action."""
    per_task_head = False
    """Whether the last layer has weights of its own for every task."""

    @abstractmethod
    def value(self, outputs: Tensor) -> Tensor:
        """Members' outputs [member, ...] -> one value [...]."""

    @abstractmethod
    def target(
        self,
        outputs: Tensor,
        rewards: Tensor,
        discounts: Tensor,
        bonus: Tensor,
        bound: Tensor | None = None,
    ) -> Tensor:
        """y from the outputs for the successors; bound: its upper clip."""

    @abstractmethod
    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """[...], summed over members."""

    def summary(self, loss: Tensor, target: Tensor) -> Tensor:
        """What `follow` needs of a batch, [task, ...], from loss [task] and targets."""
        return loss

    def follow(self, summary: Tensor, critics: Iterable[nn.Module]) -> bool:
        """After a step of the critics: move what depends on the targets; -> whether any does."""
        return False

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that change in place."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


class ScalarValue(Value):
    """Critics that give one number: y is a number, the loss a squared error."""

    def __init__(self, ensemble: Literal["min", "mean"] = "min") -> None:
        """ensemble: the smallest of the members' values (Fujimoto et al. 2018), or their mean."""
        self.ensemble = ensemble

    def value(self, outputs: Tensor) -> Tensor:
        """Members' outputs [member, ...] -> one value [...]."""
        return outputs.amin(0) if self.ensemble == "min" else outputs.mean(0)

    def target(
        self,
        outputs: Tensor,
        rewards: Tensor,
        discounts: Tensor,
        bonus: Tensor,
        bound: Tensor | None = None,
    ) -> Tensor:
        """y = rewards + discounts (value - bonus), [...]; bound: its upper clip."""
        y = rewards + discounts * (self.value(outputs) - bonus)
        return y if bound is None else torch.minimum(y, bound)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """sum_k (Q_k - y)^2, [...]."""
        return (outputs - target).square().sum(0)


class CategoricalValue(Value):
    """Critics that give a distribution of the return over fixed atoms (Bellemare et al. 2017, C51):
    logits [member, ..., bin]; the loss is the cross-entropy to the projected target.

    The target is projected onto the atoms by two-hot weights: mass between two atoms goes to both
    in proportion, so that its mean is kept. As a sum over all pairs of atoms, which is
    deterministic on every device where scattering would not be.
    """

    def __init__(
        self,
        bins: int,
        support: float,
        device: torch.device,
        ensemble: Literal["min", "mean"] = "mean",
    ) -> None:
        """bins: atoms, evenly spaced in [-support, support].

        ensemble: the target's distribution is that of the member with the smallest mean (FastTD3),
        or the mean of all (BRC).
        """
        self.outputs, self.support, self.ensemble = bins, support, ensemble
        self.atoms = torch.linspace(-support, support, bins, device=device)
        self.index = torch.arange(bins, device=device, dtype=torch.float32)
        self.width = 2.0 * support / (bins - 1)

    def value(self, outputs: Tensor) -> Tensor:
        """Logits [member, ..., bin] -> one expected value [...]."""
        means = torch.softmax(outputs, dim=-1) @ self.atoms
        return means.amin(0) if self.ensemble == "min" else means.mean(0)

    def target(
        self,
        outputs: Tensor,
        rewards: Tensor,
        discounts: Tensor,
        bonus: Tensor,
        bound: Tensor | None = None,
    ) -> Tensor:
        """Probabilities [..., bin] of rewards + discounts (Z - bonus), Z the members' return."""
        members = torch.softmax(outputs, dim=-1)
        if self.ensemble == "min":
            lowest = (members @ self.atoms).argmin(0, keepdim=True)[..., None]
            chosen = lowest.expand(1, *members.shape[1:])
            probabilities = members.gather(0, chosen).squeeze(0)
        else:
            probabilities = members.mean(0)
        moved = (rewards - discounts * bonus)[..., None] + discounts[..., None] * self.atoms
        if bound is not None:
            moved = torch.minimum(moved, bound[..., None])
        position = ((moved + self.support) / self.width).clamp(0.0, float(self.outputs - 1))
        two_hot = (1.0 - (position[..., None] - self.index).abs()).clamp(min=0.0)
        return (probabilities[..., None] * two_hot).sum(-2)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """sum_k H(target, softmax(logits_k)), [...]."""
        return -(target * torch.log_softmax(outputs, dim=-1)).sum(-1).sum(0)


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
    def std(self) -> Tensor:
        """sigma [task], float64."""
        variance = self.square - self.mean.square()
        return variance.clamp(min=0.0).sqrt().clamp(min=SMALLEST_STD)

    def value(self, outputs: Tensor) -> Tensor:
        """Outputs [member, task, sample] -> Q [task, sample]."""
        mean, std = self.mean.float()[:, None], self.std.float()[:, None]
        return super().value(outputs * std + mean)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        # The first batch's moments are its own: one large step would fill Adam's second moments.
        new = self.batches == 0
        mean = torch.where(new, target.mean(-1), self.mean.float())[:, None]
        std = torch.where(new, target.std(-1, correction=0), self.std.float())
        normal = (target - mean) / std.clamp(min=SMALLEST_STD)[:, None]
        return super().loss(outputs, normal)

    def summary(self, loss: Tensor, target: Tensor) -> Tensor:
        """Mean and mean square of the targets, [task, 2]."""
        return torch.stack([target.mean(-1), target.square().mean(-1)], dim=-1)

    @torch.no_grad()
    def follow(self, summary: Tensor, critics: Iterable[nn.Module]) -> bool:
        """Move the moments, and the critics' last layers against them."""
        mean, std = self.mean.clone(), self.std
        self.batches += 1.0
        share = (1.0 / self.batches).clamp(min=self.rate)  # at first the mean of all batches
        self.mean.lerp_(summary[:, 0].double(), share)
        self.square.lerp_(summary[:, 1].double(), share)
        now, first = self.std, self.batches == 1
        ratio = torch.where(first, 1.0, std / now)[:, None, None].float()
        shift = torch.where(first, 0.0, (mean - self.mean) / now)[:, None, None].float()
        for critic in critics:
            head: Any = critic.get_submodule("body.head")
            head.weight.mul_(ratio)
            head.bias.mul_(ratio).add_(shift)
        return True

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "square": self.square, "batches": self.batches}


def create_value(config: Config, device: torch.device) -> Value:
    critic = config.critic
    match critic.kind:
        case "scalar":
            return ScalarValue(critic.ensemble)
        case "categorical":
            return CategoricalValue(critic.bins, critic.support, device, critic.ensemble)
        case "popart":
            return PopArtValue(config.num_tasks, critic.popart_rate, device, critic.ensemble)
