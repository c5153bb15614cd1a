"""The step size of every epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtrl.supervised.config import TrainConfig

BETTER = 1e-4
"""A score that is better by less, relative to the best, is not (PyTorch's default)."""


class StepSize:
    """Falls by a factor after so many epochs, or where the validation score has stopped improving
    (as PyTorch's ReduceLROnPlateau, in papers on QM9; but relative to the best score's size, since
    Delta_m may be negative)."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.best: float | None = None
        self.waited = self.falls = 0
        """Epochs without a better score since the last fall; falls."""

    def at(self, epoch: int) -> float:
        config = self._config
        falls = self.falls if config.lr_patience else epoch // config.lr_decay_every
        return max(config.lr * config.lr_decay**falls, min(config.lr, config.lr_min))

    def hear(self, score: float, *, higher_is_better: bool) -> None:
        """The validation score of the epoch that has ended."""
        if self.best is None:
            self.best = score
            return
        gain = score - self.best if higher_is_better else self.best - score
        if gain > BETTER * abs(self.best):
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.waited > self._config.lr_patience:
            self.falls, self.waited = self.falls + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "falls": self.falls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited, self.falls = state["best"], state["waited"], state["falls"]
