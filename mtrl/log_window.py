"""From one log line to the next: speeds, stage times, and the mean metrics of the updates."""

from __future__ import annotations

import time

from torch import Tensor

from mtrl.agent import Metrics
from mtrl.envs.vector import VectorEnv
from mtrl.timing import StageTimer


class LogWindow:
    def __init__(self, envs: VectorEnv, timer: StageTimer) -> None:
        self.envs, self.timer = envs, timer
        self.restart(0)

    def restart(self, step: int) -> None:
        self.first_step, self.updates = step, 0
        self._metric_sum: Tensor | None = None
        self._worked = self.envs.worker_seconds()
        self.timer.restart()
        self._started = time.monotonic()

    def add(self, metrics: Tensor) -> None:
        """Metrics of one update, stacked [quantity, task]; does not wait for the device."""
        self._metric_sum = metrics if self._metric_sum is None else self._metric_sum + metrics
        self.updates += 1

    def exclude(self, seconds: float) -> None:
        """Keep time spent beside training out of the speeds."""
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

    def metrics(self) -> Metrics | None:
        """Means over the updates, on the host; the one place where a log line waits."""
        if self._metric_sum is None:
            return None
        return Metrics(*(self._metric_sum / self.updates).cpu())

    def times(self, step: int) -> dict[str, float]:
        """{"time/...": value}, up to `step`."""
        seconds = self.seconds
        return {
            "time/env_steps_per_s": (step - self.first_step) / seconds,
            "time/updates_per_s": self.updates / seconds,
            **{f"time/{stage}_ms": 1e3 * mean for stage, mean in self.timer.means().items()},
            "time/busiest_worker_ms": 1e3 * self.busiest_worker_s,
        }
