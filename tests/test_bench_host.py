"""The benchmark of the loop's own cost watches stages that the loop has."""

from __future__ import annotations

import dataclasses
import sys

import pytest
from conftest import REPOSITORY

from mtrl.envs.vector import VectorEnv
from mtrl.options.command_line import load_config

sys.path.insert(0, str(REPOSITORY / "scripts"))
import bench_host


def test_every_stage_takes_time_and_they_add_up() -> None:
    config = load_config("mt10")
    config = dataclasses.replace(
        config,
        agent=dataclasses.replace(config.agent, updates_per_step=1e-9),
        train=dataclasses.replace(config.train, warmup_steps=0),
        replay=dataclasses.replace(config.replay, capacity=1000),
        learner=dataclasses.replace(config.learner, device="cpu", threads=1),
    )
    lanes = [bench_host.Still] * config.num_envs
    dims = bench_host.OBSERVATION, bench_host.ACTION
    with VectorEnv(config.task_names, lanes, *dims, workers=1) as envs:
        spent = bench_host.measure(config, envs, 5)
    # The rest comes at the end of episodes alone.
    assert set(bench_host.COLUMNS) - set(spent) <= {"goals", "episodes' ends"}
    assert all(microseconds > 0 for microseconds in spent.values())
    stages = set(spent) - {"all but receive", "receive", "the busiest worker"}
    assert sum(spent[stage] for stage in stages) == pytest.approx(spent["all but receive"])
