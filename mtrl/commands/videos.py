"""Videos of a policy: one file per task, of one or more episodes, and a grid of all.

Rendering happens in worker processes of its own: MuJoCo takes its renderer from MUJOCO_GL when
it is imported, which this process has done for simulation alone.
"""

from __future__ import annotations

import functools
import math
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import gymnasium

from mtrl.config import Config
from mtrl.envs import tasks
from mtrl.envs.film import FPS, Filmed
from mtrl.envs.rendering import DISABLED, RenderingError, choose_renderer
from mtrl.envs.vector import VectorEnv, auto_workers
from mtrl.evaluation import Policy, evaluate, frozen_policy, goal_schedule
from mtrl.trainer import Trainer


def _renderer(config: Config) -> str:
    """What MuJoCo draws with in the workers. RenderingError where a task cannot do without."""
    names = config.task_names
    if all(tasks.is_toy(name) for name in names):
        return DISABLED
    try:
        return choose_renderer()
    except RenderingError:
        if any(
            not tasks.is_gym(name) or "mujoco" in str(gymnasium.spec(name).entry_point)
            for name in names
        ):
            raise
        return DISABLED  # drawn by other means, as far as anyone can tell


def check_rendering(config: Config) -> None:
    """Raise RenderingError now, rather than after hours of training."""
    _renderer(config)


def record(config: Config, policy: Policy, folder: Path) -> Path:
    """Write <task>.mp4 of every task's first evaluation goals and grid.mp4; -> the grid.

    policy: observations [task, dim] -> actions [task, dim]. Raises RenderingError, WorkerError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name.replace('/', '_')}.mp4" for name in config.task_names]
    size, episodes = config.train.video_size, config.train.video_episodes
    task_set = tasks.task_set_of(config, render=True)
    films = [
        functools.partial(Filmed, factory, name, path, size, episodes)
        for factory, name, path in zip(task_set.factories, task_set.names, files, strict=True)
    ]
    with VectorEnv(
        task_set.names,
        films,
        task_set.observation_dim,
        task_set.action_dim,
        task_set.costs,
        workers=auto_workers(config.env.workers, config.num_tasks),
        renderer=_renderer(config),
    ) as envs:
        evaluate(policy, envs, goal_schedule(config, episodes))
    return _tile(files, folder / "grid.mp4", size)


class Videos:
    """An event of a training run: videos every so many steps, of the policy as it is there."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def __call__(self, may_save: bool) -> None:
        trainer = self.trainer
        if not (trainer.may_act and trainer.crossed(trainer.config.train.video_every)):
            return
        folder = trainer.run.video_folder(trainer.step)
        try:
            path = record(trainer.config, frozen_policy(trainer.agent), folder)
            trainer.recorder.video(trainer.step, path)
        except (RuntimeError, OSError) as error:  # what goes wrong here must not end the run
            trainer.recorder.message(f"warning: no video: {error}")
        trainer.exclude(trainer.timer.lap("video"))


def _tile(files: Sequence[Path], path: Path, size: int) -> Path:
    """Videos side by side as one; those that end earlier keep their last picture."""
    import imageio_ffmpeg

    if len(files) == 1:
        shutil.copyfile(files[0], path)
        return path
    frames = [imageio_ffmpeg.count_frames_and_secs(str(file))[0] for file in files]
    columns = math.ceil(math.sqrt(len(files)))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
    filters, corners = "", []
    for index, file in enumerate(files):
        command += ["-threads", "1", "-i", str(file)]
        filters += f"[{index}]tpad=stop=-1:stop_mode=clone[v{index}];"
        corners.append(f"{index % columns * size}_{index // columns * size}")
    filters += "".join(f"[v{index}]" for index in range(len(files)))
    filters += f"xstack=inputs={len(files)}:layout={'|'.join(corners)}:fill=black"
    command += ["-filter_complex", filters, "-frames:v", str(max(frames)), "-r", str(FPS)]
    command += ["-pix_fmt", "yuv420p", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RenderingError(f"cannot write {path}: {done.stderr.strip()}")
    return path
