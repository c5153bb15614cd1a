"""`mtrl runs`: a table of the runs below a folder."""

from __future__ import annotations

import time
from pathlib import Path

from mtrl.run.state import COLOURS, Run, find_runs, read_run
from mtrl.run.timing import duration
from mtrl.schema import ConfigError, user_path

HELP = """\
mtrl runs [DIR]

Table of the runs below DIR (default: runs): status, steps made, mean success in the last and in
the best evaluation, steps per second over the whole run, time since the last sign of life.
A run is `died` if its process is gone without a last word; `mtrl resume` continues it. A run whose
config.yaml cannot be used is `broken`; why is said below the table.
"""


def runs_command(arguments: list[str]) -> None:
    if arguments and arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    if len(arguments) > 1:
        raise ConfigError("DIR", " ".join(arguments), "runs takes one directory at most")
    root = user_path(arguments[0] if arguments else "runs")

    from rich.table import Table
    from rich.text import Text

    from mtrl.run.console import open_console, say

    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("status")
    for name in ("step", "of", "success", "best", "steps/s", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    runs = [read_run(path) for path in find_runs([root])]
    for run in runs:
        shown = run.path.relative_to(root) if run.path != root else run.path
        state = Text(run.state, COLOURS[run.state])
        table.add_row(str(shown), state, *_cells(run))
    console = open_console()
    if not console.is_terminal:  # a line per run, for grep
        console = open_console(width=500)
    console.print(table)
    for run in runs:
        if run.state == "broken":
            say(console, f"{run.path} is broken: {run.now.reason}")


def _cells(run: Run) -> list[str]:
    now, best = run.now, run.status.get("best_success_mean")
    return [
        f"{now.step:,}",
        f"{now.step / now.total:.0%}" if now.total else "-",
        "-" if now.success is None else f"{now.success:.3f}",
        "-" if now.success is None or best is None else f"{best:.3f}",
        f"{now.step / now.seconds:,.0f}" if now.seconds else "-",
        duration(time.time() - _last_sign(run.path)),
    ]


def _last_sign(path: Path) -> float:
    """When the run last wrote its status (or, before that, its configuration)."""
    status = path / "status.json"
    return (status if status.exists() else path / "config.yaml").stat().st_mtime
