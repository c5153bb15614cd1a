"""How a run ends before its time: by a signal or an error. status.json says which."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from mtrl.device.stop_signals import handled, unheard
from mtrl.run.directory import RunDirectory
from mtrl.run.state import Status


class TrainingError(RuntimeError):
    """The run cannot continue; the message says why."""


class Stopped(Exception):
    """A signal, or a callback, ended the run after a checkpoint."""

    def __init__(self, signum: int, run: RunDirectory) -> None:
        """signum: 0 = a callback asked for it."""
        self.signum = signum
        self.reason = f"stopped by {signal.Signals(signum).name if signum else 'a callback'}"
        self.exit_code = 128 + signum if signum else 0
        super().__init__(f"{self.reason}; to continue: mtrl resume {run.path}")


@contextmanager
def outcome(run: RunDirectory, trainer: Learning, *, new: bool) -> Iterator[None]:
    """Write down how the block ended, unless it ended by itself.

    A new run that ends before its first update, without a checkpoint, leaves no directory: it has
    nothing to continue from, and would be in the way of the corrected command.
    """
    try:
        yield
    except BaseException as error:
        if new and not trainer.has_learned and not run.has_checkpoint:
            run.discard()
        else:
            run.update_status(*_status_after(error))
        raise


def _status_after(error: BaseException) -> tuple[Status, str]:
    """-> status and reason"""
    if isinstance(error, Stopped):
        return "stopped", error.reason
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "stopped at once by Ctrl-C"
    if isinstance(error, SystemExit):  # rich's answer to a closed pipe
        return "failed", "nobody reads its output any more"
    return "failed", f"{type(error).__name__}: {error}".splitlines()[0]


class Learning(Protocol):
    @property
    def has_learned(self) -> bool:
        """Whether an update has been made."""


class Messages(Protocol):
    def message(self, text: str) -> None: ...


class Stoppable(Protocol):
    """Looks at `stop_signal` wherever it can stop; 0 = none has come."""

    stop_signal: int

    @property
    def recorder(self) -> Messages: ...


@contextmanager
def signals(trainer: Stoppable, where: str) -> Iterator[None]:
    """SIGTERM, SIGHUP or Ctrl-C: stop at the next `where`. A second Ctrl-C: at once."""

    def handle(signum: int) -> None:
        if signum == signal.SIGINT and trainer.stop_signal == signal.SIGINT:
            raise KeyboardInterrupt
        trainer.stop_signal = signum
        with unheard():
            trainer.recorder.message(
                f"{signal.Signals(signum).name}: stopping at the next {where}, then saving; "
                "Ctrl-C twice stops at once"
            )

    with handled(handle):
        yield
