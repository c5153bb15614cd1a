"""A trained agent from a run directory or one of its checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from mtrl import checkpoint
from mtrl.config import Config
from mtrl.plugins import load_plugins
from mtrl.run_directory import RunDirectory
from mtrl.schema import ConfigError, user_path


class Trained(NamedTuple):
    run: RunDirectory
    config: Config
    checkpoint: str
    """`best`, `latest`, or the file that was asked for."""
    step: int
    """Environment steps of training, summed over tasks."""
    agent_state: dict[str, Any]
    """For `Agent.load_state_dict`."""


def open_trained(path: Path, chosen: str) -> Trained:
    """path: a run's directory or a checkpoint in it; chosen: best, latest or a checkpoint file.

    Raises ConfigError for what is not a run, CheckpointError for what cannot be read.
    """
    run, config = RunDirectory.open(path)
    if path.is_file():
        if chosen != "best":
            raise ConfigError("checkpoint", chosen, f"{path} is a checkpoint already")
        chosen = str(path)
    config = load_plugins(config)
    state: dict[str, Any] | None
    if chosen == "latest":
        state, warnings = checkpoint.load_latest(run.checkpoints)
        for warning in warnings:
            print(f"mtrl: warning: {warning}", file=sys.stderr)
        if state is None:
            raise checkpoint.CheckpointError(f"no readable checkpoint in {run.checkpoints}")
    elif chosen == "best":
        state = checkpoint.load(run.checkpoints / "best.pt")
    else:
        state = checkpoint.load(user_path(chosen))
    return Trained(run, config, chosen, state["step"], state["agent"])
