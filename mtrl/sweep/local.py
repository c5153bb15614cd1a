"""The local engine: a pool of processes on this machine."""

from __future__ import annotations

import subprocess
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from mtrl.sweep.board import Board
from mtrl.sweep.grid import Run
from mtrl.sweep.options import SweepOptions
from mtrl.sweep.process import StopRequest, look, outcome, start, stop

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


def divide(options: SweepOptions, cores: int, gpus: Sequence[str]) -> Share:
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
    run: Run | None = None
    process: subprocess.Popen | None = None


def run_local(
    runs: Sequence[Run], options: SweepOptions, share: Share, board: Board, request: StopRequest
) -> None:
    """Run all, as many at a time as there are places; the board has the outcomes."""
    waiting = deque(runs)
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
                _stop_all(places, board, at_once=obeyed > 1)
            for place in places:
                if place.process is not None and place.process.poll() is not None:
                    _ended(place, waiting, deaths, options, board, stopping=obeyed > 0)
                if place.process is None:
                    _start_next(place, waiting, board)
            busy = any(place.process is not None for place in places)
            if not busy and not waiting:
                return
            if time.monotonic() - refreshed > REFRESH_S:
                refreshed = time.monotonic()
                board.refresh()
            time.sleep(POLL_S)
    finally:
        for place in places:
            if place.process is not None:
                stop(place.process, kill=True)


def _start_next(place: _Place, waiting: deque[Run], board: Board) -> None:
    """The next run that no other process holds; those go to the end of the queue."""
    for _ in range(len(waiting)):
        run = waiting.popleft()
        now = look(run.path)
        if now.state == "running":
            if board.rows[run.name].shown != "held":
                board.show(run, "held", now)
            waiting.append(run)
        elif now.state == "finished":  # by the process that held it
            board.show(run, "finished", now)
        else:
            place.run, place.process = run, start(run, now, place.environment)
            board.show(run, "running")
            return


def _ended(
    place: _Place,
    waiting: deque[Run],
    deaths: Counter[str],
    options: SweepOptions,
    board: Board,
    *,
    stopping: bool,
) -> None:
    run, process = place.run, place.process
    assert run is not None
    assert process is not None
    place.run = place.process = None
    after = outcome(run, process.returncode)
    if after.state == "finished" or after.state == "failed":
        board.show(run, after.state, after)
        return
    deaths[run.name] += after.state == "interrupted"
    board.show(run, "interrupted", after)
    if not stopping and deaths[run.name] <= options.retries:
        waiting.appendleft(run)


def _stop_all(places: Sequence[_Place], board: Board, *, at_once: bool) -> None:
    running = [place.process for place in places if place.process is not None]
    how = "at once" if at_once else "at their next episode end, then saving; again = at once"
    board.message(f"stopping {len(running)} run(s) {how}")
    for process in running:
        stop(process, kill=at_once)
