"""A list of tasks -> one environment per task.

Nothing here needs torch, so that simulation workers start fast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import gymnasium

from mtrl.config.benchmarks import MAX_GOALS, STEP_COSTS, TOY, all_tasks
from mtrl.envs import gym_tasks, toy
from mtrl.envs.fast_metaworld.versions import is_verified
from mtrl.envs.metaworld import MetaWorldTask, goal_vectors

if TYPE_CHECKING:
    from mtrl.config import Config


def is_toy(task_name: str) -> bool:
    return task_name in TOY


def is_gym(task_name: str) -> bool:
    """A registered Gymnasium environment."""
    return task_name in gymnasium.registry


def kind(task_name: str) -> str:
    """Tasks of one kind can be trained together."""
    return "toy" if is_toy(task_name) else "Gymnasium" if is_gym(task_name) else "Meta-World"


def dimensions(names: Sequence[str], plugins: Sequence[str] = ()) -> tuple[int, int]:
    """Of the tasks' observations and actions. ValueError if Gymnasium tasks differ."""
    match kind(names[0]):
        case "toy":
            return toy.OBSERVATION_DIM, toy.ACTION_DIM
        case "Gymnasium":
            return gym_tasks.dimensions(tuple(names), tuple(plugins))
        case _:
            return 39, 4


class TaskSet(NamedTuple):
    """What the vector environment needs of a list of tasks."""

    names: tuple[str, ...]
    factories: tuple[Callable[[], gymnasium.Env], ...]
    """One picklable factory per task; its environment takes `reset(options={"goal": index})`."""
    observation_dim: int
    action_dim: int
    costs: tuple[float, ...]
    """Relative time of a step of each task."""


def make_task_set(
    names: Sequence[str],
    *,
    seed: int,
    reward_version: str = "v2",
    horizon: int = 500,
    num_goals: int = MAX_GOALS,
    fast: bool = False,
    plugins: Sequence[str] = (),
    render: bool = False,
    camera: str = "corner2",
    size: int = 240,
) -> TaskSet:
    """Factories of all tasks; the goals are upstream's for this list of tasks and this seed.

    plugins: files that register Gymnasium environments. render: the environments can `render()`;
    camera, size: what Meta-World's pictures show, and their pixels each way.

    `fast` steps Meta-World faster, bitwise identical to upstream (see `fast_metaworld`); with
    versions of Meta-World or MuJoCo not listed there, it warns and uses upstream's own step.
    """
    common: dict[str, Any] = {"horizon": horizon, "seed": seed}
    if is_toy(names[0]):
        make = functools.partial(toy.PointMass, num_goals=num_goals, **common)
        factories = [functools.partial(make, name) for name in names]
    elif is_gym(names[0]):
        make = functools.partial(
            gym_tasks.GymTask, num_goals=num_goals, plugins=plugins, render=render, **common
        )
        factories = [functools.partial(make, name) for name in names]
    else:
        goals = goal_vectors(tuple(names), seed)
        fast = fast and is_verified()  # asked here: the workers need not warn again
        make = functools.partial(
            MetaWorldTask,
            reward_version=reward_version,
            fast=fast,
            camera=camera,
            size=size,
            **common,
        )
        factories = [functools.partial(make, name, goals[name][:num_goals]) for name in names]
    costs = tuple(STEP_COSTS.get(name, 1.0) for name in names)
    return TaskSet(tuple(names), tuple(factories), *dimensions(names, plugins), costs)


def task_set_of(config: Config, *, render: bool = False) -> TaskSet:
    """The environments that a run's configuration asks for."""
    env = config.env
    return make_task_set(
        config.task_names,
        seed=config.seed,
        reward_version=env.reward_version,
        horizon=env.horizon,
        num_goals=env.num_goals,
        fast=env.fast,
        plugins=config.plugins,
        render=render,
        camera=config.train.video_camera,
        size=config.train.video_size,
    )


def make_env(
    task_name: str,
    *,
    reward_version: str = "v2",
    horizon: int = 500,
    num_goals: int = MAX_GOALS,
    seed: int = 0,
    fast: bool = True,
    render_mode: Literal["rgb_array"] | None = "rgb_array",
) -> gymnasium.Env:
    """One task as a Gymnasium environment; its goals equal `metaworld.MT1(task_name, seed)`'s.

    A registered environment of your own comes as a run sees it: flat observations, actions in
    [-1, 1], `info["success"]`, a goal for each start. reward_version and fast mean nothing to it.

    `reset()` visits the goals in a seeded order, all of them before any comes again;
    `reset(options={"goal": i})` chooses one. `reset(seed=s)` starts another order.
    Observations float64 [39], actions float32 [4] in [-1, 1]; `info["success"]` is 0.0 or 1.0.

    `fast=False` takes upstream's own step: slower, with bitwise identical numbers. All of
    Meta-World's tasks have the same spaces, so Gymnasium's vector environments take a list of them.

    `render()` returns pixels [240, 240, 3], also under Gymnasium's wrappers; nothing is drawn
    before it is called. It may raise RenderingError. With `render_mode=None` it returns None.

    Raises ValueError for an unknown task, reward version, horizon, number of goals or render mode.
    """
    own = is_gym(task_name)
    if not own and task_name not in all_tasks():
        raise ValueError(
            f"unknown task {task_name!r}; allowed: registered Gymnasium environments, "
            f"{', '.join(all_tasks())}"
        )
    if reward_version not in ("v1", "v2"):
        raise ValueError(f"reward_version must be 'v1' or 'v2', not {reward_version!r}")
    if horizon < 1 or (horizon > 500 and not own):
        raise ValueError(f"horizon must be between 1 and 500, not {horizon!r}")
    if not 1 <= num_goals <= MAX_GOALS:
        raise ValueError(f"num_goals must be between 1 and {MAX_GOALS}, not {num_goals!r}")
    if render_mode not in ("rgb_array", None):
        raise ValueError(f"render_mode must be 'rgb_array' or None, not {render_mode!r}")
    (factory,) = make_task_set(
        [task_name],
        seed=seed,
        reward_version=reward_version,
        horizon=horizon,
        num_goals=num_goals,
        fast=fast,
        render=own and render_mode is not None,
    ).factories
    env = factory()
    if not own:
        env.render_mode = render_mode
    return env
