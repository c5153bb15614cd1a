"""From one log line to the next: speeds, stage times, and the mean metrics of the updates."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from mtrl.envs.vector import VectorEnv
from mtrl.run.stopping import TrainingError
from mtrl.run.tags import per_task
from mtrl.run.timing import StageTimer

TAGS = {
    "critic_loss": "train/critic_loss",
    "actor_loss": "train/actor_loss",
    "alpha": "train/alpha",
    "entropy": "train/entropy",
    "value": "train/value",
    "critic_weight": "smto/critic/weight",
    "actor_weight": "smto/actor/weight",
    "critic_grad_norm": "train/critic_grad_norm",
    "actor_grad_norm": "train/actor_grad_norm",
}
SHARED = ("critic_grad_norm", "actor_grad_norm")
"""One number for all tasks together."""
MUST_BE_FINITE = ("critic_loss", "actor_loss", "alpha", *SHARED)


class LogWindow:
    def __init__(
        self,
        task_names: Sequence[str],
        envs: VectorEnv,
        timer: StageTimer,
        device: torch.device,
        quantities: Sequence[str],
    ) -> None:
        """quantities: names of an update's metrics, in their order."""
        self.quantities = quantities
        self.task_names, self.envs, self.timer = task_names, envs, timer
        self._metric_sum = torch.zeros(len(quantities), len(task_names), device=device)
        self.restart(0)

    def restart(self, step: int) -> None:
        self.first_step, self.updates = step, 0
        self._metric_sum.zero_()
        self._worked = self.envs.worker_seconds()
        self.timer.restart()
        self._started = time.monotonic()

    def add(self, metrics: Tensor) -> None:
        """Metrics of one update, stacked [quantity, task]; does not wait for the device.

        It is part of a captured update: whoever makes the update counts it, in `updates`.
        """
        self._metric_sum += metrics

    def exclude(self, seconds: float) -> None:
        """Keep time spent outside training out of the speeds."""
        self._started += seconds

    def is_empty(self, step: int) -> bool:
        return not self.updates and step == self.first_step

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)

    @property
    def busiest_worker_s(self) -> float:
        """Simulation of one vector step in the worker with most to do."""
        worked = self.envs.worker_seconds() - self._worked
        return float(worked.max()) / max(self.timer.laps["simulate"], 1)

    def metrics(self, step: int) -> dict[str, float]:
        """{tag: mean over the updates}, if there were any; waits for the device.

        Raises TrainingError for a loss, a temperature or a direction that is not finite.
        """
        if not self.updates:
            return {}
        values: dict[str, float] = {}
        means = (self._metric_sum / self.updates).cpu()
        for name, row in zip(self.quantities, means, strict=True):
            finite = row.isfinite()
            if name in MUST_BE_FINITE and not finite.all():
                quantity = name.replace("_", " ")
                if name not in SHARED:
                    quantity += f" of task {self.task_names[int(finite.int().argmin())]}"
                raise TrainingError(f"non-finite {quantity} before step {step}")
            if name in SHARED:
                values[TAGS[name]] = float(row[0])
            else:
                values |= per_task(TAGS[name], self.task_names, row.tolist())
        return values

    def times(self, step: int) -> dict[str, float]:
        """{"time/...": value}, up to `step`."""
        seconds = self.seconds
        return {
            "time/env_steps_per_s": (step - self.first_step) / seconds,
            "time/updates_per_s": self.updates / seconds,
            **{f"time/{stage}_ms": 1e3 * mean for stage, mean in self.timer.means().items()},
            "time/busiest_worker_ms": 1e3 * self.busiest_worker_s,
        }
