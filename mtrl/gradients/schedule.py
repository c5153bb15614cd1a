"""When a run learns, and with what step sizes."""

from __future__ import annotations

import math

from mtrl.config import AgentConfig


def schedule(config: AgentConfig, left: float) -> float:
    """Factor of all step sizes where `left` (0..1) of the run is still to come."""
    left = min(1.0, left / config.lr_decay) if config.lr_decay else 1.0
    return 0.5 - 0.5 * math.cos(math.pi * left) if config.lr_schedule == "cosine" else left


def updates_due(config: AgentConfig, index: int) -> int:
    """Updates of the vector step `index` after the warm-up; fractional rates are spread evenly."""
    rate = config.updates_per_step
    burst = config.warmup_updates if index == 0 else 0
    return burst + math.floor((index + 1) * rate) - math.floor(index * rate)


def reset_due(config: AgentConfig, last: int, step: int, total: int) -> bool:
    """Whether a reset falls between the steps `last` and `step`.

    `config.resets` of them cut a run of `total` steps into equal parts; none is at its end.
    """
    parts = config.resets + 1
    return last * parts // total < step * parts // total < parts and last >= 0
