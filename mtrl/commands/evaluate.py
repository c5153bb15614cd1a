"""`mtrl evaluate`: success rates of a trained agent."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mtrl.config import Camera, Config
from mtrl.options.command_words import read_options
from mtrl.run.console import open_console
from mtrl.schema import ConfigError, at_least, check_bounds


@dataclass(frozen=True)
class EvaluateOptions:
    run: tyro.conf.Positional[Path]
    """A run directory, or one of its checkpoint files."""
    checkpoint: str = "best"
    """best (highest mean success while training), latest, or a checkpoint file."""
    episodes_per_task: Annotated[int, at_least(1)] = 50
    """Episodes per task, each with a goal of its own; at most the run's env.num_goals are run."""
    json: bool = False
    """Print JSON to standard output instead of a table."""
    video: bool = False
    """Also render episodes of each task: RUN/videos/step_<N>/<task>.mp4, and grid.mp4 of all."""
    video_size: int | None = None
    """Pixels of a task's picture, each way; None = the run's train.video_size, as below."""
    video_camera: Camera | None = None
    """Where Meta-World's tasks are seen from."""
    video_episodes: int | None = None
    """Episodes of each task in its video."""
    device: str = ""
    """auto (CUDA where there is one), cpu, cuda or cuda:i; if empty the run's own, or auto where
    this machine does not have it."""
    plugins: tuple[str, ...] = ()
    """The run's plug-ins, if they have moved; only those that register its network or its
    environments."""


def evaluate_command(words: list[str]) -> None:
    options = read_options(EvaluateOptions, "mtrl evaluate", words, bare="run")
    check_bounds(options)

    from mtrl.commands.trained import open_trained, with_plugins
    from mtrl.commands.videos import check_rendering, record
    from mtrl.device.setup import choose_device, device_here, set_up_learner
    from mtrl.envs.vector import make_vector_env
    from mtrl.evaluation import (
        evaluate,
        evaluation_json,
        goal_schedule,
        numpy_policy,
        success_table,
    )

    trained = open_trained(options.run, options.checkpoint)
    if options.device:
        choose_device(options.device, "device")
    name = options.device or device_here(trained.config.learner.device)
    learner = dataclasses.replace(trained.config.learner, device=name)
    config = dataclasses.replace(trained.config, learner=learner)
    config, step = with_plugins(config, options.plugins), trained.step
    config = _with_video(config, options)
    if options.video:
        check_rendering(config)
    device = set_up_learner(config.learner)
    if not options.device and name != trained.config.learner.device:
        print(
            f"mtrl: note: {trained.config.learner.device}, where the run was trained, is not here; "
            f"evaluating on {device}, where returns may differ in their last digits",
            file=sys.stderr,
        )
    with make_vector_env(config) as envs:
        network = trained.policy(envs.observation_dim, envs.action_dim).to(device)
        policy = numpy_policy(network, device)
        goals = goal_schedule(config, options.episodes_per_task)
        result = evaluate(policy, envs, goals, stop_at_success=config.evaluation.stop_at_success)
    video = record(config, policy, trained.run.video_folder(step)) if options.video else None
    if options.json:
        extra = {
            "step": step,
            "checkpoint": trained.checkpoint,
            "protocol": config.protocol_stamp,
            "method": config.method,
            "seed": config.seed,
        }
        if video:
            extra["video"] = str(video)
        print(json.dumps(evaluation_json(config.task_names, result, **extra), indent=1))
        return
    title = (
        f"{options.run}: {trained.checkpoint} checkpoint at step {step:,}, "
        f"{goals.shape[1]} episodes per task, protocol {config.protocol_stamp}"
    )
    print(title)
    open_console().print(success_table(config.task_names, result))
    if video:
        print(f"videos: {video}, and one file per task next to it")


def _with_video(config: Config, options: EvaluateOptions) -> Config:
    """ConfigError for a video that cannot be made, or that `--video` does not ask for."""
    from mtrl.options.validation import check_video

    asked = {
        key: value
        for key in ("video_size", "video_camera", "video_episodes")
        if (value := getattr(options, key)) is not None
    }
    if asked and not options.video:
        key, value = next(iter(asked.items()))
        raise ConfigError(key, value, "needs --video")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **asked))
    check_video(config)
    return config
