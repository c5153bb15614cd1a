"""Compiling the update in the background of the warm-up."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import psutil
import torch.fx

from mtrl.files.errors import first_line

MODULES = threading.RLock()
"""Held by a compilation while it traces, and by other threads while they call a torch.nn.Module."""


@contextlib.contextmanager
def _tracing_alone() -> Iterator[None]:
    """While torch.fx traces, it replaces `torch.nn.Module.__call__` in the whole process.

    It raises if another thread calls a module then.
    """
    trace = torch.fx.Tracer.trace

    @functools.wraps(trace)
    def alone(*args: Any, **kwargs: Any) -> torch.fx.Graph:
        with MODULES:
            return trace(*args, **kwargs)

    torch.fx.Tracer.trace = alone  # type: ignore[method-assign]  # there is no hook for it
    try:
        yield
    finally:
        torch.fx.Tracer.trace = trace  # type: ignore[method-assign]  # as above


class Compilation(threading.Thread):
    """Calls these functions, each of which compiles something; starts at once.

    A daemon: a run that ends meanwhile, for whatever reason, does not wait for it.
    """

    def __init__(self, *functions: Callable[[], object]) -> None:
        super().__init__(name="compilation", daemon=True)
        self._functions = functions
        self.failure = ""
        """First line of the error; what was not compiled then stays as it is."""
        self.start()

    def run(self) -> None:
        try:
            with _tracing_alone():
                for function in self._functions:
                    function()
        except Exception as error:  # PyTorch raises many kinds; all mean the same here
            self.failure = first_line(error)


def exit_now(code: int) -> NoReturn:
    """End this process although a compilation runs in it, and the compiler with it."""
    sys.stdout.flush()
    sys.stderr.flush()
    last = time.monotonic() + 5.0
    # Again until there are none: the compilation may start the next compiler when one has ended.
    while (children := psutil.Process().children(recursive=True)) and time.monotonic() < last:
        # Asked first: a killed compiler leaves half a library in PyTorch's cache.
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        for child in psutil.wait_procs(children, timeout=0.5)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    os._exit(code)
