"""Where the time of a run goes, stage by stage."""

from __future__ import annotations

import time
from collections import defaultdict


class StageTimer:
    """Laps: each call of `lap` gives the time since the one before to a stage.

    Host time: on CUDA, launches are timed, and work still queued shows where the loop next waits.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.laps: dict[str, int] = defaultdict(int)
        self._last = time.perf_counter()

    def lap(self, stage: str) -> float:
        """-> seconds since the lap before."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self.seconds[stage] += seconds
        self.laps[stage] += 1
        return seconds

    def means(self) -> dict[str, float]:
        """{stage: mean seconds of a lap} since the start."""
        return {stage: seconds / self.laps[stage] for stage, seconds in self.seconds.items()}

    def restart(self) -> None:
        self.seconds.clear()
        self.laps.clear()
