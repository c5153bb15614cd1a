"""The console: what mtrl prints is never markup, so paths and names appear as they are.

Otherwise rich takes [brackets] for styles and :words: for emoji, in tables and captions as well.
"""

from __future__ import annotations

from rich.console import Console

from mtrl.device.stop_signals import leave_dead_terminal


def open_console(*, errors: bool = False, width: int | None = None) -> Console:
    """On standard output or standard error; width None = that of the terminal."""
    return Console(stderr=errors, width=width, markup=False, emoji=False, highlight=False)


def say(console: Console, text: str) -> None:
    """A message: on a terminal broken between words, elsewhere one line, as `grep` needs it."""
    try:
        console.print(text, soft_wrap=not console.is_terminal)
    except OSError:  # a full disk under a log file is an error, a terminal that is gone is not
        if not leave_dead_terminal():
            raise
