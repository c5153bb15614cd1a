"""Meta-World's own environment classes, made fast without changing a bit of what they compute.

About three quarters of an upstream step is Python around the physics. `fast_class` subclasses one
upstream class and replaces only that Python:

- The task's own reward and observation code runs as upstream wrote it, on the same bytecode, but
  with other globals: `np.linalg.norm`, `reward_utils.tolerance`, SciPy's `Rotation` and the like
  are the one-vector, one-scalar versions below, and `self.data` is `NamedData`, which looks up
  each body, geom and site once. Upstream's modules and classes are never modified.
- The generic code (step, observation, contacts, reset) is overridden in `_Fast`, which says at
  each skipped call why it cannot matter.

Same model, same physics calls in the same order. Observations, rewards, infos and the physics
state equal upstream's bit for bit: `scripts/verify_simulation.py` compares all tasks.
"""

from __future__ import annotations

import functools
import hashlib
import math
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

VERIFIED = {"metaworld": ("3.1.1",), "mujoco": ("3.3.0",)}
"""Versions for which scripts/verify_simulation.py has passed on all tasks."""

SETTLED_STATES = 64  # kept per environment: more than Meta-World has goals per task

_FLOAT64 = np.dtype(np.float64)
_DOUBLES = frozenset((float, int, np.float64))
_MOCAP_QUAT = np.array([1.0, 0.0, 1.0, 0.0])
# Arrays of mjModel that move anything; not the meshes, which nobody edits, and colours.
_PHYSICS = (
    "actuator_", "body_", "dof_", "eq_", "exclude_", "geom_", "jnt_", "pair_", "qpos", "site_",
    "tendon_", "wrap_",
)  # fmt: skip
# Run when a task is made or reset; everything else runs in `step`.
_RESET_METHODS = ("__init__", "reset_model", "_reset_hand", "_set_", "model_name")


@functools.cache
def is_verified() -> bool:
    """Whether the installed versions are ones that were verified; warns once if they are not."""
    found = {name: metadata.version(name) for name in VERIFIED}
    if all(found[name] in versions for name, versions in VERIFIED.items()):
        return True
    warnings.warn(
        "the fast Meta-World step is verified for "
        + ", ".join(f"{name} {'/'.join(versions)}" for name, versions in VERIFIED.items())
        + f", not for {', '.join(f'{name} {version}' for name, version in found.items())}: "
        "using Meta-World's own, slower step",
        stacklevel=2,
    )
    return False


@functools.cache
def fast_class(upstream: type) -> type:
    """A faster subclass of one Meta-World environment class."""
    fast = types.new_class(upstream.__name__, (_mixin(), upstream))
    replacements = {
        "np": _fast_numpy(),
        "reward_utils": _fast_reward_utils(),
        "tolerance": tolerance,
        "Rotation": _fast_rotation(),
        upstream.__name__: fast,  # rewards call their static helpers through the class's name
    }
    for name, value in vars(upstream).items():
        if not name.startswith(_RESET_METHODS):
            rebound = _rebind(value, replacements)
            if rebound is not None:
                setattr(fast, name, rebound)
    if "_reset_hand" in vars(upstream):  # its super() must find ours, not upstream's
        fast._reset_hand = _rebind(upstream._reset_hand, {}, fast)  # type: ignore[attr-defined]
    # Upstream's decorator only checks that a task is set; `step` has done so already.
    fast._evaluate_state = _rebind(_undecorated(upstream.evaluate_state), replacements)  # type: ignore[attr-defined]
    return fast


# ---------------------------------------------------------------- upstream's code, other names


def _rebind(value: Any, replacements: dict[str, Any], owner: type | None = None) -> Any:
    """The same function, static method or property with other globals; None for anything else.

    A function that calls super() needs the class to start from, `owner`.
    """
    if isinstance(value, staticmethod):
        return staticmethod(_rebind(value.__func__, replacements))
    if isinstance(value, property):
        return property(_rebind(value.fget, replacements))
    if not isinstance(value, types.FunctionType):
        return None
    closure = value.__closure__
    if closure:
        if value.__code__.co_freevars != ("__class__",) or owner is None:
            return None
        closure = (types.CellType(owner),)
    names = value.__globals__
    known = {name: new for name, new in replacements.items() if name in names}
    rebound = types.FunctionType(
        _rename_data(value.__code__), names | known, value.__name__, value.__defaults__, closure
    )
    rebound.__kwdefaults__ = value.__kwdefaults__
    return rebound


def _rename_data(code: types.CodeType) -> types.CodeType:
    """`self.data` -> `self.named_data`, also in comprehensions and inner functions."""
    return code.replace(
        co_names=tuple("named_data" if name == "data" else name for name in code.co_names),
        co_consts=tuple(
            _rename_data(constant) if isinstance(constant, types.CodeType) else constant
            for constant in code.co_consts
        ),
    )


def _undecorated(function: Any) -> Any:
    """What `assert_task_is_set` wraps."""
    if function.__closure__ and "func" in function.__code__.co_freevars:
        return function.__closure__[function.__code__.co_freevars.index("func")].cell_contents
    return function


class _Body(NamedTuple):
    id: int
    xpos: NDArray[np.float64]
    xquat: NDArray[np.float64]
    xmat: NDArray[np.float64]


class _Geom(NamedTuple):
    id: int
    xpos: NDArray[np.float64]
    xmat: NDArray[np.float64]


class _Site(NamedTuple):
    id: int
    xpos: NDArray[np.float64]
    xmat: NDArray[np.float64]


class _Joint(NamedTuple):
    qpos: NDArray[np.float64]
    qvel: NDArray[np.float64]


class _Lookup(dict):
    """name -> views, made at the first use. Read-only: step code that wrote would raise."""

    def __init__(self, accessor: Callable[[str], Any], kind: Any) -> None:
        super().__init__()
        self.accessor, self.kind = accessor, kind

    def __missing__(self, name: str) -> Any:
        views = self.accessor(name)
        self[name] = self.kind(*(getattr(views, field) for field in self.kind._fields))
        return self[name]


class NamedData:
    """Stands in for mjData in upstream's step code: the same names, each looked up only once.

    The arrays are MuJoCo's own views; they stay valid as long as the mjData lives.
    """

    def __init__(self, data: Any) -> None:
        self._data = data
        self.body = _Lookup(data.body, _Body).__getitem__
        self.geom = _Lookup(data.geom, _Geom).__getitem__
        self.site = _Lookup(data.site, _Site).__getitem__
        self.joint = _Lookup(data.joint, _Joint).__getitem__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


# ---------------------------------------------------------------- one-vector, one-scalar versions


def norm(x: Any, ord: Any = None, **options: Any) -> Any:
    """np.linalg.norm; the same sqrt(dot(x, x)) without its preparations for a plain vector."""
    if (
        type(x) is np.ndarray
        and x.dtype is _FLOAT64
        and x.ndim == 1
        and x.strides == (8,)
        and (ord is None or ord == 2)
        and not options
    ):
        return np.float64(math.sqrt(x.dot(x)))
    return np.linalg.norm(x, ord, **options)


def clip(x: Any, low: Any, high: Any, **options: Any) -> Any:
    """np.clip; of one scalar between plain numbers by comparisons, keeping the scalar's type."""
    kind = type(x)
    if (kind is np.float64 or kind is np.float32) and not options:
        if type(low) in _DOUBLES and type(high) in _DOUBLES:
            return kind(low) if x < low else kind(high) if x > high else x
    return np.clip(x, low, high, **options)


def hstack(arrays: Any) -> Any:
    """np.hstack; vectors need no promotion to one dimension."""
    try:
        return np.concatenate(arrays)
    except ValueError:  # scalars among them
        return np.hstack(arrays)


def tolerance(
    x: Any,
    bounds: tuple[Any, Any] = (0.0, 0.0),
    margin: Any = 0.0,
    sigmoid: str = "gaussian",
    value_at_margin: float = 0.1,
) -> Any:
    """reward_utils.tolerance of one double, in plain floats; anything else is upstream's."""
    lower, upper = bounds
    if (
        type(x) in _DOUBLES
        and type(margin) in _DOUBLES
        and type(lower) in _DOUBLES
        and type(upper) in _DOUBLES
        and lower <= upper
        and margin >= 0
    ):
        x = float(x)
        if lower <= x <= upper:
            return 1.0
        if margin == 0:
            return 0.0
        if value_at_margin == 0.1 and x == x:
            distance = float(lower - x if x < lower else x - upper) / float(margin)
            if sigmoid == "long_tail":
                return 1 / ((distance * _LONG_TAIL) ** 2 + 1)
            if sigmoid == "gaussian":
                return float(np.exp(-0.5 * (distance * _GAUSSIAN) ** 2))
    from metaworld.utils import reward_utils

    return reward_utils.tolerance(x, bounds, margin, sigmoid, value_at_margin)


def hamacher_product(a: Any, b: Any) -> Any:
    """reward_utils.hamacher_product; keeps its arguments' precision, as upstream does."""
    if not (0.0 <= a <= 1.0 and 0.0 <= b <= 1.0):
        raise ValueError(f"a ({a}) and b ({b}) must range between 0 and 1")
    product = a * b
    denominator = a + b - product
    result = product / denominator if denominator > 0 else 0
    assert 0.0 <= result <= 1.0
    return result


def _norm_xz(vector: NDArray[np.float64]) -> float:
    # Moved side by side first: BLAS may add strided elements in another way.
    vector = vector.copy()
    vector[1] = vector[2]
    vector = vector[:2]
    return math.sqrt(vector.dot(vector))


_LONG_TAIL = math.sqrt(1 / 0.1 - 1)
_GAUSSIAN = float(np.sqrt(-2 * np.log(0.1)))


def matrix_to_quaternion(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """A rotation matrix [3, 3] -> its quaternion [4] (x, y, z, w), SciPy's arithmetic in order.

    The largest of (m00, m11, m22, trace) decides the branch (Markley, "Unit quaternion from
    rotation matrix", 2008). SciPy's check that the matrix is orthogonal is left out: MuJoCo makes
    these matrices from normalised quaternions.
    """
    (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()
    trace = a + e + i
    if trace > a and trace > e and trace > i:
        x, y, z, w = h - f, c - g, d - b, 1 + trace
    elif a >= e and a >= i:
        x, y, z, w = 1 - trace + 2 * a, d + b, g + c, h - f
    elif e >= i:
        x, y, z, w = b + d, 1 - trace + 2 * e, h + f, c - g
    else:
        x, y, z, w = c + g, f + h, 1 - trace + 2 * i, d - b
    length = math.sqrt(x * x + y * y + z * z + w * w)
    return np.array((x / length, y / length, z / length, w / length))


class _Quaternion:
    def __init__(self, matrix: NDArray[np.float64]) -> None:
        self.matrix = matrix

    def as_quat(self) -> NDArray[np.float64]:
        return matrix_to_quaternion(self.matrix)


class _FastRotation:
    """The one use upstream's step code makes of SciPy: `Rotation.from_matrix(m).as_quat()`."""

    from_matrix = _Quaternion


@functools.cache
def _fast_rotation() -> Any:
    """SciPy's own class where its arithmetic differs from ours by a bit (another version)."""
    from scipy.spatial.transform import Rotation

    quaternions = np.random.default_rng(0).normal(size=(64, 4))
    for matrix in Rotation.from_quat(quaternions).as_matrix():
        if not np.array_equal(Rotation.from_matrix(matrix).as_quat(), matrix_to_quaternion(matrix)):
            return Rotation
    return _FastRotation


@functools.cache
def _fast_numpy() -> Any:
    linalg = types.SimpleNamespace(**vars(np.linalg) | {"norm": norm})
    return types.SimpleNamespace(
        **vars(np) | {"linalg": linalg, "clip": clip, "hstack": hstack}
    )


@functools.cache
def _fast_reward_utils() -> Any:
    from metaworld.utils import reward_utils

    return types.SimpleNamespace(**vars(reward_utils) | {"tolerance": tolerance, "hamacher_product": hamacher_product})


# ---------------------------------------------------------------- the generic code


def _options(options: Any) -> list[Any]:
    return [
        value.tolist() if isinstance(value := getattr(options, name), np.ndarray) else value
        for name in dir(options)
        if not name.startswith("_")
    ]


@functools.cache
def _mixin() -> type:
    # Inside a function: importing this module must not import MuJoCo.
    import mujoco
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

    integration = mujoco.mjtState.mjSTATE_INTEGRATION
    no_rotation = np.array([1.0, 0.0, 1.0, 0.0])

    class Fast:
        """Overrides of SawyerXYZEnv and of gymnasium's MujocoEnv; the same public methods."""

        def _initialize_simulation(self) -> tuple[Any, Any]:
            # Called whenever a model is made, also when an environment is copied.
            self.model, self.data = model, data = super()._initialize_simulation()  # type: ignore[misc]
            self.named_data = named = NamedData(data)
            self._hand = named.body("hand").xpos
            self._claws = named.body("rightclaw").xpos, named.body("leftclaw").xpos
            self._pads = named.body("leftpad").xpos, named.body("rightpad").xpos
            self._fingers = (
                named.site("rightEndEffector").xpos,
                named.site("leftEndEffector").xpos,
            )
            self._pad_geoms = named.geom("leftpad_geom").id, named.geom("rightpad_geom").id
            self._mocap_pos, self._mocap_quat = data.mocap_pos[0], data.mocap_quat[0]
            self._ctrl = data.ctrl
            self._settled: OrderedDict[bytes, NDArray[np.float64]] = OrderedDict()
            self._settling = True
            self._physics = [
                array
                for name in dir(model)
                if name.startswith(_PHYSICS)
                and isinstance(array := getattr(model, name), np.ndarray)
            ]
            return model, data

        def __getstate__(self) -> Any:
            state = super().__getstate__()  # type: ignore[misc]
            ours = ("named_data", "_hand", "_claws", "_pads", "_fingers", "_mocap_pos")
            for name in (*ours, "_mocap_quat", "_ctrl", "_settled", "_physics"):
                del state["state"][name]  # made again with the copy's own model
            return state

        # ---- names looked up once

        def get_endeff_pos(self) -> NDArray[np.float64]:
            return self._hand

        def get_body_com(self, body_name: str) -> NDArray[np.float64]:
            return self.named_data.body(body_name).xpos

        def _get_site_pos(self, site_name: str) -> NDArray[np.float64]:
            return self.named_data.site(site_name).xpos.copy()

        @property
        def tcp_center(self) -> NDArray[np.float64]:
            right, left = self._fingers
            return (right + left) / 2.0

        # ---- step

        def set_xyz_action(self, action: NDArray[Any]) -> None:
            # Scaled in the action's own precision, as upstream does: float32 for float32.
            delta = np.minimum(np.maximum(action, -1), 1) * self.action_scale
            target = self._mocap_pos + delta
            np.maximum(target, self.mocap_low, out=target)
            np.minimum(target, self.mocap_high, out=self._mocap_pos)
            self._mocap_quat[:] = no_rotation

        def _step_mujoco_simulation(self, ctrl: Any, n_frames: int) -> None:
            # Without mj_rnePostConstraint: it writes cacc, cfrc_int and cfrc_ext, which neither
            # Meta-World nor the next step's physics reads.
            self._ctrl[:] = ctrl
            mujoco.mj_step(self.model, self.data, nstep=n_frames)

        def step(self, action: NDArray[np.float32]) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            if not self._set_task_called:
                raise RuntimeError("You must call env.set_task before using env.step")
            assert len(action) == 4, f"Actions should be size 4, got {len(action)}"
            self.set_xyz_action(action[:3])
            if self.curr_path_length >= self.max_path_length:
                raise ValueError("You must reset the env manually once truncate==True")
            self._step_mujoco_simulation((action[-1], -action[-1]), self.frame_skip)
            self.curr_path_length += 1
            # Without moving the target sites: mj_forward computes all sites' positions anew.
            # (Upstream's branch for simulation exceptions is left out: nothing ever raises one.)
            mujoco.mj_forward(self.model, self.data)
            observation = self._get_obs()
            space = self.sawyer_observation_space
            np.maximum(observation, space.low, out=observation)
            np.minimum(observation, space.high, out=observation)
            self._last_stable_obs = observation
            reward, info = self._evaluate_state(observation, action)
            truncated = self.curr_path_length == self.max_path_length
            return observation.copy(), reward, False, truncated, info

        def _get_curr_obs_combined_no_goal(self) -> NDArray[np.float64]:
            frame = np.zeros(18)
            frame[:3] = self._hand
            right, left = self._claws
            apart = right - left
            frame[3] = min(max(math.sqrt(apart.dot(apart)) / 0.1, 0.0), 1.0)
            positions, quaternions = self._get_pos_objects(), self._get_quat_objects()
            frame[4:7] = positions[:3]
            frame[7:11] = quaternions[:4]
            if len(positions) == 6:
                frame[11:14] = positions[3:]
                frame[14:18] = quaternions[4:]
            return frame

        def _get_obs(self) -> NDArray[np.float64]:
            observation = np.zeros(39)
            # Asked for before the frame, and even where hidden: upstream's order.
            goal = self._get_pos_goal()
            observation[:18] = frame = self._get_curr_obs_combined_no_goal()
            observation[18:36] = self._prev_obs
            if not self._partially_observable:
                observation[36:] = goal
            self._prev_obs = frame
            return observation

        def touching_object(self, object_geom_id: int) -> bool:
            data = self.data
            left_pad, right_pad = self._pad_geoms
            left_force = right_force = 0.0
            for index, pair in enumerate(data.contact.geom.tolist()):
                if object_geom_id in pair:
                    if left_pad in pair:
                        left_force += data.efc_force[data.contact.efc_address[index]]
                    if right_pad in pair:
                        right_force += data.efc_force[data.contact.efc_address[index]]
            return bool(0 < left_force and 0 < right_force)

        def _gripper_caging_reward(
            self,
            action: NDArray[np.float32],
            obj_pos: NDArray[Any],
            obj_radius: float,
            pad_success_thresh: float,
            object_reach_radius: float,
            xz_thresh: float,
            desired_gripper_effort: float = 1.0,
            high_density: bool = False,
            medium_density: bool = False,
        ) -> float:
            # Upstream's method explains the reward; this is its arithmetic, one number at a time.
            if high_density and medium_density:
                raise ValueError("Can only be either high_density or medium_density")
            init_pos, init_tcp, tcp = self.obj_init_pos, self.init_tcp, self.tcp_center
            y, init_y = float(obj_pos[1]), float(init_pos[1])
            caging_left, caging_right = (
                tolerance(
                    abs(pad_y - y),
                    (obj_radius, pad_success_thresh),
                    abs(abs(pad_y - init_y) - pad_success_thresh),
                    "long_tail",
                )
                for pad_y in (pad.item(1) for pad in self._pads)
            )
            caging_y = hamacher_product(caging_left, caging_right)
            apart, init_apart = tcp - obj_pos, init_pos - init_tcp
            caging_xz = tolerance(
                _norm_xz(apart), (0, xz_thresh), _norm_xz(init_apart) - xz_thresh, "long_tail"
            )
            closed = min(max(0, action[-1]), desired_gripper_effort) / desired_gripper_effort
            caging = hamacher_product(caging_y, caging_xz)
            reward = hamacher_product(caging, closed if caging > 0.97 else 0.0)
            if high_density:
                reward = (reward + caging) / 2
            if medium_density:
                margin = abs(math.sqrt(init_apart.dot(init_apart)) - object_reach_radius)
                distance = math.sqrt(apart.dot(apart))
                reach = tolerance(distance, (0, object_reach_radius), margin, "long_tail")
                reward = (reward + reach) / 2
            return reward

        # ---- reset

        def reset(
            self, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[NDArray[np.float64], dict[str, Any]]:
            # Upstream resets the model twice, with mj_resetData between, which erases all that the
            # first pass did to the simulation. What is left of the first is what reset_model
            # writes to the model and to `self`; so it runs, but need not settle the hand.
            self._settling = not self._freeze_rand_vec
            return super().reset(seed=seed, options=options)  # type: ignore[misc]

        def reset_model(self) -> NDArray[np.float64]:
            try:
                return super().reset_model()  # type: ignore[misc]
            finally:
                self._settling = True

        def _reset_hand(self, steps: int = 50) -> None:
            if self._settling:
                self._settle_hand(steps)
            self.init_tcp = self.tcp_center

        def _settle_hand(self, steps: int) -> None:
            """Move the hand to its start; the same motion from the same state is remembered.

            It depends on the model, the state it starts from and the hand's target, all of which
            are in the key. The state before the last physics step is kept, and that step repeated,
            so that everything MuJoCo derives from the state is what it was, too.
            """
            model, data = self.model, self.data
            start = np.empty(mujoco.mj_stateSize(model, integration))
            mujoco.mj_getState(model, data, start, integration)
            arrays = (*self._physics, start, np.asarray(self.hand_init_pos))
            key = b"".join([array.tobytes() for array in arrays])
            key = hashlib.blake2b(key + repr((steps, _options(model.opt))).encode()).digest()
            last = self._settled.get(key)
            if last is None:
                self._ctrl[:] = -1, 1
                for step in range(steps):
                    self._mocap_pos[:] = self.hand_init_pos
                    self._mocap_quat[:] = no_rotation
                    frames = self.frame_skip - (step == steps - 1)
                    mujoco.mj_step(model, data, nstep=frames)
                last = np.empty_like(start)
                mujoco.mj_getState(model, data, last, integration)
                self._settled[key] = last
                if len(self._settled) > SETTLED_STATES:
                    self._settled.popitem(last=False)
            else:
                self._settled.move_to_end(key)
                mujoco.mj_setState(model, data, last, integration)
            mujoco.mj_step(model, data)

    return Fast
