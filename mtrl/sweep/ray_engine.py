"""The Ray engine: each run is a task with its cores and its share of a GPU.

Ray places the tasks, and retries those whose worker or node is lost; a retried task resumes the
run from its last checkpoint. Where only the run's process was killed, the task itself resumes it.
Runs are written to a folder that all nodes share. Tasks end with the driver, and the runs with
their tasks (mtrl.commands.child): a driver started again continues.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mtrl.files.errors import first_line
from mtrl.run.state import Standing, State, last_said, standing
from mtrl.schema import ConfigError
from mtrl.sweep.board import Board
from mtrl.sweep.grid import Trial
from mtrl.sweep.options import SweepOptions
from mtrl.sweep.process import StopRequest, attempt

REFRESH_S = 1.0
OBJECT_STORE_BYTES = 80 * 2**20  # little more than the least that Ray accepts


def import_ray() -> Any:
    """ray, or ConfigError that says how to install it."""
    # No statistics are sent anywhere unless the user says so.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError("engine", "ray", "is not installed: pip install 'ray[client]'") from None
    return ray


@contextmanager
def connected(options: SweepOptions) -> Iterator[Any]:
    """Connected to the cluster; ConfigError if there is none at the address."""
    ray = import_ray()
    _knock(options.address)
    # A cluster of our own passes no data around and needs no pages that show it.
    own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(
            address=options.address,
            log_to_driver=False,
            logging_level="WARNING",
            **(own if options.address == "local" else {}),
        )
    except Exception as error:  # Ray raises many kinds, plain Exception among them
        reason = first_line(error)
        raise ConfigError("address", options.address, f"no Ray cluster there: {reason}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """ConfigError at once where nobody listens; Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):  # auto, local: for Ray to find
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError("address", address, f"no Ray cluster there: {error}") from None


def share(
    nodes: Sequence[dict[str, float]], options: SweepOptions, device: str
) -> tuple[float, float]:
    """Cores and GPUs of a run, given what each node has ({"CPU": 16, "GPU": 2, ...})."""
    gpus = options.gpus_per_run
    if gpus == "auto":
        has_gpu = any(node.get("GPU", 0) for node in nodes)
        gpus = 0.25 if has_gpu and device != "cpu" else 0.0
    return options.cpus_per_run, gpus


def fits(nodes: Sequence[dict[str, float]], share: tuple[float, float]) -> bool:
    """Some node could run one; if not, tasks wait until such a node joins the cluster."""
    return any(node.get("CPU", 0) >= share[0] and node.get("GPU", 0) >= share[1] for node in nodes)


def run_task(trial: Trial, retries: int) -> Standing:
    """What a Ray worker does: the run, to its end."""
    # Ray cancels a task by Python's SIGINT. It reaches no worker of a node that was started with
    # `&` in a script, as SIGINT is ignored there.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not (trial.config_file.is_file() or (trial.path / "config.yaml").is_file()):
        where = f"{platform.node()} does not see {trial.config_file}"
        return Standing("failed", f"{where}: --root must be a folder that all nodes share")
    return attempt(trial, retries=retries)


def run_ray(
    ray: Any,
    trials: Sequence[Trial],
    options: SweepOptions,
    share: tuple[float, float],
    board: Board,
    request: StopRequest,
) -> None:
    """Run all on the cluster; the board has the outcomes."""
    cpus, gpus = share
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=options.retries)(run_task)
    before = {trial.name: _said(trial) for trial in trials}
    pending = {task.remote(trial, options.retries): trial for trial in trials}
    obeyed = 0
    while pending:
        if request.count > obeyed:
            obeyed = request.count
            how = "at once" if obeyed > 1 else "at their next episode end, then saving"
            board.message(f"stopping all runs {how}; again = at once")
            for reference in pending:
                ray.cancel(reference, force=obeyed > 1)
        ended, _ = ray.wait(list(pending), timeout=REFRESH_S)
        for reference in ended:
            trial = pending.pop(reference)
            after = _result(ray, reference, trial)
            begun = board.rows[trial.name].now.state != "waiting"
            if begun or after.state in ("finished", "failed"):
                board.show(trial, after)
        for trial in pending.values():
            waits = board.rows[trial.name].now.state == "waiting"
            if waits and _said(trial) != before[trial.name]:
                board.show(trial, dataclasses.replace(last_said(trial.path), state="running"))
        board.refresh()


def _said(trial: Trial) -> float:
    """When the run last said something; 0 = never."""
    try:
        return (trial.path / "status.json").stat().st_mtime
    except OSError:
        return 0.0


def _result(ray: Any, reference: Any, trial: Trial) -> Standing:
    state: State
    try:
        after: Standing = ray.get(reference)
        return after
    except ray.exceptions.TaskCancelledError:
        reason, state = "stopped by this sweep", "stopped"
    except ray.exceptions.RayTaskError as error:
        reason, state = str(error.cause or error).strip().split("\n")[-1], "failed"
    except ray.exceptions.RayError as error:  # the worker or its node is lost
        reason, state = f"{type(error).__name__}, and no retries are left", "died"
    return dataclasses.replace(standing(trial.path), state=state, reason=reason)
