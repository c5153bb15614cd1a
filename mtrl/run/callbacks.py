"""A user's own code around the loop."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.schema import ConfigError, nearest


class Callback:
    """What a user's code does around the loop. Whatever returns True asks the run to stop: it saves
    at the end of the episode, and can be resumed. What it raises ends the run there, too."""

    def on_log(self, step: int, values: dict[str, float]) -> bool | None:
        """A log line is about to be written: {tag: value}, as in metrics.jsonl. What is added to
        it, {"mine/what": 0.5}, is logged too."""

    def on_evaluation(
        self, step: int, success: NDArray[np.bool_], returns: NDArray[np.float64]
    ) -> bool | None:
        """The policy of `step` has been evaluated: [task, episode], tasks in the run's order.

        Training continues meanwhile: called before the next evaluation, at a checkpoint or at the
        end, whichever comes first.
        """

    def on_checkpoint(self, step: int, path: Path) -> bool | None:
        """A checkpoint is being written to `path`, in the background."""


def check_callbacks(given: Iterable[Any]) -> tuple[Callback, ...]:
    """ConfigError for what is no callback, or has a method that would never be called."""
    callbacks = tuple(given) if isinstance(given, Iterable) else (given,)
    known = [name for name in vars(Callback) if name.startswith("on_")]
    for callback in callbacks:
        if not isinstance(callback, Callback):
            allowed = "must be instances of classes derived from mtrl.Callback"
            raise ConfigError("callbacks", callback, allowed)
        for name in dir(callback):
            if name.startswith("on_") and name not in known:
                allowed = f"must be one of {', '.join(known)}{nearest(name, known)}"
                raise ConfigError("callbacks", f"{type(callback).__name__}.{name}", allowed)
    return callbacks
