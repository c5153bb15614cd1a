"""The signals that ask a process to stop, and the terminal that may be gone when one comes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C; a scheduler or `kill`; a terminal or an ssh connection that was closed."""


@contextmanager
def handled(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle` with the number of each that comes while the block runs.

    What the caller had ignored stays ignored: SIGHUP under `nohup`, and SIGINT where a script
    starts a command with `&`, so that a Ctrl-C meant for the script does not end it. SIGTERM is
    always heard.
    """

    def hear(signum: int, frame: Any) -> None:
        if signum == signal.SIGHUP:
            leave_dead_terminal()
        handle(signum)

    if threading.current_thread() is not threading.main_thread():
        yield  # Python hears signals in its main thread alone
        return
    heard = (
        s for s in STOP_SIGNALS if s == signal.SIGTERM or signal.getsignal(s) != signal.SIG_IGN
    )
    previous = {s: signal.signal(s, hear) for s in heard}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def leave_dead_terminal() -> bool:
    """Write to nowhere from now on where the terminal is gone; -> whether that was so.

    Every word to it would be an error, and end what is to be saved.
    """
    dead = []
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            dead.append(descriptor)
    write_nowhere(dead)
    return bool(dead)


@contextmanager
def unheard() -> Iterator[None]:
    """For what is said of a stop: whoever reads the output, as `tee` does, may have ended by the
    same Ctrl-C. (rich ends the process then, and would lose what is to be saved.)"""
    try:
        yield
    except SystemExit:
        write_nowhere((1, 2))


def write_nowhere(descriptors: Sequence[int]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
