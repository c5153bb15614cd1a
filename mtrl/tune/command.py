"""`mtrl tune`: Optuna proposes settings, the sweep's engine runs them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table

from mtrl.files.atomic import write_atomically
from mtrl.options.command_line import load_config
from mtrl.options.command_words import HELP, read_words
from mtrl.run.console import open_console, say
from mtrl.schema import ConfigError, UsageError, at_least, dump_yaml, user_path
from mtrl.sweep.board import Board
from mtrl.sweep.grid import ELSEWHERE, configure
from mtrl.sweep.local import divide, run_local, visible_gpus
from mtrl.sweep.options import LocalOptions, check_local, refuse_existing
from mtrl.sweep.process import StopRequest
from mtrl.tune.space import read_space
from mtrl.tune.study import OBJECTIVE, Study, held, import_optuna

MOST_SHOWN = 10  # trials in the table at the end
NOT_SET = {key: ELSEWHERE[key] for key in ("name", "run_dir")}


@dataclass(frozen=True)
class TuneOptions(LocalOptions):
    """A search for the settings with the highest success."""

    name: str = ""
    """Trials are written to <root>/<name>/; the configuration's name and `_tune` if empty."""
    space: str = ""
    """A YAML file: the settings to search, each with its bounds or choices (docs/tune.md)."""
    trials: Annotated[int, at_least(1)] = 20
    """Trials of the study, with those of earlier calls."""
    set: dict[str, Any] = field(default_factory=dict)
    """Settings of all trials, e.g. train.total_steps=200_000."""
    prune: bool = True
    """End a trial whose evaluations stay below the median of the finished trials at that step."""
    prune_after: Annotated[int, at_least(1)] = 5
    """Finished trials before the first one is pruned."""


def tune_command(words: list[str]) -> int:
    """-> exit code: 0 = all trials were made, and some finished; 1 = not; 129, 130, 143 = stopped.

    Raises ConfigError, before anything is written, for an impossible search.
    """
    if words[0].startswith("-") and words[0] not in HELP:
        raise UsageError(f"tune needs the configuration first, not {words[0]!r}")
    options = _parse(words)
    import_optuna()
    base = load_config(options.config)
    config = configure(base, options.set)
    space = read_space(user_path(options.space), base, options.set)
    share = divide(options, len(os.sched_getaffinity(0)), visible_gpus(config))
    folder = (user_path(options.root) / (options.name or f"{base.name}_tune")).resolve()
    with held(folder):
        study = Study(
            folder,
            base,
            options.set,
            space,
            trials=options.trials,
            prune_after=options.prune_after if options.prune else None,
        )
        what = f"{options.trials} trials of {', '.join(space)}"
        say(open_console(), f"{what}, in {folder}; local: {share}")
        board = Board((), share.parallel, options.trials)
        with StopRequest() as request, board:
            trials = study.trials(board, share.cores)
            run_local(trials, options, share, board, request, study.unpromising)
            study.settle(board)
        return _conclude(study, board, request, folder)


def _parse(arguments: list[str]) -> TuneOptions:
    """`CONFIG --space SPACE.yaml [--option ...]`"""
    name, *words = arguments if arguments[0] not in ("-h", "--help") else ("CONFIG", "--help")
    refuse_existing(words)
    options, _ = read_words(TuneOptions(config=name), f"mtrl tune {name}", words, starts=False)
    if not options.space:
        raise ConfigError("space", options.space, "needs a file: --space SPACE.yaml (docs/tune.md)")
    for key in NOT_SET.keys() & options.set.keys():
        raise ConfigError(f"set {key}", options.set[key], NOT_SET[key])
    check_local(options)
    return options


def _conclude(study: Study, board: Board, request: StopRequest, folder: Path) -> int:
    board.message(board.summary())
    best = study.finished()
    if best:
        table = Table(title=f"the best trials, by {OBJECTIVE} of their final evaluation", box=None)
        table.add_column("trial")
        for name in ("success", *_short(list(best[0][2]))):
            table.add_column(name, justify="right", overflow="fold")
        for trial, success, chosen in best[:MOST_SHOWN]:
            shown = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in chosen.values())
            table.add_row(trial.name, f"{success:.3f}", *shown)
        console = open_console()
        console.print(table)
        trial, file = best[0][0], folder / "best.yaml"
        config = dataclasses.replace(trial.config, name=f"{folder.name}_best", run_dir="")
        write_atomically(file, dump_yaml(config))
        say(console, f"best settings: {file}")
        seeds = f"{config.seed + 1}..{config.seed + 5}"
        optimistic = "# the best of many is optimistic"
        say(console, f"other seeds:   mtrl sweep {file} --seeds {seeds}  {optimistic}")
        say(console, f"all trials:    mtrl report {folder}")
    if request.count:
        board.message("the same command continues")
        return 128 + request.signum
    if board.count("stopped", "died"):
        board.message("the same command continues the trials that stopped or died")
        return 1
    return 0 if best else 1


def _short(keys: Sequence[str]) -> list[str]:
    """Their last words, where these differ."""
    last = [key.rpartition(".")[2] for key in keys]
    return [word if last.count(word) == 1 else key for word, key in zip(last, keys, strict=True)]
