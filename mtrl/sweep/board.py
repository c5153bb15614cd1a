"""What every run of the sweep does: one live table or, where there is no terminal, lines."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

from rich.live import Live
from rich.table import Table

from mtrl.run.console import open_console, say
from mtrl.run.timing import duration
from mtrl.sweep.grid import Run
from mtrl.sweep.process import Outlook, read_status

Shown = Literal[
    "waiting", "held", "running", "interrupted", "failed", "broken", "pruned", "finished"
]
STYLES = {
    "running": "bold",
    "failed": "red",
    "broken": "red",
    "interrupted": "yellow",
    "finished": "green",
}
HEARTBEAT_S = 60.0  # between two lines of counts where there is no terminal


@dataclass
class Row:
    run: Run
    shown: Shown = "waiting"
    outlook: Outlook = field(default_factory=lambda: Outlook("new"))

    @property
    def whole_s(self) -> float | None:
        """Seconds that the run takes, by its mean speed so far; its warm-up alone says nothing."""
        now = self.outlook
        if now.step <= self.run.config.train.warmup_steps:
            return None
        return now.seconds / now.step * now.total


class Board:
    """Use as a context manager around the engine."""

    def __init__(self, runs: Sequence[Run], parallel: int | None = None, total: int = 0) -> None:
        """parallel: runs at a time, for the time left; None = as many as are seen running. total:
        runs in the end, where others are added."""
        self._total = total
        self.rows = {run.name: Row(run) for run in runs}
        self.console = open_console(errors=True)
        self._parallel = parallel
        self._live: Live | None = None
        self._heartbeat = time.monotonic()

    def __enter__(self) -> Board:
        if self.console.is_terminal:
            # No refresh thread: the process stays free of threads while it starts others.
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
            self._live.update(self.table(), refresh=True)
            self._live.stop()
            self._live = None

    def add(self, run: Run) -> None:
        self.rows[run.name] = Row(run)

    def show(self, run: Run, shown: Shown, outlook: Outlook | None = None) -> None:
        """A run changes."""
        row = self.rows[run.name]
        row.shown, row.outlook = shown, outlook or row.outlook
        if self._live is None or shown == "failed":
            told = shown in ("failed", "interrupted", "pruned")
            reason = f": {row.outlook.reason}" if told else ""
            self.message(f"{run.name}: {shown}{_success(row, ', success ')}{reason}")

    def count(self, *shown: Shown) -> int:
        return sum(row.shown in shown for row in self.rows.values())

    def refresh(self) -> None:
        """Read what the running runs say, and show it."""
        for row in self.rows.values():
            if row.shown in ("running", "held"):
                row.outlook = read_status(row.run.path)
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
        elif time.monotonic() - self._heartbeat > HEARTBEAT_S:
            self._heartbeat = time.monotonic()
            self.message(self.summary())

    def message(self, text: str) -> None:
        say(self.console, text)

    def summary(self) -> str:
        """`2 running, 3 waiting, 1 finished; about 24 min left`"""
        counts = Counter(row.shown for row in self.rows.values())
        text = ", ".join(f"{number} {shown}" for shown, number in counts.items())
        left = self._seconds_left()
        return f"{text}; about {duration(left)} left" if left else text

    def _seconds_left(self) -> float | None:
        """By the mean speed of the runs that have come so far; the others are as long."""
        rows = self.rows.values()
        known = [row.whole_s for row in rows if row.whole_s is not None]
        running = [row for row in rows if row.shown == "running"]
        if not (known and running):
            return None
        usual = sum(known) / len(known)
        left = [max((row.whole_s or usual) - row.outlook.seconds, 0.0) for row in running]
        waiting = self.count("waiting") + max(self._total - len(self.rows), 0)
        return waiting * usual / (self._parallel or len(running)) + max(left)

    def table(self) -> Table:
        """What fits the terminal: running and failed runs first, then the others."""
        order = (
            "running",
            "held",
            "failed",
            "broken",
            "interrupted",
            "waiting",
            "pruned",
            "finished",
        )
        rows = sorted(self.rows.values(), key=lambda row: order.index(row.shown))
        room = max(self.console.height - 8, 3) if self._live is not None else len(rows)
        table = Table(caption=self.summary())
        for column in ("run", "status"):
            table.add_column(column)
        for column in ("step", "success", "ETA"):
            table.add_column(column, justify="right")
        for row in rows[:room]:
            now, whole = row.outlook, row.whole_s
            table.add_row(
                row.run.name,
                row.shown,
                f"{now.step:,} / {now.total:,}" if now.total else "",
                _success(row),
                duration(whole - now.seconds) if whole and row.shown == "running" else "",
                style=STYLES.get(row.shown),
            )
        if len(rows) > room:
            table.add_row(f"... and {len(rows) - room} more", "", "", "", "")
        return table


def _success(row: Row, prefix: str = "") -> str:
    success = row.outlook.success
    return "" if success is None else f"{prefix}{success:.3f}"
