"""Compare the fast Meta-World step with upstream's own, bit for bit, on every task.

    python bench/verify_simulation.py --processes 2

Both environments get the same goals and actions, side by side: random, scripted (Meta-World's
expert policies, whose actions leave the action space) and saturated ones, over whole episodes to
their end, with resets to new goals and to goals seen before. Equal must be: observations, infos,
flags, every number the reset leaves in the environment and its model, and the whole physics state
after every step, bitwise; rewards to 1e-12 relative. One line per task; exit code 1 if any
task differs.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtrl.config import benchmarks
from mtrl.envs import metaworld as metaworld_tasks

REWARD_TOLERANCE = 1e-12
# (kind of actions, seed of the goal list, index of the goal): goals change and come back.
EPISODES = (
    ("random", 1, 0),
    ("scripted", 1, 17),
    ("saturated", 1, 0),
    ("scripted", 2, 3),
    ("random", 2, 44),
    ("saturated", 2, 3),
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


class PhysicsState:
    """Everything MuJoCo's next step depends on, and the accelerations and places of all bodies.

    mjSTATE_INTEGRATION is the time, positions, velocities, controls, mocap bodies, warm start and
    the rest that decides the future. Sites are left out: until the first step, the drawn goal
    may stand where the first of upstream's two passes of `reset` put it.
    """

    def __init__(self, env: Any) -> None:
        import mujoco

        self.kind = mujoco.mjtState.mjSTATE_INTEGRATION
        self.get, self.model, self.data = mujoco.mj_getState, env.model, env.data
        self.state = np.empty(mujoco.mj_stateSize(env.model, self.kind))
        self.derived = (env.data.qacc, env.data.xpos, env.data.xquat)

    def bits(self) -> bytes:
        self.get(self.model, self.data, self.state, self.kind)
        return self.state.tobytes() + b"".join(array.tobytes() for array in self.derived)


def compare_settings(upstream: Any, fast: Any) -> None:
    """What a reset may write: the environment's numbers, and its model."""
    for name, value in vars(upstream).items():
        if isinstance(value, bool | int | float | np.generic | np.ndarray):
            require_equal(f"env.{name}", value, getattr(fast, name))
    for name in dir(upstream.model):
        value = getattr(upstream.model, name)
        if isinstance(value, np.ndarray) and not name.startswith(NOT_COMPARED):
            require_equal(f"model.{name}", value, getattr(fast.model, name))


def compare_step(expected: Any, actual: Any) -> bool:
    """Compare what `step` returned; -> whether the rewards are bitwise equal, too."""
    if expected[0].tobytes() != actual[0].tobytes():
        require_equal("observation", expected[0], actual[0])
    if expected[2:4] != actual[2:4]:
        raise Difference(f"terminated, truncated: upstream {expected[2:4]}, fast {actual[2:4]}")
    theirs, ours = dict(expected[4]), dict(actual[4])
    rewards = (expected[1], theirs.pop("unscaled_reward")), (actual[1], ours.pop("unscaled_reward"))
    if list(theirs) != list(ours):
        raise Difference(f"info: upstream has {list(theirs)}, fast {list(ours)}")
    if bits(list(theirs.values())) != bits(list(ours.values())):
        raise Difference(f"info: upstream {theirs}, fast {ours}")
    if bits(rewards[0]) == bits(rewards[1]):
        return True
    if not np.allclose(rewards[0], rewards[1], rtol=REWARD_TOLERANCE, atol=0):
        raise Difference(f"rewards: upstream {rewards[0]}, fast {rewards[1]}")
    return False


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
    goals: dict[int, Any] | None = None,
) -> Outcome:
    """Run both environments side by side until the first difference.

    `make_fast` turns upstream's class into the one compared with it, `fast_class` by default;
    `goals` {seed: [goal, dim]} are Meta-World's own by default.
    """
    metaworld = metaworld_tasks.import_metaworld()
    from mtrl.envs.fast_metaworld.environment import fast_class

    make_fast = make_fast or fast_class
    env_class = metaworld.env_dict.ALL_V3_ENVIRONMENTS[task]
    started, compared, resets, rewards_bitwise = time.perf_counter(), 0, 0, True
    goals = goals or {
        s: metaworld_tasks.goal_vectors(benchmarks.MT50, s)[task] for _, s, _ in episodes
    }
    where = error = ""
    try:
        upstream, fast = env_class(), make_fast(env_class)()
        states = PhysicsState(upstream), PhysicsState(fast)
        for version in reward_versions:
            # All that the constructor does with it; so each model is compiled once.
            upstream.reward_function_version = fast.reward_function_version = version
            random = np.random.default_rng(0)
            for number, (kind, seed, goal) in enumerate(episodes):
                episode = f"{version} episode {number} ({kind} actions, seed {seed}, goal {goal})"
                data = {
                    "rand_vec": goals[seed][goal],
                    "env_cls": env_class,
                    "partially_observable": False,
                }
                for env in (upstream, fast):
                    env.set_task(metaworld.types.Task(task, pickle.dumps(data)))
                where = f"{episode} reset"
                observation = upstream.reset()[0]
                require_equal("observation", observation, fast.reset()[0])
                compare_settings(upstream, fast)
                resets += 1
                act = action_source(kind, task, random)
                for step in range(steps):
                    if states[0].bits() != states[1].bits():
                        raise Difference("physics state")
                    where = f"{episode} step {step}"
                    action = act(observation)
                    expected, actual = upstream.step(action), fast.step(action)
                    rewards_bitwise &= compare_step(expected, actual)
                    observation = expected[0]
                    compared += 1
                if states[0].bits() != states[1].bits():
                    raise Difference("physics state")
                if steps == 500:
                    for env in (upstream, fast):
                        must_refuse(env)
    except Difference as difference:
        error = f"{where}: {difference}"
    seconds = time.perf_counter() - started
    return Outcome(task, error, compared, resets, rewards_bitwise, seconds)


def main(
    arguments: Sequence[str] | None = None, make_fast: Callable[[type], Any] | None = None
) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--tasks", nargs="+", default=benchmarks.MT50, choices=benchmarks.MT50, metavar="T"
    )
    parser.add_argument("--reward-versions", nargs="+", default=("v1", "v2"), choices=("v1", "v2"))
    parser.add_argument("--steps", type=int, default=500, help="steps per episode")
    parser.add_argument("--episodes", type=int, default=len(EPISODES), help="per reward version")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(arguments)

    work = functools.partial(
        compare_task,
        reward_versions=options.reward_versions,
        episodes=EPISODES[: options.episodes],
        steps=options.steps,
        make_fast=make_fast,
    )
    for _, seed, _ in EPISODES[: options.episodes]:
        metaworld_tasks.goal_vectors(benchmarks.MT50, seed)  # drawn once, not in every process
    failed = 0
    with contextlib.ExitStack() as stack:
        outcomes: Iterable[Outcome] = map(work, options.tasks)
        if options.processes > 1:
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(options.processes, mp_context=context)
            outcomes = stack.enter_context(pool).map(work, options.tasks)
        for outcome in outcomes:
            failed += bool(outcome.error)
            rewards = "bitwise" if outcome.rewards_bitwise else f"to {REWARD_TOLERANCE}"
            verdict = (
                f"DIFFERS  {outcome.error}"
                if outcome.error
                else f"equal  {outcome.steps} steps, {outcome.resets} resets, rewards {rewards}"
            )
            print(f"{outcome.task:30s} {verdict}  ({outcome.seconds:.0f} s)", flush=True)
    print(f"{len(options.tasks) - failed} of {len(options.tasks)} tasks equal upstream's")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
