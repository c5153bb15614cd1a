"""Where the time of a run goes, stage by stage; and durations as people say them."""

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


def duration(seconds: float) -> str:
    """`42 s`, `7 min`, `3.5 h` or `5.2 days`."""
    if seconds < 100:
        return f"{max(seconds, 0):.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
