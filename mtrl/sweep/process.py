"""A run as a process: what its directory says, how it is started, and how it ended.

The directory is the only record: engines keep none of their own, so a sweep can be stopped in any
way and called again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mtrl.device.stop_signals import STOP_SIGNALS, handled
from mtrl.run.state import read_json
from mtrl.sweep.grid import Run

State = Literal["new", "running", "interrupted", "finished", "failed", "pruned", "broken"]


@dataclass(frozen=True)
class Outlook:
    """Where a run stands."""

    state: State
    """new; running: a process holds it; interrupted: can be resumed; finished; failed: by itself;
    pruned: ended early by `mtrl tune`, can be resumed; broken: its config.yaml cannot be used."""
    reason: str = ""
    step: int = 0
    total: int = 0
    success: float | None = None
    """Mean success of the last evaluation."""
    seconds: float = 0.0
    """Time spent up to `step`."""


def look(path: Path) -> Outlook:
    """Where the run in this directory stands."""
    outlook = read_status(path)
    if _is_locked(path):
        return Outlook(**(vars(outlook) | {"state": "running"}))
    if not (path / "config.yaml").is_file():
        return Outlook("new")
    return outlook


def read_status(path: Path) -> Outlook:
    """What the run last said of itself. A process that was killed said no last word: interrupted,
    or running still."""
    status = read_json(path / "status.json")
    state = status.get("status")
    return Outlook(
        state if state in ("finished", "failed", "pruned") else "interrupted",
        status.get("reason", ""),
        status.get("step", 0),
        status.get("total_steps", 0),
        status.get("success_mean"),
        status.get("elapsed_s", 0.0),
    )


def _is_locked(path: Path) -> bool:
    try:
        with open(path / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file
        return False
    return False


def start(run: Run, now: Outlook, environment: dict[str, str] | None = None) -> subprocess.Popen:
    """Train a new run, resume any other. In a process group of its own: a terminal's Ctrl-C
    reaches the sweep alone, which then decides."""
    words = ["train", run.config_file] if now.state == "new" else ["resume", run.path]
    run.log_file.parent.mkdir(parents=True, exist_ok=True)
    with open(run.log_file, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mtrl.commands.child", str(os.getpid()), *map(str, words)],
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
        )


def outcome(run: Run, code: int) -> Outlook:
    """Where the run stands after its process ended with `code`.

    Interrupted if something outside ended it; failed if it ended itself.
    """
    after = look(run.path)
    if after.state in ("finished", "running"):
        return after
    signum = -code if code < 0 else code - 128
    if signum in STOP_SIGNALS or code < 0:
        reason = f"ended by {signal.Signals(signum).name}"
        return Outlook(**(vars(after) | {"state": "interrupted", "reason": reason}))
    if after.state == "failed" and after.reason:
        return after
    reason = last_line(run.log_file) or f"ended with code {code}"
    return Outlook(**(vars(after) | {"state": "failed", "reason": reason}))


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


def attempt(run: Run, retry_failed: bool = False) -> Outlook:
    """Train or resume until the process ends; -> where the run stands then.

    Waits while another process holds the run: one that was left alone may still be saving.
    """
    while True:
        while (now := look(run.path)).state == "running":
            time.sleep(0.5)
        if now.state == "finished" or (now.state == "failed" and not retry_failed):
            return now
        process = start(run, now)
        try:
            while process.poll() is None:  # not wait(): Ray's cancellation cannot interrupt that
                time.sleep(0.5)
        except BaseException:  # the engine asks us to end
            stop(process)
            process.wait()
            raise
        after = outcome(run, process.returncode)
        if after.state != "running":
            return after


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
