"""`mtrl bench`: what it says of a run is consistent with itself and with arithmetic."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from conftest import REPOSITORY

from mtrl.commands.bench import Measurement, findings, measure
from mtrl.config import Config, load_yaml
from mtrl.envs.vector import make_vector_env


@pytest.fixture(scope="module")
def config() -> Config:
    toy = load_yaml(REPOSITORY / "configs/toy.yaml")
    learner = dataclasses.replace(toy.learner, device="cpu", threads=1)
    env = dataclasses.replace(toy.env, workers=2)
    return dataclasses.replace(toy, env=env, learner=learner)


@pytest.fixture(scope="module")
def measured(config: Config) -> Measurement:
    with make_vector_env(config, config.train.envs_per_task) as envs:
        return measure(config, envs, seconds=1.0)


def products(config: Config, observation: int, action: int) -> int:
    """Floating-point operations of an update's matrix products, counted by hand."""
    rows, width, depth = config.replay.batch_size, config.network.width, config.network.depth

    def layers(inputs: int, outputs: int) -> list[int]:
        dims = [inputs, *[width] * depth, outputs]
        return [2 * rows * a * b for a, b in itertools.pairwise(dims)]

    inputs = observation + config.num_tasks
    actor, critic = layers(inputs, 2 * action), layers(inputs + action, 1)
    target = sum(actor) + 2 * sum(critic)
    critic_step = 2 * (2 * sum(critic) + sum(critic[1:]))  # nothing flows back into the inputs
    actor_step = 2 * sum(actor) + sum(actor[1:]) + 2 * 2 * sum(critic)  # but into the actions
    return target + critic_step + actor_step


def test_counts_the_products_of_an_update(config: Config, measured: Measurement) -> None:
    expected = products(config, observation=2, action=2)
    assert measured.update_gflop * 1e9 == pytest.approx(expected, rel=1e-5)  # and the temperature
    assert measured.product_share > 0


def test_shares_and_rates_agree_with_each_other(config: Config, measured: Measurement) -> None:
    """Whatever the clock says: only counts decide."""
    assert set(measured.stages) == {
        "act", "sample", "update", "simulate", "store", "log", "checkpoint", "evaluate"
    }  # fmt: skip
    assert sum(share for _, share in measured.stages.values()) == pytest.approx(1)
    rate = config.agent.updates_per_step
    every = {"sample": rate, "update": rate, "act": 1, "simulate": 1, "store": 1}
    # Time of a lap / share of the time = time of all laps / number of laps.
    steps = [measured.stages[stage][0] * laps / measured.stages[stage][1]
             for stage, laps in every.items()]  # fmt: skip
    assert steps == pytest.approx([steps[0]] * 5)
    assert measured.updates_per_s == pytest.approx(
        rate * measured.env_steps_per_s / config.num_envs
    )
    # The window's end is read once for the step and later once more for the rates.
    assert measured.step_ms <= 1e3 * config.num_envs / measured.env_steps_per_s * (1 + 1e-9)
    assert measured.busiest_worker_ms > 0
    assert len(findings(measured)) == 4
    floats = 2 + 2 + 1 + 2 + 1  # observation, action, reward, next observation, terminated
    assert measured.replay_mib == pytest.approx(4 * floats * config.replay.capacity / 2**20)
    assert measured.learner_mib > measured.replay_mib
    assert measured.worker_mib > 10
