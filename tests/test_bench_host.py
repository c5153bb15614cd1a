"""The benchmark of the loop's own cost watches stages that the loop has."""

from __future__ import annotations

import pytest

import host
from mtrl.envs.vector import VectorEnv
from mtrl.options.command_line import load_config
from mtrl.schema import with_values


def test_every_stage_takes_time_and_they_add_up() -> None:
    settings = {
        "agent.updates_per_step": 1e-9,
        "train.warmup_steps": 0,
        "replay.capacity": 1000,
        "learner.device": "cpu",
        "learner.threads": 1,
    }
    config = with_values(load_config("mt10"), settings)
    lanes = [host.Still] * config.num_envs
    dims = host.OBSERVATION, host.ACTION
    with VectorEnv(config.task_names, lanes, *dims, workers=1) as envs:
        spent = host.measure(config, envs, 5)
    # The rest comes at the end of episodes alone.
    assert set(host.COLUMNS) - set(spent) <= {"goals", "episodes' ends"}
    assert all(microseconds > 0 for microseconds in spent.values())
    stages = set(spent) - {"all but receive", "receive", "the busiest worker"}
    assert sum(spent[stage] for stage in stages) == pytest.approx(spent["all but receive"])
