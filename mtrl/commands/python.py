"""mtrl from Python: what `import mtrl` offers. The commands do the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mtrl.commands import launch
from mtrl.commands.trained import Trained, open_trained, with_plugins
from mtrl.config import Config
from mtrl.device.setup import choose_device, device_here, set_up_learner
from mtrl.envs.vector import make_vector_env
from mtrl.evaluation import Evaluation, goal_schedule, numpy_policy
from mtrl.evaluation import evaluate as run_episodes
from mtrl.options.command_line import load_config, with_settings
from mtrl.options.command_words import Existing
from mtrl.run.callbacks import Callback, check_callbacks
from mtrl.run.state import Run, read_run
from mtrl.run.stopping import Stopped
from mtrl.schema import ConfigError, user_path


def train(
    config: str | Path | Config,
    overrides: Mapping[str, Any] | None = None,
    *,
    seed: int | None = None,
    run_dir: str | Path | None = None,
    callbacks: Iterable[Callback] = (),
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    """Train, as `mtrl train` does, to the end or until a callback asks to stop.

    config: a preset's name, a YAML file, or a Config. overrides: {"agent.smto.name": "pcgrad"},
    with the names of `mtrl train CONFIG --help`. resume: continue the run that run_dir holds, if it
    holds one. overwrite: delete it.

    Raises ConfigError for what is not allowed, before anything is written; and what ends a run:
    TrainingError, WorkerError, CheckpointError, MemoryError, OSError, or Stopped after a signal.
    """
    default = config if isinstance(config, Config) else load_config(str(config))
    settings = dict(overrides or {})
    if seed is not None:
        settings["seed"] = seed
    if run_dir is not None:
        settings["run_dir"] = str(run_dir)
    wanted = with_settings(default, settings)
    existing = Existing(overwrite=overwrite, resume_if_exists=resume)
    try:
        launch.start(wanted, existing, check_callbacks(callbacks))
    except Stopped as stopped:
        if stopped.signum:
            raise
    return read_run(wanted.run_path)


Task = str | int | np.integer[Any]
"""A task's name, or its index in the run's order."""


class Policy:
    """A trained agent's deterministic policy, on NumPy arrays."""

    def __init__(self, trained: Trained, device: torch.device) -> None:
        self.config, self.step, self.task_names = (
            trained.config,
            trained.step,
            trained.config.task_names,
        )
        self.device = device
        self.dimensions = trained.dimensions
        """Of observations and actions."""
        self.network = trained.policy(*trained.dimensions).to(device)

    def __repr__(self) -> str:
        config = self.config
        return f"<policy of {config.method} on {len(self.task_names)} tasks, step {self.step:,}>"

    @torch.no_grad()
    def act(self, observation: ArrayLike, task: Task | Sequence[Task]) -> NDArray[np.float32]:
        """Observation [obs] or [n, obs] -> actions [action] or [n, action], float32 in [-1, 1].

        task: a name or an index, for all rows or one for each. ValueError for what does not fit.
        """
        rows = np.atleast_2d(np.asarray(observation, dtype=np.float32))
        single = np.ndim(observation) == 1
        given = [task] * len(rows) if isinstance(task, str | int | np.integer) else task
        tasks = [self._index(one) for one in given]
        width = len(self.network.encoder.mean)
        if rows.ndim != 2 or rows.shape[1] != width or len(tasks) != len(rows):
            raise ValueError(
                f"expected observations [{width}] or [n, {width}] and one task or n tasks, not "
                f"{np.shape(observation)} and {len(tasks)} tasks"
            )
        inputs = torch.from_numpy(rows).to(self.device).expand(len(self.task_names), *rows.shape)
        # Encoded and acted for every task: the networks need the task as leading index.
        actions: NDArray[np.float32] = self.network(inputs)[tasks, range(len(rows))].cpu().numpy()
        return actions[0] if single else actions

    def _index(self, task: Task) -> int:
        if isinstance(task, str):
            if task not in self.task_names:
                raise ValueError(f"unknown task {task!r}; this policy knows {self.task_names}")
            return self.task_names.index(task)
        if not 0 <= task < len(self.task_names):
            raise ValueError(f"task must be in 0..{len(self.task_names) - 1}, not {task}")
        return int(task)


def load(
    run: str | Path | Run,
    checkpoint: str | Path = "best",
    device: str = "",
    plugins: Sequence[str | Path] = (),
) -> Policy:
    """The policy of a run: checkpoint best, latest, or a checkpoint file.

    device: auto, cpu, cuda or cuda:i; if empty the run's own, or auto where this machine lacks it.
    plugins: where the one that registers its network is now, if it has moved.
    Raises ConfigError for what is no run or no checkpoint of it.
    """
    trained = open_trained(run.path if isinstance(run, Run) else user_path(run), str(checkpoint))
    with_plugins(trained.config, [str(path) for path in plugins], environments=False)
    name = device or device_here(trained.config.learner.device)
    return Policy(trained, choose_device(name, "device"))


def evaluate(
    policy: Policy | str | Path | Run,
    *,
    episodes_per_task: int = 50,
    plugins: Sequence[str | Path] = (),
) -> Evaluation:
    """Success and return of each episode, over goals that do not repeat; tasks in the run's order.

    policy: what `load` gives, or a run, whose best policy is meant. plugins: where the plug-ins
    that register its network and its environments are now, if they have moved.

    Raises ConfigError as `load` does, and for less than one episode.
    """
    if episodes_per_task < 1:
        raise ConfigError("episodes_per_task", episodes_per_task, "must be at least 1")
    if not isinstance(policy, Policy):
        policy = load(policy, plugins=plugins)
    learner = dataclasses.replace(policy.config.learner, device=str(policy.device))
    config = dataclasses.replace(policy.config, learner=learner)
    config = with_plugins(config, [str(path) for path in plugins])
    set_up_learner(config.learner)
    goals = goal_schedule(config, episodes_per_task)
    with make_vector_env(config) as envs:
        found = envs.observation_dim, envs.action_dim
        if found != policy.dimensions:
            have = (
                f"have observations and actions of {found}, but the policy of {policy.dimensions}"
            )
            raise ConfigError("env.tasks", config.env.tasks, have)
        return run_episodes(
            numpy_policy(policy.network, policy.device),
            envs,
            goals,
            stop_at_success=config.evaluation.stop_at_success,
        )
