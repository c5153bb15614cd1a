"""What every run of the sweep does: one live table or, where there is no terminal, lines."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.live import Live
from rich.table import Table

from mtrl.device.stop_signals import leave_dead_terminal
from mtrl.run.console import open_console, say
from mtrl.run.state import COLOURS, Standing, State, last_said
from mtrl.run.timing import duration
from mtrl.sweep.grid import Trial
from mtrl.sweep.process import YET_TO_BEGIN

HEARTBEAT_S = 60.0  # between two lines of counts where there is no terminal


@dataclass
class Row:
    trial: Trial
    now: Standing = YET_TO_BEGIN

    @property
    def whole_s(self) -> float | None:
        """Seconds that the run takes, by its mean speed so far; its warm-up alone says nothing."""
        now = self.now
        if now.step <= self.trial.config.train.warmup_steps:
            return None
        return now.seconds / now.step * now.total


class Board:
    """Use as a context manager around the engine."""

    def __init__(
        self, trials: Sequence[Trial], parallel: int | None = None, total: int = 0
    ) -> None:
        """parallel: runs at a time, for the time left; None = as many as are seen running. total:
        runs in the end, where others are added."""
        self._total = total
        self.rows = {trial.name: Row(trial) for trial in trials}
        self.console = open_console(errors=True)
        self._parallel = parallel
        self._live: Live | None = None
        self._heartbeat = time.monotonic()

    def __enter__(self) -> Board:
        if self.console.is_terminal:
            # No refresh thread: what is shown changes in the engine's loop alone.
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            leave_dead_terminal()
            self._live.update(self.table(), refresh=True)
            self._live.stop()
            self._live = None

    def add(self, trial: Trial) -> None:
        self.rows[trial.name] = Row(trial)

    def show(self, trial: Trial, now: Standing) -> None:
        """A run changes."""
        row = self.rows[trial.name]
        if now == row.now:
            return
        row.now = now
        if self._live is None or now.state == "failed":
            reason = f": {now.reason}" if now.reason else ""
            self.message(f"{trial.name}: {now.state}{_success(row, ', success ')}{reason}")

    def count(self, *states: State) -> int:
        return sum(row.now.state in states for row in self.rows.values())

    def refresh(self) -> None:
        """Read what the running runs say, and show it."""
        for row in self.rows.values():
            if row.now.state == "running":
                row.now = dataclasses.replace(last_said(row.trial.path), state="running")
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
        elif time.monotonic() - self._heartbeat > HEARTBEAT_S:
            self._heartbeat = time.monotonic()
            self.message(self.summary())

    def message(self, text: str) -> None:
        say(self.console, text)

    def summary(self) -> str:
        """`2 running, 3 waiting, 1 finished; about 24 min left`"""
        counts = Counter(row.now.state for row in self.rows.values())
        text = ", ".join(f"{number} {state}" for state, number in counts.items())
        left = self._seconds_left()
        return f"{text}; about {duration(left)} left" if left else text

    def _seconds_left(self) -> float | None:
        """By the mean speed of the runs that have come so far; the others are as long."""
        rows = self.rows.values()
        known = [row.whole_s for row in rows if row.whole_s is not None]
        running = [row for row in rows if row.now.state == "running"]
        if not (known and running):
            return None
        usual = sum(known) / len(known)
        left = [max((row.whole_s or usual) - row.now.seconds, 0.0) for row in running]
        waiting = self.count("waiting") + max(self._total - len(self.rows), 0)
        return waiting * usual / (self._parallel or len(running)) + max(left)

    def table(self) -> Table:
        """What fits the terminal: running and failed runs first, then the others."""
        order = list(COLOURS)
        rows = sorted(self.rows.values(), key=lambda row: order.index(row.now.state))
        room = max(self.console.height - 8, 3) if self._live is not None else len(rows)
        table = Table(caption=self.summary())
        for column in ("run", "status"):
            table.add_column(column)
        for column in ("step", "success", "ETA"):
            table.add_column(column, justify="right")
        for row in rows[:room]:
            now, whole = row.now, row.whole_s
            table.add_row(
                row.trial.name,
                now.state,
                f"{now.step:,} / {now.total:,}" if now.total else "",
                _success(row),
                duration(whole - now.seconds) if whole and now.state == "running" else "",
                style=COLOURS[now.state],
            )
        if len(rows) > room:
            table.add_row(f"... and {len(rows) - room} more", "", "", "", "")
        return table


def _success(row: Row, prefix: str = "") -> str:
    success = row.now.success
    return "" if success is None else f"{prefix}{success:.3f}"
