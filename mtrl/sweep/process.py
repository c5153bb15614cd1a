"""A run as a process: how it is started, waited for and stopped, and how it ended.

The directory is the only record: engines keep none of their own, so a sweep can be stopped in any
way and called again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mtrl.device.stop_signals import STOP_SIGNALS, handled
from mtrl.run.state import Standing, State, standing
from mtrl.sweep.grid import Trial

CUT_OFF: tuple[State, ...] = ("stopped", "died")
"""Ended from outside: such a run continues from its last checkpoint."""
YET_TO_BEGIN = Standing("waiting")
HELD = Standing("waiting", "another process holds it")
POLL_S = 0.2


def start(
    trial: Trial, now: Standing, environment: dict[str, str] | None = None
) -> subprocess.Popen:
    """Train a new run, resume any other. In a process group of its own: a terminal's Ctrl-C
    reaches the sweep alone, which then decides."""
    new = now.state == "waiting"
    words = ["train", trial.config_file] if new else ["resume", trial.path]
    trial.log_file.parent.mkdir(parents=True, exist_ok=True)
    with open(trial.log_file, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mtrl.commands.child", str(os.getpid()), *map(str, words)],
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
        )


def outcome(trial: Trial, code: int, before: Standing) -> Standing:
    """Where the run stands after its process ended with `code`; before: where it stood.

    Stopped or died if something outside ended it; failed if it ended itself.
    """
    after = standing(trial.path)
    if after.state in ("finished", "running"):
        return after
    signum = -code if code < 0 else code - 128
    if signum in STOP_SIGNALS or code < 0:
        unsaid: State = "stopped" if signum in STOP_SIGNALS else "died"
        state = after.state if after.state in CUT_OFF else unsaid
        reason = f"ended by {signal.Signals(signum).name}"
        return dataclasses.replace(after, state=state, reason=reason)
    if after.state == "failed" and after.reason and after != before:
        return after
    reason = last_line(trial.log_file) or f"ended with code {code}"
    return dataclasses.replace(after, state="failed", reason=reason)


def last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.removeprefix("mtrl: ") for line in reversed(lines) if line.strip()), "")


def stop(process: subprocess.Popen, *, kill: bool = False) -> None:
    """Ask the run to save at its next episode end; or end it and its workers at once."""
    with contextlib.suppress(ProcessLookupError):
        if kill:
            os.killpg(process.pid, signal.SIGKILL)
        elif process.poll() is None:
            process.terminate()


def attempt(
    trial: Trial,
    *,
    retries: int = 0,
    environment: dict[str, str] | None = None,
    stopping: Callable[[], int] = lambda: 0,
    tell: Callable[[Standing], None] = lambda now: None,
) -> Standing:
    """Train or resume, and again up to `retries` times if something outside ends the process.

    Waits while another process holds the run: one that was left alone may still be saving.
    stopping: 0; 1 = at the run's next episode end; 2 = at once. tell: hears of what happens
    meanwhile. -> Where the run stands then.
    """
    now = YET_TO_BEGIN
    while not stopping():
        found = standing(trial.path)
        if found.state == "running":
            if now != HELD:
                now = HELD
                tell(now)
            time.sleep(POLL_S)
            continue
        if found.state == "finished" or (found.state == "failed" and now == HELD):
            return found
        process = start(trial, found, environment)
        tell(dataclasses.replace(found, state="running", reason=""))
        now = outcome(trial, _wait(process, stopping), found)
        if now.state in CUT_OFF and retries and not stopping():
            retries -= 1
            tell(now)
        elif now.state != "running":
            return now
    return now


def _wait(process: subprocess.Popen, stopping: Callable[[], int]) -> int:
    """For its end, and stop it where that is asked for; -> its exit code."""
    obeyed = 0
    try:
        while (code := process.poll()) is None:  # not wait(): Ray cannot interrupt that
            if (asked := stopping()) > obeyed:
                obeyed = asked
                stop(process, kill=asked > 1)
            time.sleep(POLL_S)
    except BaseException:  # Ray cancels its task
        stop(process)
        process.wait()
        raise
    return code


class StopRequest:
    """Ctrl-C, SIGTERM or SIGHUP, counted while the context is open: 1 = stop, 2 = at once."""

    def __init__(self) -> None:
        self.count = 0
        self.signum = 0

        self._handled = handled(self._handle)

    def _handle(self, signum: int) -> None:
        self.count += 1
        self.signum = self.signum or signum

    def __enter__(self) -> StopRequest:
        self._handled.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._handled.__exit__(None, None, None)
