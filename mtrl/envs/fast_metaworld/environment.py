"""The fast subclasses of Meta-World's environment classes."""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import types
from collections import OrderedDict
from typing import Any

import mujoco
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from numpy.typing import NDArray

from mtrl.envs.fast_metaworld import numerics
from mtrl.envs.fast_metaworld.numerics import hamacher_product, norm_xz, tolerance
from mtrl.envs.fast_metaworld.rebind import NamedData, rebind, undecorated

SETTLED_STATES = 64  # kept per environment: more than Meta-World has goals per task

# Arrays of mjModel that move anything; not the meshes, which nobody edits, and colours.
_PHYSICS = (
    "actuator_", "body_", "dof_", "eq_", "exclude_", "geom_", "jnt_", "pair_", "qpos", "site_",
    "tendon_", "wrap_",
)  # fmt: skip
_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION  # all that the next physics step reads
_HAND_DOWN = np.array([1.0, 0.0, 1.0, 0.0])  # the mocap body's one orientation
# Run when a task is made or reset; everything else runs in `step`.
_RESET_METHODS = ("__init__", "reset_model", "_reset_hand", "_set_", "model_name")


@functools.cache
def fast_class(upstream: Any) -> type:
    """A faster subclass of one Meta-World environment class."""
    fast: Any = types.new_class(upstream.__name__, (Fast, upstream))
    replacements = {
        "np": numerics.numpy(),
        "reward_utils": numerics.reward_utils(),
        "tolerance": numerics.tolerance,
        "Rotation": numerics.rotation(),
        upstream.__name__: fast,  # rewards call their static helpers through the class's name
    }
    for name, value in vars(upstream).items():
        if not name.startswith(_RESET_METHODS):
            rebound = rebind(value, replacements)
            if rebound is not None:
                setattr(fast, name, rebound)
    if "_reset_hand" in vars(upstream):  # its super() must find ours, not upstream's
        fast._reset_hand = rebind(upstream._reset_hand, {}, fast)
    # Upstream's decorator only checks that a task is set; `step` has done so already.
    fast._evaluate_state = rebind(undecorated(upstream.evaluate_state), replacements)
    fast.__module__ = __name__
    made: type = fast
    return made


@functools.lru_cache(maxsize=1)  # 20 MB each; environments of one task are made in a row
def _compiled(path: str) -> mujoco.MjModel:
    """The model as its file says, to be copied: that takes a tenth of compiling it again."""
    return mujoco.MjModel.from_xml_path(path)


class Fast(SawyerXYZEnv):
    """Stands before an upstream class and overrides what all tasks share; same public methods."""

    _prev_obs: NDArray[np.float64]

    def _initialize_simulation(self) -> tuple[Any, Any]:
        # Called whenever a model is made, also when an environment is copied.
        self.model = model = copy.copy(_compiled(self.fullpath))
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        self.data = data = mujoco.MjData(model)
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
            if name.startswith(_PHYSICS) and isinstance(array := getattr(model, name), np.ndarray)
        ]
        return model, data

    def __getstate__(self) -> Any:
        state = super().__getstate__()
        ours = ("named_data", "_hand", "_claws", "_pads", "_fingers", "_mocap_pos")
        for name in (*ours, "_mocap_quat", "_ctrl", "_settled", "_physics"):
            del state["state"][name]  # made again with the copy's own model
        return state

    def __reduce__(self) -> Any:
        # The class is made at run time: a copy in another process makes it again.
        return _make_empty, (type(self).__bases__[1],), self.__getstate__()

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
        self._mocap_quat[:] = _HAND_DOWN

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
        # Without moving the target sites: mj_forward computes all sites' positions again.
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
        return bool(left_force > 0 and right_force > 0)

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
        caging = []
        for pad in self._pads:
            pad_y = pad.item(1)
            margin = abs(abs(pad_y - init_y) - pad_success_thresh)
            bounds = obj_radius, pad_success_thresh
            caging.append(tolerance(abs(pad_y - y), bounds, margin, "long_tail"))
        caging_y = hamacher_product(*caging)
        apart, init_apart = tcp - obj_pos, init_pos - init_tcp
        caging_xz = tolerance(
            norm_xz(apart), (0, xz_thresh), norm_xz(init_apart) - xz_thresh, "long_tail"
        )
        closed = min(max(0, action[-1]), desired_gripper_effort) / desired_gripper_effort
        caged = hamacher_product(caging_y, caging_xz)
        reward = hamacher_product(caged, closed if caged > 0.97 else 0.0)
        if high_density:
            reward = (reward + caged) / 2
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
        # writes to the model and to `self`; so it runs, but need not settle the hand. (Only the
        # goal's marker, as drawn before the first step, can differ: by the object's settling.)
        self._settling = not self._freeze_rand_vec
        return super().reset(seed=seed, options=options)

    def reset_model(self) -> NDArray[np.float64]:
        try:
            return super().reset_model()
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
        start = np.empty(mujoco.mj_stateSize(model, _INTEGRATION))
        mujoco.mj_getState(model, data, start, _INTEGRATION)
        arrays = (*self._physics, start, np.asarray(self.hand_init_pos))
        key = b"".join([array.tobytes() for array in arrays])
        key = hashlib.blake2b(key + repr((steps, _options(model.opt))).encode()).digest()
        last = self._settled.get(key)
        if last is None:
            self._ctrl[:] = -1, 1
            for step in range(steps):
                self._mocap_pos[:] = self.hand_init_pos
                self._mocap_quat[:] = _HAND_DOWN
                frames = self.frame_skip - (step == steps - 1)
                mujoco.mj_step(model, data, nstep=frames)
            last = np.empty_like(start)
            mujoco.mj_getState(model, data, last, _INTEGRATION)
            self._settled[key] = last
            if len(self._settled) > SETTLED_STATES:
                self._settled.popitem(last=False)
        else:
            self._settled.move_to_end(key)
            mujoco.mj_setState(model, data, last, _INTEGRATION)
        mujoco.mj_step(model, data)


def _make_empty(upstream: type) -> Any:
    fast: Any = fast_class(upstream)
    return fast.__new__(fast)


def _options(options: Any) -> list[Any]:
    return [
        value.tolist() if isinstance(value := getattr(options, name), np.ndarray) else value
        for name in dir(options)
        if not name.startswith("_")
    ]
