"""Meta-World's tasks: their goals, and one environment per task.

Meta-World is imported only when an environment is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from importlib import metadata
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mtrl.config.benchmarks import MAX_GOALS
from mtrl.envs.goals import GoalOrder
from mtrl.envs.rendering import make_renderer, without_renderer
from mtrl.files.atomic import replaced
from mtrl.files.cache import cache_folder

UP_Z = 7  # in a camera's flat rotation matrix: how far its upper edge points up


def import_metaworld() -> Any:
    """Without the renderer that MUJOCO_GL names, which may be missing here."""
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
    environments = import_metaworld().env_dict.ALL_V3_ENVIRONMENTS
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
        camera: str = "corner2",
        size: int = 240,
    ) -> None:
        """camera, size: of the pictures that `render` returns, in pixels both ways."""
        metaworld = import_metaworld()
        env_class = metaworld.env_dict.ALL_V3_ENVIRONMENTS[task_name]
        self.task_name = task_name
        self.horizon = horizon
        self.camera, self.size = camera, size
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
        # Upstream's bounds hold for one task each, and not always: equal ones let tasks be mixed.
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (39,), np.float64)
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
        """Pixels [size, size, 3]. May raise RenderingError."""
        if self.render_mode is None:
            return None
        if self._renderer is None:
            buffer = self.env.model.vis.global_
            buffer.offwidth = max(buffer.offwidth, self.size)
            buffer.offheight = max(buffer.offheight, self.size)
            self._renderer = make_renderer(self.env.model, self.size, self.size)
        for name, position in self.env._target_site_config:  # the fast step does not move them
            self.env._set_pos_site(name, position)
        self._renderer.update_scene(self.env.data, camera=self.camera)
        pixels = self._renderer.render()
        if self.env.data.camera(self.camera).xmat[UP_Z] < -0.1:  # it hangs upside down
            pixels = pixels[::-1, ::-1]
        return np.ascontiguousarray(pixels)  # not all takes arrays with negative strides

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self.env.close()
