"""`mtrl sweep`: the plan, then the engine, then what became of it."""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from mtrl.options.command_line import load_config
from mtrl.options.command_words import HELP
from mtrl.run.console import open_console, say
from mtrl.run.state import Standing, standing
from mtrl.run.timing import duration
from mtrl.schema import ConfigError, UsageError
from mtrl.sweep.board import Board, Row
from mtrl.sweep.estimate import EstimateError, estimate_hours
from mtrl.sweep.grid import Trial, distinct, expand, find_stored
from mtrl.sweep.local import Share, divide, run_local, visible_gpus
from mtrl.sweep.options import SweepOptions, parse_options
from mtrl.sweep.process import StopRequest

MOST_SHOWN = 20  # seeds or values in a line of the plan


def sweep_command(words: list[str]) -> int:
    """-> exit code: 0 = every run finished; 1 = not; 129, 130, 143 = stopped by a signal.

    Raises ConfigError, before anything is started, for an impossible sweep.
    """
    if words[0].startswith("-") and words[0] not in HELP:
        raise UsageError(f"sweep needs the configuration first, not {words[0]!r}")
    options = parse_options(words)
    if options.engine == "ray":
        from mtrl.sweep.ray_engine import import_ray

        import_ray()
    values = distinct(load_config(options.config), options.set)
    options = dataclasses.replace(options, set=values)
    trials, broken = find_stored(expand(options))
    for name, reason in broken.items():
        say(open_console(), f"{name} is broken and left alone: {reason}")
    states = {trial.name: standing(trial.path, broken.get(trial.name, "")) for trial in trials}
    to_do = [trial for trial in trials if _has_work(states[trial.name], options)]
    if not options.dry_run:
        _make_folder(trials[0].folder)
    if options.engine == "ray":
        return _on_ray(options, trials, to_do, states)
    share = divide(options, len(os.sched_getaffinity(0)), visible_gpus(trials[0].config))
    return _locally(options, trials, to_do, states, share)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("root", str(folder), f"cannot be made: {error.strerror}") from None


def _has_work(now: Standing, options: SweepOptions) -> bool:
    if now.state in ("finished", "broken"):
        return False
    return now.state != "failed" or options.retry_failed


def _locally(
    options: SweepOptions,
    trials: Sequence[Trial],
    to_do: Sequence[Trial],
    states: dict[str, Standing],
    share: Share,
) -> int:
    to_do = [trial.with_cores(share.cores) for trial in to_do]
    _plan(options, trials, states, f"local: {share}")
    parallel = min(share.parallel, len(to_do))
    _estimate(options, to_do, parallel)
    if options.dry_run:
        return 0
    return _run(
        Board(trials, parallel),
        to_do,
        states,
        lambda board, request: run_local(to_do, options, share, board, request),
    )


def _on_ray(
    options: SweepOptions,
    trials: Sequence[Trial],
    to_do: Sequence[Trial],
    states: dict[str, Standing],
) -> int:
    from mtrl.sweep import ray_engine

    to_do = [trial.with_cores(options.cpus_per_run) for trial in to_do]
    if options.dry_run:
        _plan(options, trials, states, f"ray at {options.address}")
        _estimate(options, to_do, None)
        return 0
    with ray_engine.connected(options) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        share = ray_engine.share(nodes, options, trials[0].config.learner.device)
        where = f"ray at {options.address}: {len(nodes)} node(s)"
        where += ", {:g} core(s) and {:g} GPUs a run".format(*share)
        if not ray_engine.fits(nodes, share):
            if options.address == "local":
                raise ConfigError("cpus_per_run, gpus_per_run", share, f"not here: {nodes[0]}")
            where += "; NO NODE HAS AS MUCH, runs wait for one that joins"
        _plan(options, trials, states, where)
        _estimate(options, to_do, None)
        return _run(
            Board(trials),
            to_do,
            states,
            lambda board, request: ray_engine.run_ray(ray, to_do, options, share, board, request),
        )


def _run(
    board: Board,
    to_do: Sequence[Trial],
    states: dict[str, Standing],
    engine: Callable[[Board, StopRequest], None],
) -> int:
    for trial in to_do:
        if states[trial.name].state == "waiting":
            trial.write_config()
    with StopRequest() as request, board:
        for name in states.keys() - {trial.name for trial in to_do}:
            board.rows[name].now = states[name]
        engine(board, request)
    return _conclude(board, request)


def _conclude(board: Board, request: StopRequest) -> int:
    for row in board.rows.values():
        if row.now.state == "failed":
            trial, reason = row.trial, row.now.reason
            board.message(f"{trial.name} failed: {reason} (see {trial.log_file})")
    board.message(board.summary())
    if board.count("finished"):
        open_console().print(_means(list(board.rows.values())))
        folder = next(iter(board.rows.values())).trial.folder
        say(open_console(), f"figures, intervals and tests: mtrl report {folder}")
    if board.count("finished") == len(board.rows):
        return 0
    if board.count("failed"):
        board.message("the same command with --retry-failed tries failed runs again")
    if board.count("waiting", "stopped", "died"):
        board.message("the same command continues the others")
    return 128 + request.signum if request.count else 1


def _means(rows: Sequence[Row]) -> Table:
    """Success over the seeds of each method, as the final evaluations have it."""
    labels = dict.fromkeys(row.trial.label for row in rows)
    table = Table(title="success in the final evaluation, over seeds", box=None)
    table.add_column("method", overflow="fold")
    for column in ("finished", "mean", "standard deviation"):
        table.add_column(column, justify="right")
    for label in labels:
        own = [row for row in rows if row.trial.label == label]
        ended = [row.now.success for row in own if row.now.state == "finished"]
        known = [success for success in ended if success is not None]
        table.add_row(
            label,
            f"{len(ended)} of {len(own)}",
            f"{statistics.mean(known):.3f}" if known else "",
            f"{statistics.stdev(known):.3f}" if len(known) > 1 else "",
        )
    return table


def _plan(
    options: SweepOptions, trials: Sequence[Trial], states: dict[str, Standing], engine: str
) -> None:
    config = trials[0].config
    lengths = dict.fromkeys(f"{trial.config.train.total_steps:,}" for trial in trials)
    methods = list(options.methods or [config.method])
    seeds = list(dict.fromkeys(str(trial.config.seed) for trial in trials))
    factors = [f"{len(methods)} method(s)", f"{len(seeds)} seed(s)"]
    factors += [f"{len(v)} {key}" for key, v in options.set.items() if len(v) > 1]
    now = Counter(each.state for each in states.values())
    lines = {
        f"{len(trials)} runs": f"{' x '.join(factors)}, in {trials[0].folder}",
        "methods": _shorten(methods),
        "seeds": f"{_shorten(seeds)}: each draws its own networks, exploration and goals; "
        "with one seed, every method meets the same goals",
        "length": f"{' or '.join(lengths)} environment steps, protocol {config.protocol_stamp}",
        **{key: _shorten(list(map(str, values))) for key, values in options.set.items()},
        "engine": engine,
        "so far": ", ".join(f"{number} {state}" for state, number in now.items()),
    }
    width = max(map(len, lines))
    for key, text in lines.items():
        say(open_console(), f"{key:<{width}}  {text}")


def _estimate(options: SweepOptions, to_do: Sequence[Trial], parallel: int | None) -> None:
    """Say how long it takes; parallel None: that is for the cluster to decide."""
    if not (options.estimate and to_do):
        return
    first = to_do[0]
    try:
        hours = estimate_hours(first.config)
    except EstimateError as error:
        say(open_console(), f"no estimate: {error}")
        return
    seconds = 3600 * hours
    total = seconds * len(to_do)
    text = f"about {duration(seconds)} a run (measured here, alone, {first.config.method}), "
    text += f"{duration(total)} of runs"
    if parallel:
        text += f", {duration(total / parallel)} at {parallel} at a time"
    say(open_console(), text)


def _shorten(words: Sequence[str]) -> str:
    more = len(words) - MOST_SHOWN
    return ", ".join(words[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")
