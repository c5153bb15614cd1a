"""Real worker processes. The environment classes stand at module level: workers unpickle them."""

import contextlib
import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
from conftest import PATIENCE, wait_for
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mtrl.config.benchmarks import TOY
from mtrl.envs import tasks, toy
from mtrl.envs.toy import PointMass
from mtrl.envs.vector import (
    IDLE,
    RESET,
    STEP,
    NonFiniteError,
    Step,
    VectorEnv,
    WorkerError,
    balance,
)

Factory = Callable[[], gymnasium.Env]


class Failing(PointMass):
    def step(self, action: NDArray[np.float32]) -> Any:
        if self._step == 2:
            raise ZeroDivisionError("the arm fell off")
        return super().step(action)


class Overflowing(PointMass):
    """Its third reward is infinite."""

    def step(self, action: NDArray[np.float32]) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, np.inf if self._step == 3 else reward, *rest


class Unmakeable(PointMass):
    def __init__(self, task_name: str) -> None:
        raise LookupError("no such robot")


class Stuck(PointMass):
    def step(self, action: NDArray[np.float32]) -> Any:
        time.sleep(3600)  # longer than the test may last
        return super().step(action)


class Terminating(PointMass):
    """Ends for good at its third step."""

    def step(self, action: NDArray[np.float32]) -> Any:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, self._step == 3, truncated, info


def point_masses(*horizons: int) -> list[Factory]:
    return [
        functools.partial(PointMass, name, num_goals=7, horizon=horizon, seed=3)
        for name, horizon in zip(TOY, horizons, strict=False)
    ]


def vector(factories: Sequence[Factory], workers: int) -> VectorEnv:
    names = TOY[: len(factories)]
    return VectorEnv(names, factories, toy.OBSERVATION_DIM, toy.ACTION_DIM, workers=workers)


def copied(step: Step) -> Step:
    return Step(*(field.copy() for field in step))


def random_actions(rng: np.random.Generator, lanes: int) -> NDArray[np.float32]:
    return rng.uniform(-1.5, 1.5, (lanes, 2)).astype(np.float32)


def idle_steps(envs: VectorEnv, count: int) -> None:
    for _ in range(count):
        envs.send(np.zeros((envs.num_lanes, 2), np.float32), [0] * envs.num_lanes)
        envs.receive()


def assert_dead_soon(processes: Sequence[psutil.Process]) -> None:
    def alive(process: psutil.Process) -> bool:
        try:
            # In a container nobody may reap orphans; a zombie is dead all the same.
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    wait_for(lambda: not any(map(alive, processes)), PATIENCE, "workers dead")


def workers_of(envs: VectorEnv) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in envs.worker_pids]


# ---------------------------------------------------------------- lanes and workers


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=60), st.integers(1, 12))
def test_every_lane_has_one_worker_and_no_worker_much_more_to_do(
    costs: list[float], workers: int
) -> None:
    workers = min(workers, len(costs))
    lanes = balance(costs, workers)
    assert sorted(lane for mine in lanes for lane in mine) == list(range(len(costs)))
    assert all(mine and mine == sorted(mine) for mine in lanes)
    loads = [sum(costs[lane] for lane in mine) for mine in lanes]
    # The dearest worker was the least loaded one before its last, and cheapest, lane.
    dearest = lanes[loads.index(max(loads))]
    assert max(loads) - min(loads) <= min(costs[lane] for lane in dearest) + 1e-9


def test_copies_of_a_task_share_a_worker_while_there_are_tasks_enough() -> None:
    costs = [3.0, 3.0, 1.0, 1.0, 2.0, 2.0]
    assert balance(costs, 2, copies=2) == [[0, 1], [2, 3, 4, 5]]
    assert balance(costs, 6, copies=2) == [[0], [1], [4], [5], [2], [3]]


def test_what_is_not_finite_is_named_with_its_task() -> None:
    factories = [*point_masses(9), functools.partial(Overflowing, TOY[1], num_goals=7, horizon=9)]
    with vector(factories, 1) as envs:
        envs.reset([0, 0])
        bad = np.array([[0.0, np.nan], [0.0, 0.0]], np.float32)
        with pytest.raises(NonFiniteError, match=f"^non-finite action of task {TOY[0]}$"):
            envs.send(bad, [0, 0])
        idle_steps(envs, 2)  # nothing was sent: the workers are as they were
        with pytest.raises(NonFiniteError, match=f"^non-finite reward of task {TOY[1]}$"):
            idle_steps(envs, 1)


# ---------------------------------------------------------------- stepping


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_equals_stepping_the_same_environments_here(workers: int) -> None:
    # Episodes end at different times, so that a mixed-up lane or goal shows.
    factories = point_masses(3, 4, 5, 11)
    here = [factory() for factory in factories]
    rng = np.random.default_rng(workers)
    with vector(factories, workers) as envs:
        assert len(set(envs.worker_pids)) == workers
        goals = rng.integers(0, 7, 4)
        first = [env.reset(options={"goal": int(g)})[0] for env, g in zip(here, goals, strict=True)]
        assert np.array_equal(envs.reset(goals), np.array(first, np.float32))
        for _ in range(13):
            actions, goals = random_actions(rng, 4), rng.integers(0, 7, 4)
            envs.send(actions, goals)
            outcome = envs.receive()
            for lane, env in enumerate(here):
                successor, reward, _, truncated, info = env.step(actions[lane])
                assert np.array_equal(outcome.next_observations[lane], np.float32(successor))
                assert outcome.rewards[lane] == reward
                assert outcome.truncated[lane] == truncated
                assert not outcome.terminated[lane]
                assert outcome.success[lane] == bool(info["success"])
                if truncated:
                    successor = env.reset(options={"goal": int(goals[lane])})[0]
                assert np.array_equal(outcome.observations[lane], np.float32(successor))


def test_the_task_sets_factories_run_in_workers() -> None:
    task_set = tasks.make_task_set(TOY, seed=8, horizon=2, num_goals=5)
    with VectorEnv(*task_set, workers=1) as envs:
        first = envs.reset([4, 0, 1, 2]).copy()
        for _ in range(2):
            envs.send(np.ones((4, 2), np.float32), [2, 4, 0, 1])
            outcome = copied(envs.receive())
    starts = PointMass("toy-east", num_goals=5, seed=8).starts.astype(np.float32)
    assert np.array_equal(first, starts[[4, 0, 1, 2]])
    assert outcome.truncated.all()
    assert np.allclose(outcome.next_observations, first + 0.2, atol=1e-6)
    assert np.array_equal(outcome.observations, starts[[2, 4, 0, 1]])


def test_terminated_episodes_restart_too_and_are_told_from_truncated_ones() -> None:
    factories = [functools.partial(Terminating, "toy-east"), *point_masses(9, 2)[1:]]
    starts = [factory().starts.astype(np.float32) for factory in factories]
    flags = []
    with vector(factories, 2) as envs:
        envs.reset([0, 0])
        for _ in range(4):
            envs.send(np.zeros((2, 2), np.float32), [5, 6])
            outcome = envs.receive()
            flags.append((outcome.terminated.tolist(), outcome.truncated.tolist()))
            # Actions are zero: the successor is where the episode started.
            if outcome.terminated[0]:
                assert np.array_equal(outcome.next_observations[0], starts[0][0])
                assert np.array_equal(outcome.observations[0], starts[0][5])
    no = [False, False]
    assert flags == [
        (no, no),
        (no, [False, True]),
        ([True, False], no),
        (no, [False, True]),
    ]


def test_idle_lanes_are_untouched_and_minus_one_keeps_an_ended_episode() -> None:
    factories = point_masses(3, 50, 50, 50)
    east, north, west, south = (factory() for factory in factories)
    for env in (east, north, west, south):
        env.reset(options={"goal": 0})
    push = np.full((4, 2), 0.5, np.float32)
    with vector(factories, 2) as envs:
        envs.reset([0] * 4)
        envs.send(push, [-1] * 4)
        before = copied(envs.receive())
        for env in (east, north, west, south):
            env.step(push[0])
        for _ in range(2):
            envs.command([STEP, IDLE, RESET, STEP], [-1, 5, 5, 5], push)
            after = copied(envs.receive())
            (last, reward, _, truncated, _), *_ = east.step(push[0]), south.step(push[0])
        for field, old in zip(after, before, strict=True):
            assert np.array_equal(field[1], old[1]), "an idle lane's row changed"
        assert truncated
        assert after.truncated[0]
        assert after.rewards[0] == reward
        assert np.array_equal(after.observations[0], np.float32(last)), "goal -1: no new episode"
        assert np.array_equal(after.observations[2], np.float32(west.starts[5]))
        envs.command([IDLE, STEP, STEP, STEP], [0] * 4, push)
        after = copied(envs.receive())
        assert np.array_equal(after.observations[1], np.float32(north.step(push[0])[0]))
        assert np.array_equal(after.observations[3], np.float32(south.step(push[0])[0]))
        assert after.rewards[0] == reward


# ---------------------------------------------------------------- failure


def test_an_environments_exception_names_its_task_and_cause() -> None:
    factories = [*point_masses(50), functools.partial(Failing, "toy-north"), *point_masses(50)]
    with vector(factories, 3) as envs:
        processes = workers_of(envs)
        envs.reset([0] * 3)
        with pytest.raises(WorkerError, match="the arm fell off") as caught:
            idle_steps(envs, 3)
        first_line = str(caught.value).splitlines()[0]
        assert "toy-north" in first_line
        assert "ZeroDivisionError" in first_line
        assert "toy-east" not in str(caught.value)
        with pytest.raises(WorkerError, match="toy-north"):  # and not a hang, if one continues
            idle_steps(envs, 2)
    assert_dead_soon(processes)


def test_an_environment_that_cannot_be_made_is_reported_at_the_first_reset() -> None:
    with (
        vector([functools.partial(Unmakeable, "toy-east")], 1) as envs,
        pytest.raises(WorkerError, match=r"toy-east.*LookupError.*no such robot"),
    ):
        envs.reset([0])


def test_a_killed_worker_is_reported_between_steps() -> None:
    envs = vector(point_masses(50, 50), 2)
    processes = workers_of(envs)
    envs.reset([0, 0])
    os.kill(envs.worker_pids[1], signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"toy-north.*signal 9"):
        idle_steps(envs, 1)
    envs.close()
    assert not any(process.is_running() for process in processes), "not even a zombie may stay"
    envs.close()


def test_a_worker_killed_within_a_step_is_reported_and_close_ends_a_stuck_one() -> None:
    envs = vector([functools.partial(Stuck, name) for name in TOY[:2]], 2)
    processes = workers_of(envs)
    envs.reset([0, 0])
    envs.send(np.zeros((2, 2), np.float32), [0, 0])
    threading.Timer(0.3, os.kill, (envs.worker_pids[0], signal.SIGKILL)).start()
    with pytest.raises(WorkerError, match=r"toy-east.*signal 9"):
        envs.receive()
    envs.close()
    assert not any(process.is_running() for process in processes)


def test_interrupt_and_terminate_do_not_stop_a_worker() -> None:
    with vector(point_masses(50), 1) as envs:
        start = envs.reset([0]).copy()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(envs.worker_pids[0], number)
            envs.send(np.ones((1, 2), np.float32), [0])
            assert envs.receive().observations[0, 0] > start[0, 0]


# ---------------------------------------------------------------- what is left behind


def named_shared_memory(processes: Sequence[psutil.Process]) -> list[str]:
    """Files under /dev/shm that these processes map or hold open and that have a name.

    Of these processes alone: other programs on the machine use /dev/shm too.
    """
    found = []
    for process in processes:
        with open(f"/proc/{process.pid}/maps") as maps:
            found += [line.split(maxsplit=5)[-1].strip() for line in maps if "/dev/shm/" in line]
        for number in os.listdir(f"/proc/{process.pid}/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/{process.pid}/fd/{number}"))
    return [path for path in found if "/dev/shm/" in path and not path.endswith("(deleted)")]


def test_nothing_is_left_in_shared_memory_and_no_process_stays() -> None:
    this = psutil.Process()
    before = named_shared_memory([this])
    with vector(point_masses(50, 50), 2) as envs:
        processes = workers_of(envs)
        envs.reset([0, 0])
        assert set(named_shared_memory([this, *processes])) <= set(before)
    assert not any(process.is_running() for process in processes)
    assert set(named_shared_memory([this])) <= set(before)


def test_a_forgotten_vector_environment_ends_its_workers() -> None:
    envs = vector(point_masses(50), 1)
    processes = workers_of(envs)
    envs.reset([0])
    del envs
    gc.collect()
    assert_dead_soon(processes)


PARENT = """
import functools, sys, time
import numpy as np
from mtrl.config.benchmarks import TOY
from mtrl.envs import tasks
from mtrl.envs.vector import VectorEnv

envs = VectorEnv(*tasks.make_task_set(TOY, seed=1), workers=2)
if sys.argv[1] == "running":
    envs.reset([0] * 4)
print(*envs.worker_pids, flush=True)
while sys.argv[1] == "running":
    envs.send(np.zeros((4, 2), np.float32), [0] * 4)
    envs.receive()
time.sleep(3600)
"""


@pytest.mark.parametrize("moment", ["running", "starting"])
def test_a_killed_parent_leaves_no_worker_alive(moment: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, moment],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        family = psutil.Process(parent.pid).children(recursive=True)
        assert len(pids) == 2
        assert set(pids) <= {process.pid for process in family}
    finally:
        parent.kill()
        parent.communicate()
    assert_dead_soon(family)
