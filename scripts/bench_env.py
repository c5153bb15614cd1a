"""Speed of the simulation: per task, and of the vector environments.

    python scripts/bench_env.py --out docs/performance-env.md
    python scripts/bench_env.py --steps 0 --envs-per-task 8 32 --workers 16   # only our vector env

Per task, microseconds: Meta-World's own step, ours, and the physics alone (five MuJoCo steps and
the forward pass that every step must make); milliseconds: Meta-World's reset, ours to a new goal,
and ours to a goal visited before. The three steps take turns in short chunks on the same goal and
actions, so that a busy machine slows all of them; the ratios are medians over the chunks. Then
environment steps per second of the whole vector environment on MT10, against Gymnasium's where a
task has one environment.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import pickle
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from mtrl import benchmarks
from mtrl.config import Config, EnvConfig
from mtrl.envs import metaworld as metaworld_tasks
from mtrl.envs import tasks
from mtrl.envs.vector import make_vector_env

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


def measure_task(name: str, reward_version: str, steps: int) -> TaskSpeed:
    import mujoco

    goals = metaworld_tasks.goal_vectors((name,), 1)[name]
    upstream, ours, physics = (
        metaworld_tasks.MetaWorldTask(name, goals, reward_version=reward_version, fast=fast).env
        for fast in (False, True, True)
    )
    for env in (upstream, ours, physics):
        env.reset()
    model, data = physics.model, physics.data
    random = np.random.default_rng(0)
    chunks = []
    for _ in range(max(1, steps // CHUNK)):
        actions = random.uniform(-1, 1, (CHUNK, 4)).astype(np.float32)
        for env in (upstream, ours, physics):
            if env.curr_path_length + CHUNK > env.max_path_length:
                env.reset()

        def run(env: Any, actions: Any = actions) -> None:
            for action in actions:
                env.step(action)

        times = [seconds(lambda: run(upstream)), seconds(lambda: run(ours)), 0.0]
        for action in actions:
            physics.set_xyz_action(action[:3])
            data.ctrl[:] = action[3], -action[3]
            started = time.perf_counter()
            mujoco.mj_step(model, data, nstep=5)
            mujoco.mj_forward(model, data)
            times[2] += time.perf_counter() - started
        chunks.append(times)
    spent = np.array(chunks) / CHUNK * 1e6
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
        actions = np.random.default_rng(0).uniform(-1, 1, (lanes, 4)).astype(np.float32)
        envs.reset([0] * lanes)

        def run() -> None:
            for _ in range(steps):
                envs.send(actions, [0] * lanes)
                envs.receive()

        return steps * lanes / seconds(run)


def _with_common_space(factory: Callable[[], gymnasium.Env]) -> gymnasium.Env:
    """Gymnasium's vector environments want equal spaces; Meta-World's bounds differ by task."""
    env = factory()
    env.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (39,), np.float64)
    return env


def gymnasium_per_second(kind: type, names: Sequence[str], steps: int) -> float:
    """The same of a Gymnasium vector environment over Meta-World's own step."""
    factories = tasks.make_task_set(names, seed=1, fast=False).factories
    envs = kind([functools.partial(_with_common_space, factory) for factory in factories])
    actions = np.random.default_rng(0).uniform(-1, 1, (len(names), 4)).astype(np.float32)
    try:
        envs.reset()

        def run() -> None:
            for _ in range(steps):
                envs.step(actions)

        return steps * len(names) / seconds(run)
    finally:
        envs.close()


def task_table(speeds: dict[str, TaskSpeed]) -> list[str]:
    lines = [
        "| task | upstream us | ours us | physics us | upstream / physics | ours / physics "
        "| reset upstream ms | new goal ms | known goal ms |",
        "|---|" + "---|" * 8,
    ]
    rows = dict(speeds)
    for title, names in (("MT10", benchmarks.MT10), ("MT50", benchmarks.MT50)):
        if set(names) <= set(speeds):
            rows[f"**mean {title}**"] = TaskSpeed._make(np.mean([speeds[n] for n in names], 0))
    for name, speed in rows.items():
        steps = " | ".join(f"{value:.0f}" for value in speed[:3])
        ratios = " | ".join(f"{value:.2f}" for value in speed[3:5])
        resets = " | ".join(f"{value:.1f}" for value in speed[5:])
        lines.append(f"| {name} | {steps} | {ratios} | {resets} |")
    return lines


def vector_lines(envs_per_task: Sequence[int], workers: Sequence[int], steps: int) -> Iterator[str]:
    """Each as soon as it is measured."""
    yield from ("", "| MT10, vector environment | env steps/s |", "|---|---|")
    if 1 in envs_per_task:
        for title, kind in (
            ("gymnasium SyncVectorEnv", gymnasium.vector.SyncVectorEnv),
            ("gymnasium AsyncVectorEnv, 10 processes", gymnasium.vector.AsyncVectorEnv),
        ):
            yield f"| {title} | {gymnasium_per_second(kind, benchmarks.MT10, steps):.0f} |"
    for copies, processes, fast in itertools.product(envs_per_task, workers, (True, False)):
        rate = ours_per_second(copies, processes, steps, fast)
        title = f"ours, {copies * len(benchmarks.MT10)} environments, {processes} workers"
        yield f"| {title}, env.fast={str(fast).lower()} | {rate:.0f} |"


def main() -> int:
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
    options = parser.parse_args()

    speeds = {}
    for name in options.tasks if options.steps else ():
        speeds[name] = speed = measure_task(name, options.reward_version, options.steps)
        print(
            f"{name:30s} upstream {speed.upstream:5.0f} us  ours {speed.ours:5.0f} us  "
            f"physics {speed.physics:5.0f} us  x{speed.upstream_ratio:.2f} -> "
            f"x{speed.ours_ratio:.2f}  reset {speed.upstream_reset:.1f} -> "
            f"{speed.new_goal_reset:.1f}, {speed.known_goal_reset:.1f} ms",
            flush=True,
        )
    cores = len(os.sched_getaffinity(0))
    lines = [
        f"{platform.processor() or platform.machine()}, {cores} cores, Python "
        f"{platform.python_version()}, reward {options.reward_version}."
    ]
    if speeds:
        lines += ["", f"{options.steps} steps per task.", "", *task_table(speeds)]
    print("\n".join(["", *lines]), flush=True)
    if options.vector_steps:
        workers = options.workers or range(1, cores + 1)
        for line in vector_lines(options.envs_per_task, workers, options.vector_steps):
            print(line, flush=True)
            lines.append(line)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
