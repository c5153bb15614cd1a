"""How a run ends before its time: by a signal or an error. status.json says which."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from mtrl.run_directory import RunDirectory


class TrainingError(RuntimeError):
    """The run cannot go on; the message says why."""


class Stopped(Exception):
    """A signal ended the run after a checkpoint."""

    def __init__(self, signum: int, run: RunDirectory) -> None:
        self.reason = f"stopped by {signal.Signals(signum).name}"
        self.exit_code = 128 + signum
        super().__init__(f"{self.reason}; to go on: mtrl resume {run.path}")


@contextmanager
def outcome(run: RunDirectory) -> Iterator[None]:
    """Write down how the block ended, unless it ended by itself."""
    try:
        yield
    except Stopped as stopped:
        run.update_status("stopped", stopped.reason)
        raise
    except KeyboardInterrupt:
        run.update_status("stopped", "stopped at once by Ctrl-C")
        raise
    except SystemExit:  # rich's answer to a closed pipe
        run.update_status("failed", "nobody reads its output any more")
        raise
    except BaseException as error:
        run.update_status("failed", f"{type(error).__name__}: {error}".splitlines()[0])
        raise


class Messages(Protocol):
    def message(self, text: str) -> None: ...


class Stoppable(Protocol):
    """Looks at `stop_signal` wherever it can stop; 0 = none has come."""

    stop_signal: int

    @property
    def recorder(self) -> Messages: ...


@contextmanager
def signals(trainer: Stoppable, where: str) -> Iterator[None]:
    """SIGTERM or Ctrl-C: stop at the next `where`. A second Ctrl-C: at once."""

    def handle(signum: int, frame: Any) -> None:
        if signum == signal.SIGINT and trainer.stop_signal == signal.SIGINT:
            raise KeyboardInterrupt
        trainer.stop_signal = signum
        trainer.recorder.message(
            f"{signal.Signals(signum).name}: stopping at the next {where}, then saving; "
            "Ctrl-C twice stops at once"
        )

    previous = {s: signal.signal(s, handle) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
