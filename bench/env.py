"""Speed of the simulation: per task, and of the vector environments.

    python bench/env.py --csv docs/simulation.csv   # then bench/draw.py
    python bench/env.py --steps 0 --envs-per-task 8 32 --workers 16   # only our vector env

Per task, microseconds: Meta-World's own step, ours, and the physics alone (five MuJoCo steps and
the forward pass that every step must make); milliseconds: Meta-World's reset, ours to a new goal,
and ours to a goal visited before. The three steps take turns in short chunks on the same goal and
actions, so that a busy machine slows all of them; the ratios are medians over the chunks. Then
environment steps per second of the whole vector environment on MT10, against Gymnasium's where a
task has one environment.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import pickle
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from harness import run, take_turns
from mtrl.config import Config, EnvConfig, benchmarks
from mtrl.envs import metaworld as metaworld_tasks
from mtrl.envs import tasks
from mtrl.envs.vector import make_vector_env
from mtrl.report.markdown import Table

CHUNK = 25  # steps


class TaskSpeed(NamedTuple):
    """Steps in microseconds, resets in milliseconds."""

    upstream: float
    ours: float
    physics: float
    upstream_ratio: float
    ours_ratio: float
    upstream_reset: float
    new_goal_reset: float
    known_goal_reset: float


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def steps_of(env: Any) -> Callable[[], float]:
    """Seconds of the next CHUNK random steps."""
    env.reset()
    random = np.random.default_rng(0)

    def chunk() -> float:
        if env.curr_path_length + CHUNK > env.max_path_length:
            env.reset()
        actions = random_actions(random, CHUNK)
        return seconds(lambda: [env.step(action) for action in actions])

    return chunk


def physics_of(env: Any) -> Callable[[], float]:
    """Seconds that MuJoCo alone spends on the same steps."""
    import mujoco

    env.reset()
    random = np.random.default_rng(0)
    model, data = env.model, env.data

    def step() -> None:
        mujoco.mj_step(model, data, nstep=5)
        mujoco.mj_forward(model, data)

    def chunk() -> float:
        spent = 0.0
        for action in random_actions(random, CHUNK):
            env.set_xyz_action(action[:3])
            data.ctrl[:] = action[3], -action[3]
            spent += seconds(step)
        return spent

    return chunk


def random_actions(random: np.random.Generator, number: int) -> NDArray[np.float32]:
    return random.uniform(-1, 1, (number, 4)).astype(np.float32)


def measure_task(name: str, reward_version: str, steps: int) -> TaskSpeed:
    goals = metaworld_tasks.goal_vectors((name,), 1)[name]
    upstream, ours, physics = (
        metaworld_tasks.MetaWorldTask(name, goals, reward_version=reward_version, fast=fast).env
        for fast in (False, True, True)
    )
    works = steps_of(upstream), steps_of(ours), physics_of(physics)
    turns = max(1, steps // CHUNK)
    spent = take_turns(works, math.inf, most=turns) / CHUNK * 1e6
    resets = []
    for goal in (1, 2, 3):
        for task in (upstream, ours):
            task.set_task(_task(name, goals[goal]))
        resets.append([seconds(env.reset) for env in (upstream, ours, ours)])
    ratios = np.median(spent / spent[:, 2:], 0)[:2]
    return TaskSpeed._make([*np.median(spent, 0), *ratios, *(np.median(resets, 0) * 1e3)])


def _task(name: str, goal: Any) -> Any:
    metaworld = metaworld_tasks.import_metaworld()
    env_class = metaworld.env_dict.ALL_V3_ENVIRONMENTS[name]
    data = {"rand_vec": goal, "env_cls": env_class, "partially_observable": False}
    return metaworld.types.Task(name, pickle.dumps(data))


def ours_per_second(copies: int, workers: int, steps: int, fast: bool) -> float:
    """Environment steps per second of our worker processes on MT10, episodes' ends included."""
    config = Config(env=EnvConfig(benchmark="MT10", workers=workers, fast=fast))
    with make_vector_env(config, copies) as envs:
        lanes = envs.num_lanes
        generator = np.random.default_rng(0)
        actions = [random_actions(generator, lanes) for _ in range(steps)]
        envs.reset([0] * lanes)

        def run() -> None:
            for action in actions:
                envs.send(action, [0] * lanes)
                envs.receive()

        return steps * lanes / seconds(run)


def gymnasium_per_second(kind: type, names: Sequence[str], steps: int) -> float:
    """The same of a Gymnasium vector environment over Meta-World's own step."""
    factories = tasks.make_task_set(names, seed=1, fast=False).factories
    envs = kind(factories)
    generator = np.random.default_rng(0)
    actions = [random_actions(generator, len(names)) for _ in range(steps)]
    try:
        envs.reset()

        def run() -> None:
            for action in actions:
                envs.step(action)

        return steps * len(names) / seconds(run)
    finally:
        envs.close()


def task_table(names: Sequence[str], reward_version: str, steps: int) -> Table:
    table = Table(
        *("task", "upstream us", "ours us", "physics us", "upstream / physics", "ours / physics"),
        *("reset upstream ms", "new goal ms", "known goal ms"),
        intro=f"{steps} steps per task.",
    )

    def add(name: str, speed: TaskSpeed) -> None:
        digits = zip(speed, (0, 0, 0, 2, 2, 1, 1, 1), strict=True)
        table.add(name, *(f"{value:.{places}f}" for value, places in digits))

    speeds = {}
    for name in names:
        speeds[name] = measure_task(name, reward_version, steps)
        add(name, speeds[name])
    for title, of in (("MT10", benchmarks.MT10), ("MT50", benchmarks.MT50)):
        if set(of) <= set(speeds):
            add(f"**mean {title}**", TaskSpeed._make(np.mean([speeds[name] for name in of], 0)))
    return table


def vector_table(envs_per_task: Sequence[int], workers: Sequence[int], steps: int) -> Table:
    table = Table("MT10, vector environment", "env steps/s")
    if 1 in envs_per_task:
        for title, kind in (
            ("gymnasium SyncVectorEnv", gymnasium.vector.SyncVectorEnv),
            ("gymnasium AsyncVectorEnv, 10 processes", gymnasium.vector.AsyncVectorEnv),
        ):
            table.add(title, f"{gymnasium_per_second(kind, benchmarks.MT10, steps):.0f}")
    for copies, processes, fast in itertools.product(envs_per_task, workers, (True, False)):
        rate = ours_per_second(copies, processes, steps, fast)
        title = f"ours, {copies * len(benchmarks.MT10)} environments, {processes} workers"
        table.add(f"{title}, env.fast={str(fast).lower()}", f"{rate:.0f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--tasks", nargs="+", default=benchmarks.MT50, choices=benchmarks.MT50, metavar="T"
    )
    parser.add_argument("--reward-version", default="v2", choices=("v1", "v2"))
    parser.add_argument("--steps", type=int, default=500, help="per task; 0: no table of tasks")
    parser.add_argument("--vector-steps", type=int, default=1000, help="0: no vector environments")
    parser.add_argument("--workers", nargs="+", type=int, help="default: 1 to the number of cores")
    parser.add_argument("--envs-per-task", nargs="+", type=int, default=[1])
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--csv", type=Path, help="CSV file for the table of tasks")
    options = parser.parse_args()

    cores = len(os.sched_getaffinity(0))
    machine = platform.processor() or platform.machine()
    parts = [
        f"{machine}, {cores} cores, Python {platform.python_version()}, reward "
        f"{options.reward_version}."
    ]
    print(*parts, flush=True)
    if options.steps:
        print()
        table = task_table(options.tasks, options.reward_version, options.steps)
        table.publish(None, options.csv)
        parts.append(str(table))
    if options.vector_steps:
        print()
        workers = options.workers or range(1, cores + 1)
        parts.append(str(vector_table(options.envs_per_task, workers, options.vector_steps)))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    run(main)
