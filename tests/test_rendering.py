"""What draws nothing needs no renderer; what draws finds one."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import imageio.v3
import mujoco
import numpy as np
import pytest
from gymnasium import wrappers

from mtrl.commands.videos import record
from mtrl.config import Config, EnvConfig
from mtrl.envs import rendering, tasks
from mtrl.envs.gym_tasks import GymTask
from mtrl.envs.vector import VectorEnv

REACH = dataclasses.replace(Config(), env=EnvConfig(tasks=("reach-v3",), horizon=2, num_goals=1))


@pytest.fixture
def renderer() -> str:
    try:
        return rendering.choose_renderer()
    except rendering.RenderingError as error:
        pytest.skip(str(error))


def test_workers_simulate_whatever_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "junk")
    meta_world = tasks.make_task_set(["reach-v3"], seed=1, horizon=2, num_goals=1)
    gym = [functools.partial(GymTask, "HalfCheetah-v5", horizon=2)]
    for factories, dims in ((meta_world.factories, (39, 4)), (gym, (17, 6))):
        with VectorEnv(["task"], factories, *dims, workers=1) as envs:
            envs.reset([0])
            envs.send(np.zeros((1, dims[1]), np.float32), [0])
            assert np.isfinite(envs.receive().observations).all()
    assert os.environ["MUJOCO_GL"] == "junk", "the user's word still goes for what draws"


SIMULATE = """
import os, sys
from mtrl.envs import gym_tasks, tasks
assert "mujoco" not in sys.modules
if sys.argv[1] == "Meta-World":
    env = tasks.make_env("reach-v3", num_goals=1)
    env.reset()
else:
    print(gym_tasks.dimensions(("HalfCheetah-v5",)))
assert "mujoco" in sys.modules
assert os.environ["MUJOCO_GL"] == "junk"
"""


@pytest.mark.parametrize("what", ["Meta-World", "Gymnasium"])
def test_this_process_simulates_whatever_the_setting(what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SIMULATE, what],
        env=os.environ | {"MUJOCO_GL": "junk"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_videos_fall_back_to_what_works(
    renderer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "junk")
    rendering.choose_renderer.cache_clear()
    grid = record(REACH, lambda _: np.zeros((1, 4), np.float32), tmp_path)
    rendering.choose_renderer.cache_clear()
    assert imageio.v3.imread(grid).std() > 20, "a scene, not one colour"


def test_videos_of_toy_tasks_need_no_renderer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rendering, "PROBE", "raise RuntimeError('no such display')")
    rendering.choose_renderer.cache_clear()
    toy = dataclasses.replace(Config(), env=EnvConfig(tasks=("toy-east",), horizon=2, num_goals=1))
    record(toy, lambda _: np.zeros((1, 2), np.float32), tmp_path)
    with pytest.raises(rendering.RenderingError):
        record(REACH, lambda _: np.zeros((1, 4), np.float32), tmp_path)
    rendering.choose_renderer.cache_clear()


# -- Gymnasium's wrappers -----------------------------------------------------------------------


def play(env: gymnasium.Env, steps: int) -> None:
    env.reset()
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()


@pytest.mark.parametrize("name", ["toy-east", "reach-v3"])
def test_standard_wrappers_take_make_env(name: str, renderer: str) -> None:
    env = tasks.make_env(name, horizon=5, num_goals=2, fast=True)
    assert env.render_mode == "rgb_array"
    collected = wrappers.RenderCollection(wrappers.RecordEpisodeStatistics(env))
    play(collected, 7)
    frames = collected.render()
    assert len(frames) == 3, "since the second reset: its own picture and two steps"
    assert {(frame.shape, frame.dtype) for frame in frames} == {((240, 240, 3), np.dtype(np.uint8))}
    assert any((frame != frames[0]).any() for frame in frames[1:])
    seen = wrappers.AddRenderObservation(env)
    assert seen.observation_space.contains(seen.reset()[0])
    env.close()
    pair = gymnasium.vector.SyncVectorEnv([functools.partial(tasks.make_env, name)] * 2)
    pair.reset()
    assert np.array(pair.render()).shape == (2, 240, 240, 3)
    pair.close()


@pytest.mark.skipif(importlib.util.find_spec("moviepy") is None, reason="RecordVideo needs moviepy")
@pytest.mark.parametrize("name", ["toy-east", "reach-v3"])
def test_record_video(name: str, renderer: str, tmp_path: Path) -> None:
    env = wrappers.RecordVideo(
        tasks.make_env(name, horizon=6, num_goals=1), str(tmp_path), episode_trigger=lambda _: True
    )
    play(env, 6)
    env.close()
    film = imageio.v3.imread(tmp_path / "rl-video-episode-0.mp4")
    assert film.shape == (7, 240, 240, 3)
    metadata = imageio.v3.immeta(tmp_path / "rl-video-episode-0.mp4")
    assert metadata["fps"] == env.metadata["render_fps"]


def test_the_fast_step_shows_what_upstreams_does(renderer: str) -> None:
    """The goal's marker included, which the fast step itself does not move."""
    slow, fast = (tasks.make_env("push-v3", seed=3, fast=fast) for fast in (False, True))
    for env in (slow, fast):
        env.reset(options={"goal": 3})
    generator = np.random.default_rng(0)
    for _ in range(4):
        assert np.array_equal(slow.render(), fast.render())
        action = generator.uniform(-1, 1, 4).astype(np.float32)
        (ours, *_), (theirs, *_) = fast.step(action), slow.step(action)
        assert np.array_equal(ours, theirs), "drawing changes no number"
    for env in (slow, fast):
        env.close()


@pytest.mark.parametrize("camera", ["corner", "corner2", "corner4"])
def test_cameras_that_hang_upside_down_show_the_scene_as_it_is(camera: str, renderer: str) -> None:
    """As MuJoCo's free camera in the same place, which is always upright; corner3 is tilted."""
    (factory,) = tasks.make_task_set(["door-open-v3"], seed=1, camera=camera, size=192).factories
    env = factory()
    env.reset(options={"goal": 0})
    shown = env.render()
    assert shown.shape == (192, 192, 3)
    model, data = env.env.model, env.env.data
    here = data.camera(camera)
    x, y, z = forward = -here.xmat.reshape(3, 3)[:, 2]
    free = mujoco.MjvCamera()
    free.type, free.distance = mujoco.mjtCamera.mjCAMERA_FREE, 1.0
    free.lookat = here.xpos + forward
    free.azimuth, free.elevation = np.degrees([np.arctan2(y, x), np.arcsin(z)])
    model.vis.global_.fovy = model.camera(camera).fovy[0]
    drawn = rendering.make_renderer(model, 192, 192)
    drawn.update_scene(data, camera=free)
    upright = drawn.render().astype(int)
    drawn.close()
    env.close()
    right = np.abs(shown - upright).mean()
    for wrong in (shown[::-1], shown[:, ::-1], shown[::-1, ::-1]):
        assert right < 0.5 * np.abs(wrong - upright).mean()


def test_no_render_mode_draws_nothing() -> None:
    env = tasks.make_env("toy-east", render_mode=None)
    env.reset()
    assert env.render_mode is None
    assert env.render() is None
    with pytest.raises(ValueError, match="render_mode must be 'rgb_array' or None, not 'human'"):
        tasks.make_env("toy-east", render_mode="human")  # type: ignore[arg-type]
