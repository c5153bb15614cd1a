"""Worker processes that step many environments over shared memory.

Each worker owns several lanes (one lane = one environment). Actions go in and observations,
rewards and flags come out through shared arrays [lane, ...]; the pipes carry single bytes to say
"go" and "done", so nothing is pickled while stepping. The shared block is an unlinked mapping:
no named segment exists that a killed process could leave behind. A worker whose parent dies reads
the end of its pipe and exits.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing as mp
import os
import select
import signal
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mtrl.config import Config
from mtrl.device.stop_signals import STOP_SIGNALS
from mtrl.envs import tasks
from mtrl.envs.rendering import DISABLED, set_up_process
from mtrl.envs.success import TaskError, is_solved

IDLE, STEP, RESET = 0, 1, 2
READY, GO, DONE, ERROR = b"ready", b"go", b"done", b"error"
TIMEOUT_S = 300.0  # longest a single step of all lanes may take

Goals = Sequence[int] | NDArray[np.int64]
Arrays = dict[str, NDArray[Any]]


class WorkerError(RuntimeError):
    """A simulation worker died, failed or hung; names its tasks."""


class NonFiniteError(WorkerError):
    """An action, observation or reward that is NaN or infinite; names its task."""


class Step(NamedTuple):
    """Outcome of one step. Views into shared memory: valid until the next `send` or `reset`.

    The fields are those of `_layout` that the workers write.
    """

    observations: NDArray[np.float32]
    """[lane, obs] what to act on next; after an episode's end, the new episode's first."""
    next_observations: NDArray[np.float32]
    """[lane, obs] the true successor of the action, also at an episode's end."""
    rewards: NDArray[np.float64]
    """[lane] raw."""
    terminated: NDArray[np.bool_]
    """[lane] the episode reached a terminal state: do not bootstrap. Never in Meta-World."""
    truncated: NDArray[np.bool_]
    """[lane] the episode was cut at the horizon: bootstrap."""
    success: NDArray[np.bool_]
    """[lane] the task is solved at this step."""

    @property
    def ended(self) -> NDArray[np.bool_]:
        """[lane] the episode ended, one way or the other."""
        return self.terminated | self.truncated


def _layout(lanes: int, observation_dim: int, action_dim: int) -> np.dtype[np.void]:
    """What parent and workers share: arrays [lane, ...], one after the other."""
    return np.dtype(
        [
            ("commands", np.uint8, (lanes,)),
            ("goals", np.int64, (lanes,)),
            ("actions", np.float32, (lanes, action_dim)),
            ("observations", np.float32, (lanes, observation_dim)),
            ("next_observations", np.float32, (lanes, observation_dim)),
            ("rewards", np.float64, (lanes,)),
            ("terminated", np.bool_, (lanes,)),
            ("truncated", np.bool_, (lanes,)),
            ("success", np.bool_, (lanes,)),
            ("seconds", np.float64, (lanes,)),  # spent in the environment, ever
        ],
        align=True,
    )


def _arrays(block: Any, layout: np.dtype[np.void]) -> Arrays:
    record = np.frombuffer(block, layout, count=1)
    return {name: record[name][0] for name in layout.names or ()}


def _worker(
    connection: Connection,
    names: dict[int, str],
    factories: dict[int, Callable[[], gymnasium.Env]],
    block: Any,
    layout: np.dtype[np.void],
    renderer: str,
) -> None:
    # The parent decides when to stop; a signal to the whole group must not break an episode.
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    try:
        set_up_process(renderer)
        shared = _arrays(block, layout)
        envs = {lane: factory() for lane, factory in factories.items()}
        connection.send_bytes(READY)
        while connection.recv_bytes() == GO:
            for lane, env in envs.items():
                started = time.perf_counter()
                command = shared["commands"][lane]
                if command == STEP:
                    _step_lane(shared, lane, names[lane], env)
                elif command == RESET:
                    options = {"goal": int(shared["goals"][lane])}
                    shared["observations"][lane] = env.reset(options=options)[0]
                shared["seconds"][lane] += time.perf_counter() - started
            connection.send_bytes(DONE)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone
    except TaskError as error:
        with contextlib.suppress(OSError):
            connection.send_bytes(ERROR + str(error).encode())
    except BaseException:
        with contextlib.suppress(OSError):
            connection.send_bytes(ERROR + traceback.format_exc().encode())
    finally:
        os._exit(0)  # skip interpreter teardown: nothing is left to flush


def _step_lane(shared: Arrays, lane: int, name: str, env: gymnasium.Env) -> None:
    observation, reward, terminated, truncated, info = env.step(shared["actions"][lane])
    shared["next_observations"][lane] = observation
    shared["rewards"][lane] = reward
    shared["terminated"][lane] = terminated
    shared["truncated"][lane] = truncated
    shared["success"][lane] = is_solved(name, info)
    if (terminated or truncated) and (goal := int(shared["goals"][lane])) >= 0:
        observation, _ = env.reset(options={"goal": goal})
    shared["observations"][lane] = observation


class VectorEnv:
    """One environment per lane, stepped in parallel by worker processes.

    The constructor returns at once; the first `reset` waits for the workers, so that whatever
    else has to start can start meanwhile. Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        names: Sequence[str],
        factories: Sequence[Callable[[], gymnasium.Env]],
        observation_dim: int,
        action_dim: int,
        costs: Sequence[float] | None = None,
        *,
        workers: int,
        copies: int = 1,
        renderer: str = DISABLED,
    ) -> None:
        """costs [lane]: relative time of a step, to load all workers alike; equal if not given.
        copies: this many adjacent lanes are of one task.
        renderer: what MuJoCo draws with in the workers, from `choose_renderer`."""
        self.names = tuple(names)
        self.num_lanes = len(factories)
        self.observation_dim, self.action_dim = observation_dim, action_dim
        layout = _layout(self.num_lanes, observation_dim, action_dim)
        context = mp.get_context("spawn")  # fork is unsafe beside CUDA and threads
        block = context.RawArray(ctypes.c_byte, layout.itemsize)
        self._shared = _arrays(block, layout)
        self._outcome = Step(*(self._shared[name] for name in Step._fields))
        self._waiting = True
        workers = max(1, min(workers, self.num_lanes))
        self._lanes = balance(costs or [1.0] * self.num_lanes, workers, copies)
        self._connections: list[Connection] = []
        self._pollers: list[select.poll] = []  # Connection.poll makes one at every call
        self._processes: list[BaseProcess] = []
        self._finalizer = weakref.finalize(self, _shut_down, self._connections, self._processes)
        for lanes in self._lanes:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_worker,
                args=(
                    theirs,
                    {lane: self.names[lane] for lane in lanes},
                    {lane: factories[lane] for lane in lanes},
                    block,
                    layout,
                    renderer,
                ),
                daemon=True,
                name=f"mtrl-worker-{lanes[0]}",
            )
            with _inherited_by_workers():
                process.start()
            theirs.close()  # only the worker holds it now: its death reads as end of file
            self._connections.append(ours)
            self._pollers.append(select.poll())
            self._pollers[-1].register(ours, select.POLLIN)
            self._processes.append(process)

    @property
    def worker_pids(self) -> list[int]:
        return [process.pid for process in self._processes if process.pid is not None]

    def reset(self, goals: Goals) -> NDArray[np.float32]:
        """Start a new episode in every lane, with the goals given; -> observations [lane, obs]."""
        self.command(RESET, goals)
        return self.receive().observations

    def send(self, actions: NDArray[np.float32], next_goals: Goals) -> None:
        """Start one step [lane, action]; an episode that ends leads to `next_goals` [lane]."""
        self.command(STEP, next_goals, actions)

    def command(
        self,
        commands: int | Sequence[int] | NDArray[np.uint8],
        goals: Goals,
        actions: NDArray[np.float32] | None = None,
    ) -> None:
        """IDLE, STEP or RESET, for each lane or for all. Raises WorkerError.

        Goal -1: do not reset when an episode ends.
        """
        if self._waiting:
            self._receive(READY)
            self._waiting = False
        self._shared["commands"][:] = commands
        self._shared["goals"][:] = goals
        if actions is not None:
            self._check_finite("action", actions)
            self._shared["actions"][:] = actions
        for index, connection in enumerate(self._connections):
            try:
                connection.send_bytes(GO)
            except OSError:
                raise self._death(index) from None

    def receive(self) -> Step:
        """Wait for the step begun by `send` or `command`. Raises WorkerError."""
        self._receive(DONE)
        outcome = self._outcome
        self._check_finite("observation", outcome.next_observations, outcome.observations)
        self._check_finite("reward", outcome.rewards)
        return outcome

    def _check_finite(self, quantity: str, *arrays: NDArray[Any]) -> None:
        for values in arrays:  # [lane, ...]
            if not np.isfinite(values).all():
                lane = np.argwhere(~np.isfinite(values))[0, 0]
                raise NonFiniteError(f"non-finite {quantity} of task {self.names[lane]}")

    def worker_seconds(self) -> NDArray[np.float64]:
        """Time each worker has spent in its environments so far, [worker]."""
        return np.array([self._shared["seconds"][lanes].sum() for lanes in self._lanes])

    def check(self) -> None:
        """Raise WorkerError if a worker has died, without waiting for anything."""
        for index, process in enumerate(self._processes):
            if process.exitcode is not None:
                raise self._death(index)

    def _receive(self, expected: bytes) -> None:
        for index, connection in enumerate(self._connections):
            try:
                # In slices, of which a run that was paused for hours loses one.
                if not any(self._pollers[index].poll(1e3) for _ in range(int(TIMEOUT_S))):
                    raise WorkerError(
                        f"{self._describe(index)} did not answer in {TIMEOUT_S:.0f} s"
                    )
                message = connection.recv_bytes()
            except (EOFError, OSError):
                raise self._death(index) from None
            if message != expected:
                *above, last = (
                    message.removeprefix(ERROR).decode(errors="replace").strip().splitlines()
                )
                report = "\n".join(["", *above, last]) if above else ""
                raise WorkerError(f"{self._describe(index)} failed: {last}{report}")

    def _describe(self, index: int) -> str:
        tasks = ", ".join(self.names[lane] for lane in self._lanes[index])
        return f"simulation worker {index} (tasks: {tasks})"

    def _death(self, index: int) -> WorkerError:
        process = self._processes[index]
        process.join(5)
        code = process.exitcode
        cause = f"was killed by signal {-code}" if code is not None and code < 0 else "died"
        return WorkerError(f"{self._describe(index)} {cause}")

    def close(self) -> None:
        """End all workers; safe to call twice."""
        self._finalizer()

    def __enter__(self) -> VectorEnv:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextlib.contextmanager
def _inherited_by_workers() -> Iterator[None]:
    """What a process started inside inherits: one NumPy thread, and deafness to signals.

    The workers are the parallelism; and only the parent decides when to stop, also while they
    are still starting. It hears a signal that comes meanwhile afterwards.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    saved = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    resource_tracker.ensure_running()  # its own start would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _shut_down(connections: list[Connection], processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()  # they hold nothing to be saved, and may still be starting
    for process in processes:
        process.join(5)
    for connection in connections:
        connection.close()


def balance(costs: Sequence[float], workers: int, copies: int = 1) -> list[list[int]]:
    """Lanes of each worker: the most expensive first, each to the worker with least to do so far.

    A task's adjacent `copies` stay together, which saves compiling its model twice, as long as
    there are tasks enough for all workers.
    """
    together = copies if workers <= len(costs) // copies else 1
    lanes: list[list[int]] = [[] for _ in range(workers)]
    loads = [0.0] * workers
    for first in sorted(range(0, len(costs), together), key=lambda lane: -costs[lane]):
        least = loads.index(min(loads))
        group = range(first, first + together)
        lanes[least] += group
        loads[least] += sum(costs[lane] for lane in group)
    return [sorted(mine) for mine in lanes]


def make_vector_env(config: Config, envs_per_task: int = 1) -> VectorEnv:
    """The run's environments (training or evaluation), task-major, in worker processes."""
    task_set = tasks.task_set_of(config)
    return VectorEnv(
        [name for name in task_set.names for _ in range(envs_per_task)],
        [factory for factory in task_set.factories for _ in range(envs_per_task)],
        task_set.observation_dim,
        task_set.action_dim,
        [cost for cost in task_set.costs for _ in range(envs_per_task)],
        workers=auto_workers(config.env.workers, config.num_tasks * envs_per_task),
        copies=envs_per_task,
    )


def auto_workers(workers: int | str, lanes: int) -> int:
    """Number of processes: `auto` = min(cores this process may use, environments)."""
    if workers == "auto":
        return min(len(os.sched_getaffinity(0)), lanes)
    return min(int(workers), lanes)
