"""`mtrl evaluate` and `mtrl export`: what is done with a trained agent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from mtrl.schema import ConfigError, user_path


@dataclass(frozen=True)
class EvaluateOptions:
    checkpoint: str = "best"
    """best (highest mean success while training), latest, or a checkpoint file."""
    episodes_per_task: int = 50
    """Episodes per task, each with a goal of its own; at most the run's env.num_goals are run."""
    json: bool = False
    """Print JSON to standard output instead of a table."""
    video: bool = False
    """Also render an episode of each task: RUN/videos/step_<N>/<task>.mp4, and grid.mp4 of all."""


def evaluate_command(arguments: list[str]) -> None:
    name = "RUN" if arguments[0] in ("-h", "--help") else arguments[0]
    rest = arguments if name == "RUN" else arguments[1:]
    options = tyro.cli(EvaluateOptions, prog=f"mtrl evaluate {name}", args=rest)

    if options.episodes_per_task < 1:
        raise ConfigError("episodes_per_task", options.episodes_per_task, "must be at least 1")
    _evaluate(user_path(name), options)


def _evaluate(path: Path, options: EvaluateOptions) -> None:
    from mtrl.agent import Agent
    from mtrl.envs.vector import make_vector_env
    from mtrl.evaluate import agent_policy, evaluate, goal_schedule
    from mtrl.learner import set_up_learner
    from mtrl.recorder import evaluation_json, success_table
    from mtrl.trained import open_trained
    from mtrl.videos import check_rendering, record

    trained = open_trained(path, options.checkpoint)
    config, step = trained.config, trained.step
    if options.video:
        check_rendering(config)
    device = set_up_learner(config)
    with make_vector_env(config) as envs:
        agent = Agent(config, envs.observation_dim, envs.action_dim, device)
        agent.load_state_dict(trained.agent_state)
        policy = agent_policy(agent)
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
        f"{path}: {trained.checkpoint} checkpoint at step {step:,}, {goals.shape[1]} episodes per "
        f"task, protocol {config.protocol_stamp}"
    )
    print(title)
    Console().print(success_table(config.task_names, result))
    if video:
        print(f"videos: {video}, and one file per task beside it")


@dataclass(frozen=True)
class ExportOptions:
    out: Path = Path("policy.pt2")
    """File to write."""
    checkpoint: str = "best"
    """best (highest mean success while training), latest, or a checkpoint file."""


def export_command(arguments: list[str]) -> None:
    name = "RUN" if arguments[0] in ("-h", "--help") else arguments[0]
    rest = arguments if name == "RUN" else arguments[1:]
    options = tyro.cli(ExportOptions, prog=f"mtrl export {name}", args=rest)

    import torch

    from mtrl.agent import Agent
    from mtrl.envs.tasks import task_set_of
    from mtrl.export import export_policy
    from mtrl.trained import open_trained

    trained = open_trained(user_path(name), options.checkpoint)
    config = trained.config
    envs = task_set_of(config)
    agent = Agent(config, envs.observation_dim, envs.action_dim, torch.device("cpu"))
    agent.load_state_dict(trained.agent_state)
    out = user_path(options.out)
    export_policy(agent, config, envs.observation_dim, out)
    print(f"{out}: policy of {name} at step {trained.step:,}, for {len(envs.names)} tasks")
