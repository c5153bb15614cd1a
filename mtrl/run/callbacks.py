"""A user's own code around the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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


class Callbacks:
    """All callbacks of a run. Each is called, whatever the one before answers or raises."""

    def __init__(self, callbacks: Sequence[Callback], warn: Callable[[str], None]) -> None:
        self._callbacks, self._warn = callbacks, warn
        self.asked_to_stop = False
        self.failure: Exception | None = None
        """What the first to fail has raised: it ends the run where a checkpoint can be made."""

    def on_log(self, step: int, values: dict[str, float]) -> None:
        """values: with what the callbacks add, if these are numbers."""

        def hear(callback: Callback) -> bool | None:
            own = dict(values)
            answer = callback.on_log(step, own)
            values.update({tag: float(value) for tag, value in own.items()})
            return answer

        self._ask(hear)

    def on_evaluation(
        self, step: int, success: NDArray[np.bool_], returns: NDArray[np.float64]
    ) -> None:
        self._ask(lambda callback: callback.on_evaluation(step, success, returns))

    def on_checkpoint(self, step: int, path: Path) -> None:
        self._ask(lambda callback: callback.on_checkpoint(step, path))

    def _ask(self, question: Callable[[Callback], bool | None]) -> None:
        for callback in self._callbacks:
            try:
                answer = question(callback)
                # NumPy's True, too: `return success.all()`.
                self.asked_to_stop |= isinstance(answer, bool | np.bool_) and bool(answer)
            except Exception as error:  # whatever a user's code raises: nothing is lost by it
                if self.failure is None:
                    self.failure = error
                    kind = type(error).__name__
                    self._warn(f"a callback raised {kind}: stopping after a checkpoint")


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
