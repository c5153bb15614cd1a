"""The local engine: a pool of processes on this machine."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from mtrl.config import Config
from mtrl.run.directory import RunDirectory
from mtrl.run.state import Standing, standing
from mtrl.sweep.board import Board
from mtrl.sweep.grid import Trial
from mtrl.sweep.options import LocalOptions
from mtrl.sweep.process import CUT_OFF, StopRequest, outcome, start, stop

POLL_S = 0.2
REFRESH_S = 1.0


@dataclass(frozen=True)
class Share:
    """How the machine is divided."""

    parallel: int
    """Runs at a time."""
    cores: int
    """Of each run."""
    gpus: tuple[str, ...] = ()
    """CUDA_VISIBLE_DEVICES of each place, one per run at a time; empty = left alone."""

    def __str__(self) -> str:
        on = f", on {len(set(self.gpus))} GPU(s)" if self.gpus else ""
        return f"{self.parallel} at a time, {self.cores} core(s) each{on}"


def visible_gpus(config: Config) -> tuple[str, ...]:
    """CUDA names of the GPUs that runs may be spread over; none if the device is fixed."""
    if config.learner.device not in ("auto", "cuda"):
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name for name in visible.split(",") if name.strip())
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))


def divide(options: LocalOptions, cores: int, gpus: Sequence[str]) -> Share:
    """Cores and GPUs (by their CUDA names) over the runs at a time."""
    per_run = options.gpus_per_run
    if per_run == "auto":
        per_run = 0.25 if gpus else 0.0
    by_gpu = int(len(gpus) / per_run + 1e-9) if per_run else cores
    if options.parallel == "auto":
        parallel = max(1, min(cores // options.cpus_per_run, by_gpu))
    else:
        parallel = options.parallel
    places: tuple[str, ...] = ()
    if gpus and per_run:
        whole = max(1, int(per_run))
        groups = [",".join(gpus[i : i + whole]) for i in range(0, len(gpus), whole)]
        places = tuple(groups[place % len(groups)] for place in range(parallel))
    return Share(parallel, max(1, cores // parallel), places)


@dataclass
class _Place:
    """Room for one run at a time."""

    environment: dict[str, str]
    trial: Trial | None = None
    process: subprocess.Popen | None = None
    pruned: str = ""
    """Why its run was asked to end early."""


def run_local(
    trials: Iterable[Trial],
    options: LocalOptions,
    share: Share,
    board: Board,
    request: StopRequest,
    unpromising: Callable[[Trial], str] = lambda trial: "",
) -> None:
    """Run all, as many at a time as there are places; the board has the outcomes.

    trials: each is asked for when a place is free, so it may follow from how the earlier ones went.
    unpromising: why a running run is to end early; empty = it is not.
    """
    coming = iter(trials)
    waiting: deque[Trial] = deque()
    deaths: Counter[str] = Counter()
    places = [
        _Place({"CUDA_VISIBLE_DEVICES": share.gpus[i]} if share.gpus else {})
        for i in range(share.parallel)
    ]
    obeyed = 0
    refreshed = 0.0
    try:
        while True:
            if request.count > obeyed:
                obeyed = request.count
                waiting.clear()
                coming = iter(())
                _stop_all(places, board, at_once=obeyed > 1)
            for place in places:
                if place.process is not None and place.process.poll() is not None:
                    _ended(place, waiting, deaths, options, board, stopping=obeyed > 0)
                if place.process is None:
                    _start_next(place, waiting, coming, board)
            busy = any(place.process is not None for place in places)
            if not busy and not waiting:
                return
            if time.monotonic() - refreshed > REFRESH_S:
                refreshed = time.monotonic()
                board.refresh()
                _prune(places, unpromising)
            time.sleep(POLL_S)
    finally:
        for place in places:
            if place.process is not None:
                stop(place.process, kill=True)


def _start_next(
    place: _Place, waiting: deque[Trial], coming: Iterator[Trial], board: Board
) -> None:
    """The next run that no other process holds; those wait until they are free."""
    for _ in range(len(waiting)):
        if _start(place, waiting.popleft(), waiting, board):
            return
    for trial in coming:
        if _start(place, trial, waiting, board):
            return


def _start(place: _Place, trial: Trial, waiting: deque[Trial], board: Board) -> bool:
    """Whether the run has been started; one that another process holds waits."""
    now = standing(trial.path)
    if now.state == "running":
        if not board.rows[trial.name].now.reason:
            board.show(trial, Standing("waiting", "another process holds it"))
        waiting.append(trial)
    elif now.state == "finished":  # by the process that held it
        board.show(trial, now)
    else:
        place.trial, place.process = trial, start(trial, now, place.environment)
        board.show(trial, dataclasses.replace(now, state="running", reason=""))
        return True
    return False


def _ended(
    place: _Place,
    waiting: deque[Trial],
    deaths: Counter[str],
    options: LocalOptions,
    board: Board,
    *,
    stopping: bool,
) -> None:
    trial, process, pruned = place.trial, place.process, place.pruned
    assert trial is not None
    assert process is not None
    place.trial, place.process, place.pruned = None, None, ""
    after = outcome(trial, process.returncode)
    if pruned and after.state in CUT_OFF:
        RunDirectory(trial.path).update_status("pruned", pruned)
        after = standing(trial.path)
    board.show(trial, after)
    if after.state in CUT_OFF:
        deaths[trial.name] += 1
        if not stopping and deaths[trial.name] <= options.retries:
            waiting.appendleft(trial)
    elif after.state == "running":
        waiting.append(trial)


def _prune(places: Sequence[_Place], unpromising: Callable[[Trial], str]) -> None:
    for place in places:
        if place.trial is None or place.process is None or place.pruned:
            continue
        if reason := unpromising(place.trial):
            place.pruned = reason
            stop(place.process)


def _stop_all(places: Sequence[_Place], board: Board, *, at_once: bool) -> None:
    running = [place.process for place in places if place.process is not None]
    how = "at once" if at_once else "at their next episode end, then saving; again = at once"
    board.message(f"stopping {len(running)} run(s) {how}")
    for process in running:
        stop(process, kill=at_once)
