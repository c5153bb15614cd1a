"""Benchmarks: which tasks, in which order, with which goals; and one environment per task.

Nothing here needs torch, so that simulation workers start fast. Meta-World is imported only
when an environment is made.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import pickle
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mtrl.atomic import replaced
from mtrl.cache import cache_folder
from mtrl.envs import gym_tasks, toy
from mtrl.envs.fast_metaworld.versions import is_verified
from mtrl.envs.goals import GoalOrder
from mtrl.envs.rendering import make_renderer, without_renderer

if TYPE_CHECKING:
    from mtrl.config import Config

MAX_GOALS = 50  # Meta-World makes 50 goals per task

MT10 = (
    "reach-v3", "push-v3", "pick-place-v3", "door-open-v3", "drawer-open-v3", "drawer-close-v3",
    "button-press-topdown-v3", "peg-insert-side-v3", "window-open-v3", "window-close-v3",
)  # fmt: skip
MT25 = (
    *MT10, "coffee-pull-v3", "pick-out-of-hole-v3", "disassemble-v3", "pick-place-wall-v3",
    "basketball-v3", "stick-pull-v3", "button-press-wall-v3", "faucet-open-v3", "door-lock-v3",
    "lever-pull-v3", "sweep-into-v3", "faucet-close-v3", "coffee-button-v3",
    "button-press-topdown-wall-v3", "dial-turn-v3",
)  # fmt: skip
MT50 = (
    "assembly-v3", "basketball-v3", "bin-picking-v3", "box-close-v3", "button-press-topdown-v3",
    "button-press-topdown-wall-v3", "button-press-v3", "button-press-wall-v3", "coffee-button-v3",
    "coffee-pull-v3", "coffee-push-v3", "dial-turn-v3", "disassemble-v3", "door-close-v3",
    "door-lock-v3", "door-open-v3", "door-unlock-v3", "hand-insert-v3", "drawer-close-v3",
    "drawer-open-v3", "faucet-open-v3", "faucet-close-v3", "hammer-v3", "handle-press-side-v3",
    "handle-press-v3", "handle-pull-side-v3", "handle-pull-v3", "lever-pull-v3",
    "pick-place-wall-v3", "pick-out-of-hole-v3", "pick-place-v3", "plate-slide-v3",
    "plate-slide-side-v3", "plate-slide-back-v3", "plate-slide-back-side-v3",
    "peg-insert-side-v3", "peg-unplug-side-v3", "soccer-v3", "stick-push-v3", "stick-pull-v3",
    "push-v3", "push-wall-v3", "push-back-v3", "reach-v3", "reach-wall-v3", "shelf-place-v3",
    "sweep-into-v3", "sweep-v3", "window-open-v3", "window-close-v3",
)  # fmt: skip

STEP_COSTS = {
    "assembly-v3": 1.3, "basketball-v3": 0.98, "bin-picking-v3": 1.08, "box-close-v3": 1.44,
    "button-press-topdown-v3": 0.82, "button-press-topdown-wall-v3": 0.81, "button-press-v3": 0.8,
    "button-press-wall-v3": 0.83, "coffee-button-v3": 0.97, "coffee-pull-v3": 1.19,
    "coffee-push-v3": 1.15, "dial-turn-v3": 0.88, "disassemble-v3": 1.32, "door-close-v3": 0.87,
    "door-lock-v3": 0.85, "door-open-v3": 0.9, "door-unlock-v3": 0.86, "hand-insert-v3": 1.04,
    "drawer-close-v3": 0.88, "drawer-open-v3": 0.89, "faucet-open-v3": 0.83,
    "faucet-close-v3": 0.82, "hammer-v3": 1.22, "handle-press-side-v3": 0.8,
    "handle-press-v3": 0.81, "handle-pull-side-v3": 0.86, "handle-pull-v3": 0.83,
    "lever-pull-v3": 0.88, "pick-place-wall-v3": 1.14, "pick-out-of-hole-v3": 0.99,
    "pick-place-v3": 1.11, "plate-slide-v3": 0.83, "plate-slide-side-v3": 0.81,
    "plate-slide-back-v3": 0.85, "plate-slide-back-side-v3": 0.84, "peg-insert-side-v3": 1.08,
    "peg-unplug-side-v3": 1.18, "soccer-v3": 1.11, "stick-push-v3": 1.49, "stick-pull-v3": 1.37,
    "push-v3": 1.02, "push-wall-v3": 1.09, "push-back-v3": 1.12, "reach-v3": 0.87,
    "reach-wall-v3": 0.88, "shelf-place-v3": 1.13, "sweep-into-v3": 1.22, "sweep-v3": 1.11,
    "window-open-v3": 0.89, "window-close-v3": 0.97,
}  # fmt: skip
"""Time of a fast step relative to the mean of MT50: random actions, all tasks in turn, medians."""

BENCHMARKS: dict[str, tuple[str, ...]] = {
    "MT10": MT10,
    "MT25": MT25,
    "MT50": MT50,
    "toy": toy.TASKS,
}
"""Task order of each benchmark; Meta-World's own order (tests compare)."""


def benchmark_tasks(name: str) -> tuple[str, ...]:
    """Task names of a benchmark, in order; () for MT1, whose one task the user names."""
    return BENCHMARKS.get(name, ())


def all_tasks() -> tuple[str, ...]:
    return (*MT50, *toy.TASKS)


def is_toy(task_name: str) -> bool:
    return task_name in toy.TASKS


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
) -> TaskSet:
    """Factories of all tasks; the goals are upstream's for this list of tasks and this seed.

    plugins: files that register Gymnasium environments. render: the environments can `render()`.

    `fast` steps Meta-World faster, bitwise identical to upstream (see `fast_metaworld`); with
    versions of Meta-World or MuJoCo not listed there, it warns and uses upstream's own step.
    """
    if is_toy(names[0]):
        factories: list[Callable[[], gymnasium.Env]] = [
            functools.partial(toy.PointMass, name, num_goals=num_goals, horizon=horizon, seed=seed)
            for name in names
        ]
        costs = (1.0,) * len(names)
        return TaskSet(tuple(names), tuple(factories), *dimensions(names), costs)
    if is_gym(names[0]):
        factories = [
            functools.partial(
                gym_tasks.GymTask,
                name,
                num_goals=num_goals,
                horizon=horizon,
                seed=seed,
                plugins=plugins,
                render=render,
            )
            for name in names
        ]
        dims = dimensions(names, plugins)
        return TaskSet(tuple(names), tuple(factories), *dims, (1.0,) * len(names))
    goals = goal_vectors(tuple(names), seed)
    fast = fast and is_verified()  # asked here: the workers need not warn again
    factories = [
        functools.partial(
            MetaWorldTask,
            name,
            goals[name][:num_goals],
            reward_version=reward_version,
            horizon=horizon,
            seed=seed,
            fast=fast,
        )
        for name in names
    ]
    costs = tuple(STEP_COSTS.get(name, 1.0) for name in names)
    return TaskSet(tuple(names), tuple(factories), *dimensions(names), costs)


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
    )


def make_env(
    task_name: str,
    *,
    reward_version: str = "v2",
    horizon: int = 500,
    num_goals: int = MAX_GOALS,
    seed: int = 0,
    fast: bool = False,
    render_mode: Literal["rgb_array"] | None = "rgb_array",
) -> gymnasium.Env:
    """One task as a Gymnasium environment; its goals equal `metaworld.MT1(task_name, seed)`'s.

    `reset()` visits the goals in a seeded order, all of them before any comes again;
    `reset(options={"goal": i})` chooses one. `reset(seed=s)` starts another order.
    Observations float64 [39], actions float32 [4] in [-1, 1]; `info["success"]` is 0.0 or 1.0.

    `fast=True` steps faster than upstream's own class, with bitwise identical numbers.

    `render()` returns pixels [240, 240, 3], also under Gymnasium's wrappers; nothing is drawn
    before it is called. It may raise RenderingError. With `render_mode=None` it returns None.

    Raises ValueError for an unknown task, reward version, horizon, number of goals or render mode.
    """
    if task_name not in all_tasks():
        raise ValueError(f"unknown task {task_name!r}; allowed: {', '.join(all_tasks())}")
    if reward_version not in ("v1", "v2"):
        raise ValueError(f"reward_version must be 'v1' or 'v2', not {reward_version!r}")
    if not 1 <= horizon <= 500:
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
    ).factories
    env = factory()
    env.render_mode = render_mode
    return env


def _import_metaworld() -> Any:
    with without_renderer():
        import metaworld

    return metaworld


def goal_vectors(names: tuple[str, ...], seed: int) -> dict[str, NDArray[np.float64]]:
    """Meta-World's 50 goals of each task, as `metaworld.MT10(seed)` draws them: {task: [50, k]}.

    Upstream draws all tasks' goals from one random stream, by real resets (10 s for MT10).
    Cached on disk (`MTRL_CACHE`, else the user's cache folder); a damaged file is rebuilt.
    """
    version = metadata.version("metaworld")
    key = hashlib.sha256(repr((names, seed, version)).encode()).hexdigest()[:24]
    path = cache_folder() / "goals" / f"{key}.npz"
    try:
        with np.load(path) as stored:
            goals = {name: stored[name] for name in names}
        if all(len(g) == MAX_GOALS and np.isfinite(g).all() for g in goals.values()):
            return goals
    except Exception:  # missing or damaged, for which NumPy raises many kinds: drawn again
        pass
    goals = _draw_goals(names, seed)
    with contextlib.suppress(OSError):  # a full or read-only cache costs time, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as temporary:
            np.savez(temporary, **goals)  # type: ignore[arg-type]  # stub: a flag could hide in **
    return goals


def _draw_goals(names: tuple[str, ...], seed: int) -> dict[str, NDArray[np.float64]]:
    """The resets of upstream's `_make_tasks`, without the simulation that settles the hand.

    Goals are drawn and rejected by their own values alone, so that changes none of them (tests
    compare with upstream). Positions are still computed: lever-pull reads them.
    """
    environments = _import_metaworld().env_dict.ALL_V3_ENVIRONMENTS
    import mujoco

    state = np.random.get_state()  # noqa: NPY002 - upstream draws from NumPy's global stream
    np.random.seed(seed)  # noqa: NPY002 - as above
    goals = {}
    try:
        for name in names:
            env = environments[name]()
            env._freeze_rand_vec = False
            env._set_task_called = True

            def place_hand(steps: int = 50, env: Any = env) -> None:
                mujoco.mj_forward(env.model, env.data)
                env.init_tcp = env.tcp_center

            env._reset_hand = place_hand
            drawn = []
            for _ in range(MAX_GOALS):
                env.reset()
                drawn.append(env._last_rand_vec)
            goals[name] = np.array(drawn)
            env.close()
    finally:
        np.random.set_state(state)  # noqa: NPY002 - as above
    return goals


class MetaWorldTask(gymnasium.Env):
    """Upstream's environment of one task, with goals chosen by index and a horizon."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 80}
    render_mode = "rgb_array"

    def __init__(
        self,
        task_name: str,
        goals: NDArray[np.float64],
        *,
        reward_version: str = "v2",
        horizon: int = 500,
        seed: int = 0,
        fast: bool = False,
    ) -> None:
        metaworld = _import_metaworld()
        env_class = metaworld.env_dict.ALL_V3_ENVIRONMENTS[task_name]
        self.task_name = task_name
        self.horizon = horizon
        make = env_class
        if fast:
            from mtrl.envs.fast_metaworld.environment import fast_class

            make = fast_class(env_class)
        self.env = make(reward_function_version=reward_version)
        self._tasks = [
            metaworld.types.Task(
                task_name,
                pickle.dumps(
                    {"rand_vec": goal, "env_cls": env_class, "partially_observable": False}
                ),
            )
            for goal in goals
        ]
        self._order = GoalOrder(seed, task_name, len(goals))
        self._step = 0
        self.env.set_task(self._tasks[0])
        self.observation_space = self.env.sawyer_observation_space
        self.action_space = self.env.action_space
        self._renderer: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        super().reset(seed=seed)
        goal = self._order.choose(seed, options)
        self._step = 0
        self.env.set_task(self._tasks[goal])
        observation, info = self.env.reset()
        return observation, info | {"goal": goal}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        observation, reward, _, _, info = self.env.step(action)
        self._step += 1
        return observation, float(reward), False, self._step >= self.horizon, info

    def render(self) -> NDArray[np.uint8] | None:
        """Pixels [240, 240, 3]. May raise RenderingError."""
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self._renderer = make_renderer(self.env.model, 240, 240)
        for name, position in self.env._target_site_config:  # the fast step does not move them
            self.env._set_pos_site(name, position)
        self._renderer.update_scene(self.env.data, camera="corner2")
        # The camera hangs upside down. Copied, as not all takes arrays with negative strides.
        return np.ascontiguousarray(self._renderer.render()[::-1])

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self.env.close()
