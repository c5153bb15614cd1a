"""The line that moves at the bottom of a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import progress
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mtrl.run.console import Console

BAR = 20  # cells at least
GAP = "  "


class ProgressLine:
    """A bar, the share that is done, and as many of the caller's words as fit whole."""

    def __init__(self, console: Console, step: int, total: int) -> None:
        self._progress = progress.Progress(_Line(console), console=console)
        self._task = self._progress.add_task("", total=total, completed=step, words=())
        self._progress.start()

    def update(self, step: int, words: Sequence[str]) -> None:
        """words: the most important first."""
        self._progress.update(self._task, completed=step, words=words)

    def close(self) -> None:
        self._progress.stop()


class _Line(progress.ProgressColumn):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: progress.Task) -> Table:
        text = f"{GAP}{task.percentage:3.0f}%"
        room = self._console.width - BAR
        for word in task.fields["words"]:
            if len(text) + len(GAP) + len(word) > room:
                break
            text += GAP + word
        width = max(self._console.width - len(text), BAR)
        bar = ProgressBar(task.total, task.completed, width=width)
        line = Table.grid()
        line.add_row(bar, Text(text, no_wrap=True))
        return line
