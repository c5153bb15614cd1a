"""The local engine: as many threads on this machine as runs at a time, each with its process."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import takewhile
from queue import SimpleQueue

from mtrl.config import Config
from mtrl.device.stop_signals import unheard
from mtrl.run.directory import RunDirectory
from mtrl.run.state import Standing, is_held, standing
from mtrl.sweep.board import Board
from mtrl.sweep.grid import Trial
from mtrl.sweep.options import LocalOptions
from mtrl.sweep.process import CUT_OFF, POLL_S, StopRequest, attempt

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
        names = [name.strip() for name in visible.split(",") if name.strip()]
        # As CUDA reads it: -1 hides itself and all behind it.
        return tuple(takewhile(lambda name: not name.startswith("-"), names))
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))


def divide(options: LocalOptions, cores: int, gpus: Sequence[str]) -> Share:
    """Cores and GPUs (by their CUDA names) over the runs at a time."""
    per_run = options.gpus_per_run
    if per_run == "auto":
        per_run = 0.25 if gpus else 0.0
    whole = max(1, math.ceil(per_run))
    """GPUs of a run that has one or more; smaller runs share one, and none is on two."""
    by_gpu = len(gpus) // whole * max(1, int(1 / per_run + 1e-9)) if per_run else cores
    if options.parallel == "auto":
        parallel = max(1, min(cores // options.cpus_per_run, by_gpu))
    else:
        parallel = options.parallel
    places: tuple[str, ...] = ()
    if gpus and per_run:
        groups = [",".join(gpus[i : i + whole]) for i in range(0, len(gpus), whole)]
        places = tuple(groups[place % len(groups)] for place in range(parallel))
    return Share(parallel, max(1, cores // parallel), places)


@dataclass
class _Job:
    """A run in its place."""

    trial: Trial
    place: dict[str, str]
    """Its environment variables."""
    pruned: str = ""
    """Why it was asked to end early."""


def run_local(
    trials: Iterable[Trial],
    options: LocalOptions,
    share: Share,
    board: Board,
    request: StopRequest,
    unpromising: Callable[[Trial], str] = lambda trial: "",
) -> None:
    """Run all, each in a thread that waits for its process; the board has the outcomes.

    trials: each is asked for when a place is free, so it may follow from how the earlier ones went.
    unpromising: why a running one is to end early; empty = it is not.
    """
    news: SimpleQueue[tuple[Trial, Standing]] = SimpleQueue()

    def work(job: _Job) -> Standing:
        return attempt(
            job.trial,
            retries=options.retries,
            environment=job.place,
            stopping=lambda: max(request.count, bool(job.pruned)),
            tell=lambda now: news.put((job.trial, now)),
        )

    coming = _free_ones_first(trials)
    places = [{"CUDA_VISIBLE_DEVICES": gpus} for gpus in share.gpus] or [{}] * share.parallel
    jobs: dict[Future[Standing], _Job] = {}
    obeyed = 0
    refreshed = 0.0
    with ThreadPoolExecutor(share.parallel) as pool:
        try:
            while True:
                if request.count > obeyed:
                    obeyed = request.count
                    gently = "at their next episode end, then saving; again = at once"
                    how = "at once" if obeyed > 1 else gently
                    with unheard():
                        board.message(f"stopping {len(jobs)} run(s) {how}")
                while places and not obeyed and (trial := next(coming, None)) is not None:
                    job = _Job(trial, places.pop(0))
                    jobs[pool.submit(work, job)] = job
                if not jobs:
                    return
                ended, _ = wait(jobs, POLL_S, FIRST_COMPLETED)
                while not news.empty():
                    board.show(*news.get())
                for future in ended:
                    job = jobs.pop(future)
                    places.append(job.place)
                    board.show(job.trial, _after(job, future.result()))
                if time.monotonic() - refreshed > REFRESH_S:
                    refreshed = time.monotonic()
                    board.refresh()
                    for job in jobs.values():
                        running = board.rows[job.trial.name].now.state == "running"
                        if running and not job.pruned:
                            job.pruned = unpromising(job.trial)
        except BaseException:
            request.count = 2  # no run is left behind
            raise


def _free_ones_first(trials: Iterable[Trial]) -> Iterator[Trial]:
    """Those that another process holds now come last."""
    held = []
    for trial in trials:
        if is_held(trial.path):
            held.append(trial)
        else:
            yield trial
    yield from held


def _after(job: _Job, after: Standing) -> Standing:
    if job.pruned and after.state in CUT_OFF:
        RunDirectory(job.trial.path).update_status("pruned", job.pruned)
        return standing(job.trial.path)
    return after
