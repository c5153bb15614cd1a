"""Compare the fast Meta-World step with upstream's own, bit for bit, on every task.

    python scripts/verify_simulation.py --processes 2

Both environments get the same goals and actions, side by side: random, scripted (Meta-World's
expert policies, whose actions leave the action space) and saturated ones, over whole episodes to
their end, with resets to new goals and to goals seen before. Equal must be: observations, infos,
flags, every number the reset leaves in the environment and its model, and the whole physics state
after every step, to the bit; rewards to 1e-12 relative. One line per task; exit code 1 if any
task differs.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtrl.envs import tasks

REWARD_TOLERANCE = 1e-12
# (kind of actions, seed of the goal list, index of the goal): goals change and come back.
EPISODES = (
    ("random", 1, 0),
    ("scripted", 1, 0),
    ("saturated", 2, 1),
    ("scripted", 2, 3),
    ("random", 2, 1),
    ("saturated", 1, 0),
)
# Of no influence on the simulation, and large.
NOT_COMPARED = ("mesh_", "tex_", "bvh_", "oct_", "name_", "names", "text_", "skin_", "mat_")


class Difference(Exception):
    """The first difference found, in words."""


class Outcome(NamedTuple):
    task: str
    error: str  # empty if nothing differs
    steps: int
    resets: int
    rewards_bitwise: bool
    seconds: float


def bits(value: Any) -> bytes:
    return np.asarray(value, np.float64).tobytes()


def require_equal(where: str, expected: Any, actual: Any) -> None:
    if bits(expected) != bits(actual):
        raise Difference(f"{where}: upstream {expected!r}, fast {actual!r}")


def physics_state(env: Any) -> NDArray[np.float64]:
    """Everything MuJoCo's next step depends on: positions, velocities, controls, mocap, time,
    warm start and the rest of mjSTATE_INTEGRATION; and the last accelerations."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(env.model, kind))
    mujoco.mj_getState(env.model, env.data, state, kind)
    return np.concatenate((state, env.data.qacc, env.data.xpos.ravel(), env.data.site_xpos.ravel()))


def compare_settings(where: str, upstream: Any, fast: Any) -> None:
    """What a reset may write: the environment's numbers, and its model."""
    for name, value in vars(upstream).items():
        if isinstance(value, bool | int | float | np.generic | np.ndarray):
            require_equal(f"{where}: env.{name}", value, getattr(fast, name))
    for name in dir(upstream.model):
        value = getattr(upstream.model, name)
        if isinstance(value, np.ndarray) and not name.startswith(NOT_COMPARED):
            require_equal(f"{where}: model.{name}", value, getattr(fast.model, name))


def compare_step(where: str, expected: Any, actual: Any) -> bool:
    """Compare what `step` returned; -> whether the rewards are equal to the bit, too."""
    for index, name in ((0, "observation"), (2, "terminated"), (3, "truncated")):
        require_equal(f"{where}: {name}", expected[index], actual[index])
    if list(expected[4]) != list(actual[4]):
        raise Difference(f"{where}: info has {list(actual[4])}, not {list(expected[4])}")
    for key, value in expected[4].items():
        if key != "unscaled_reward":  # the reward once more
            require_equal(f"{where}: info[{key!r}]", value, actual[4][key])
    for theirs, ours in (
        (expected[1], actual[1]),
        (expected[4]["unscaled_reward"], actual[4]["unscaled_reward"]),
    ):
        if not math.isclose(theirs, ours, rel_tol=REWARD_TOLERANCE):
            raise Difference(f"{where}: reward: upstream {theirs!r}, fast {ours!r}")
    return bits(expected[1]) == bits(actual[1])


def action_source(
    kind: str, task: str, random: np.random.Generator
) -> Callable[[NDArray[np.float64]], NDArray[np.float32]]:
    if kind == "scripted":
        from metaworld.policies import ENV_POLICY_MAP

        policy = ENV_POLICY_MAP[task]()
        return lambda observation: np.asarray(policy.get_action(observation), np.float32)
    if kind == "saturated":  # held for a while, so that the hand reaches its limits
        corner = np.ones(4, np.float32)

        def saturated(observation: NDArray[np.float64]) -> NDArray[np.float32]:
            flip = random.random(4) < 0.03
            corner[flip] *= -1
            return corner.copy()

        return saturated
    return lambda observation: random.uniform(-1, 1, 4).astype(np.float32)


def must_refuse(env: Any) -> None:
    try:
        env.step(np.zeros(4, np.float32))
    except ValueError:
        return
    raise Difference("a step after the end of the episode was not refused")


def compare_task(
    task: str,
    reward_versions: Sequence[str] = ("v1", "v2"),
    episodes: Sequence[tuple[str, int, int]] = EPISODES,
    steps: int = 500,
    make_fast: Callable[[type], Any] | None = None,
) -> Outcome:
    """Run both environments side by side until the first difference.

    `make_fast` turns upstream's class into the one compared with it, `fast_class` by default.
    """
    metaworld = tasks._import_metaworld()
    from mtrl.envs.fast_metaworld.environment import fast_class

    make_fast = make_fast or fast_class
    env_class = metaworld.env_dict.ALL_V3_ENVIRONMENTS[task]
    started, compared, resets, rewards_bitwise = time.perf_counter(), 0, 0, True
    goals = {seed: tasks.goal_vectors((task,), seed)[task] for _, seed, _ in episodes}
    error = ""
    try:
        for version in reward_versions:
            upstream = env_class(reward_function_version=version)
            fast = make_fast(env_class)(reward_function_version=version)
            random = np.random.default_rng(0)
            for number, (kind, seed, goal) in enumerate(episodes):
                where = f"{version} episode {number} ({kind} actions, seed {seed}, goal {goal})"
                data = {
                    "rand_vec": goals[seed][goal],
                    "env_cls": env_class,
                    "partially_observable": False,
                }
                for env in (upstream, fast):
                    env.set_task(metaworld.types.Task(task, pickle.dumps(data)))
                observation = upstream.reset()[0]
                require_equal(f"{where} reset: observation", observation, fast.reset()[0])
                require_equal(f"{where} reset: state", physics_state(upstream), physics_state(fast))
                compare_settings(f"{where} reset", upstream, fast)
                resets += 1
                act = action_source(kind, task, random)
                for step in range(steps):
                    at = f"{where} step {step}"
                    action = act(observation)
                    expected, actual = upstream.step(action), fast.step(action)
                    rewards_bitwise &= compare_step(at, expected, actual)
                    require_equal(f"{at}: state", physics_state(upstream), physics_state(fast))
                    observation = expected[0]
                    compared += 1
                if steps == 500:
                    must_refuse(fast)
    except Difference as difference:
        error = str(difference)
    seconds = time.perf_counter() - started
    return Outcome(task, error, compared, resets, rewards_bitwise, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=tasks.MT50, choices=tasks.MT50, metavar="T")
    parser.add_argument("--reward-versions", nargs="+", default=("v1", "v2"))
    parser.add_argument("--steps", type=int, default=500, help="steps per episode")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()

    failed = 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        jobs = [
            pool.submit(compare_task, task, options.reward_versions, steps=options.steps)
            for task in options.tasks
        ]
        for job in jobs:
            result = job.result()
            failed += bool(result.error)
            rewards = "to the bit" if result.rewards_bitwise else f"to {REWARD_TOLERANCE}"
            verdict = (
                f"DIFFERS  {result.error}"
                if result.error
                else f"equal  {result.steps} steps, {result.resets} resets, rewards {rewards}"
            )
            print(f"{result.task:30s} {verdict}  ({result.seconds:.0f} s)", flush=True)
    print(f"{len(options.tasks) - failed} of {len(options.tasks)} tasks equal upstream's")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
