"""A user's own code around the loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class Callback:
    """What a user's code does around the loop. Whatever returns True asks the run to stop: it saves
    at the end of the episode, and can be resumed."""

    def on_log(self, step: int, values: Mapping[str, float]) -> bool | None:
        """A log line has been written: {tag: value}, as in metrics.jsonl."""

    def on_evaluation(
        self, step: int, success: NDArray[np.bool_], returns: NDArray[np.float64]
    ) -> bool | None:
        """The policy of `step` has been evaluated: [task, episode], tasks in the run's order."""

    def on_checkpoint(self, step: int, path: Path) -> bool | None:
        """A checkpoint is being written to `path`, in the background."""
