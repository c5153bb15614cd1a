"""A trained agent from a run directory or one of its checkpoints."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mtrl.config import Config, benchmarks
from mtrl.envs import tasks
from mtrl.envs.vector import VectorEnv
from mtrl.networks import available_networks
from mtrl.networks.policy import DeterministicPolicy, make_policy, stored_dimensions
from mtrl.options.plugins import load_plugins
from mtrl.options.validation import check_gym_tasks
from mtrl.run import checkpoint
from mtrl.run.directory import RunDirectory, folder_of
from mtrl.schema import ConfigError, nearest, user_path


class Trained(NamedTuple):
    run: RunDirectory
    config: Config
    checkpoint: str
    """`best`, `latest`, or the file that was asked for."""
    step: int
    """Environment steps of training, summed over tasks."""
    agent_state: dict[str, Any]
    """For `Agent.load_state_dict`."""

    @property
    def dimensions(self) -> tuple[int, int]:
        """Of observations and actions."""
        return stored_dimensions(self.agent_state)

    def policy(self, observation_dim: int, action_dim: int) -> DeterministicPolicy:
        """On the CPU. ConfigError if the checkpoint has another size."""
        policy = make_policy(self.config, observation_dim, action_dim)
        with _misfit(self.checkpoint):
            check_policy(policy, self.agent_state)
        policy.encoder.load_state_dict(self.agent_state["encoder"])
        policy.actor.load_state_dict(self.agent_state["actor"])
        return policy.eval()


def open_trained(path: Path, chosen: str) -> Trained:
    """path: a run's directory or a checkpoint in it; chosen: best, latest or a checkpoint file.

    Plug-ins are not loaded: see `with_plugins`. Raises ConfigError for what is not a run or
    not its checkpoint, CheckpointError for what cannot be read.
    """
    if RunDirectory(folder_of(path)).is_supervised:
        raise ConfigError(
            "RUN", str(path), "is a run of mtrl supervised, which has no policy; see `mtrl report`"
        )
    run, config = RunDirectory.open(path)
    if path.is_file():
        if chosen != "best":
            raise ConfigError("checkpoint", chosen, f"{path} is a checkpoint already")
        chosen = str(path)
    state = stored_state(run, chosen)
    with _misfit(chosen):
        checkpoint.check_kind(state)
    return Trained(run, config, chosen, state["step"], state["agent"])


def stored_state(run: RunDirectory, chosen: str) -> dict[str, Any]:
    """All that a checkpoint holds; chosen: best, latest or a checkpoint file.

    ConfigError for a file that is not there, CheckpointError for what cannot be read.
    """
    if chosen == "best":
        best = run.checkpoints / "best.pt"
        if not best.is_file():
            allowed = "there is none before an evaluation; allowed: latest, or a checkpoint file"
            raise ConfigError("checkpoint", chosen, allowed)
        return checkpoint.load(best)
    if chosen != "latest":
        if not user_path(chosen).is_file():
            known = ("best", "latest")
            allowed = f"must be best, latest or a checkpoint file{nearest(chosen, known)}"
            raise ConfigError("checkpoint", chosen, allowed)
        return checkpoint.load(user_path(chosen))
    state, warnings = checkpoint.load_latest(run.checkpoints)
    for warning in warnings:
        print(f"mtrl: warning: {warning}", file=sys.stderr)
    if state is None:
        raise checkpoint.CheckpointError(f"no readable checkpoint in {run.checkpoints}")
    return state


@contextmanager
def _misfit(chosen: str) -> Iterator[None]:
    """A checkpoint that does not fit is a wrong option."""
    try:
        yield
    except checkpoint.CheckpointError as error:
        raise ConfigError("checkpoint", chosen, f"does not fit this run: {error}") from None


def check_policy(policy: DeterministicPolicy, agent_state: Mapping[str, Any]) -> None:
    """CheckpointError unless the policy fits the agent's state."""
    own = {"encoder": policy.encoder.state_dict(), "actor": policy.actor.state_dict()}
    checkpoint.check_fit(own, agent_state)


def check_checkpoint(config: Config, envs: VectorEnv, state: Any) -> None:
    """Raise CheckpointError unless a run of this configuration can continue from `state`."""
    checkpoint.check_resumable(state, config.num_envs)
    check_policy(make_policy(config, envs.observation_dim, envs.action_dim), state["agent"])


def with_plugins(config: Config, moved: Sequence[str] = (), *, environments: bool = True) -> Config:
    """The configuration with the plug-ins that its network and its environments need, imported.

    moved: where they are now, if no longer where the run found them. environments: False for a
    policy alone. ConfigError if network or environments cannot be made here.
    """
    own_tasks = environments and not all(
        name in benchmarks.all_tasks() for name in config.task_names
    )
    if moved:
        config = load_plugins(dataclasses.replace(config, plugins=tuple(moved)))
    elif own_tasks or _missing(config, environments=False):
        config = _load_what_is_there(config, environments)
    else:
        return dataclasses.replace(config, plugins=())  # methods; acting needs none
    for key, name in _missing(config, environments):
        raise ConfigError(key, name, "none of the plug-ins registers it")
    if environments:
        check_gym_tasks(config)
    return config


def _missing(config: Config, environments: bool) -> list[tuple[str, str]]:
    """(key, name) of the network and the environments that nothing has registered."""
    network = config.network.architecture
    found = [] if network in available_networks() else [("network.architecture", network)]
    return found + [
        ("env.tasks", name)
        for name in config.task_names
        if environments and not (name in benchmarks.all_tasks() or tasks.is_gym(name))
    ]


def _load_what_is_there(config: Config, environments: bool) -> Config:
    """A plug-in that cannot be imported is refused only where something is then missing."""
    found: list[str] = []
    failure: ConfigError | None = None
    for plugin in config.plugins:
        try:
            found += load_plugins(dataclasses.replace(config, plugins=(plugin,))).plugins
        except ConfigError as error:
            failure = error
    if failure is not None:
        if _missing(config, environments):
            raise failure
        print(f"mtrl: note: continuing without a plug-in: {failure}", file=sys.stderr)
    return dataclasses.replace(config, plugins=tuple(found))
