"""Checkpoints written before networks were made of recorded layers, and methods modules."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, Mtrl, final_state, succeeded
from torch import Tensor
from torch.nn import functional as F

from mtrl.agent import Agent
from mtrl.commands.trained import open_trained
from mtrl.config import load_yaml
from mtrl.envs import toy
from mtrl.run.earlier_checkpoints import smto_state
from mtrl.smto import SMTO, create

RUN, STEP = REPOSITORY / "tests/data/earlier_run", 600


def test_the_networks_and_moments_are_those_that_were_saved() -> None:
    saved = final_state(RUN, STEP)["agent"]
    config = load_yaml(RUN / "config.yaml")
    agent = Agent(config, toy.OBSERVATION_DIM, toy.ACTION_DIM, torch.device("cpu"))
    agent.load_state_dict(saved)

    observations = torch.randn(2, 5, toy.OBSERVATION_DIM)
    weights, biases = (
        [saved["actor"][f"mlp.{kind}.{layer}"][0] for layer in range(3)]
        for kind in ("weights", "biases")
    )
    x = torch.cat([observations, torch.eye(2)[:, None].expand(2, 5, 2)], -1)
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = torch.relu(F.layer_norm(x @ weight, (len(bias[0]),)) + bias)
    mean = (x @ weights[-1] + biases[-1])[..., : toy.ACTION_DIM]
    actions = agent.act(observations, deterministic=True)
    torch.testing.assert_close(actions, torch.tanh(mean), rtol=1e-4, atol=1e-5)

    for loss, objective in (("critic", agent.critic), ("actor", agent.actor)):
        names = [name for name in saved[loss] if name.startswith("mlp.")]
        moments = dict(zip(names, saved[f"{loss}_optimizer"]["state"].values(), strict=True))
        body, state = objective.network.get_submodule("body"), objective.optimizer.torch.state
        layers = [*body.get_submodule("hidden").children(), body]
        for index, layer in enumerate(layers):
            values = dict(layer.named_parameters())
            last = index == len(layers) - 1
            weight = values["head.weight" if last else "linear.weight"]
            bias = values["head.bias" if last else "norm.bias"]
            for kind, parameter in (("weights", weight), ("biases", bias)):
                name = f"mlp.{kind}.{index}"
                assert torch.equal(parameter, saved[loss][name])
                assert torch.equal(state[parameter]["exp_avg"], moments[name]["exp_avg"])


def test_the_run_continues_and_its_policy_can_be_used(run_mtrl: Mtrl, tmp_path: Path) -> None:
    run = shutil.copytree(RUN, tmp_path / "run")
    trained = open_trained(run, "latest")
    assert trained.dimensions == (toy.OBSERVATION_DIM, toy.ACTION_DIM)
    actions = trained.policy(*trained.dimensions)(torch.zeros(2, toy.OBSERVATION_DIM))
    assert actions.shape == (2, toy.ACTION_DIM)
    succeeded(run_mtrl("resume", run))
    assert final_state(run, 800)["step"] == 800


def earlier(name: str, state: dict[str, Any]) -> dict[str, Any]:
    """A method's state as it was stored before methods were modules."""
    state = dict(state)
    extra = state.pop("_extra_state")
    if "solved" in state:
        state |= {"held": state.pop("solved"), "age": extra["step"]}
    if "adam" in extra:
        moments = extra["adam"][0]
        state |= {"moment": moments["exp_avg"], "square": moments["exp_avg_sq"]}
        state["updates"] = moments["step"].double()
    if name == "famo":
        state["calls"] = 1
    state |= {key: value for key, value in extra.items() if key in ("calls", "generator")}
    return state


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("famo", {}),
        ("uw", {}),
        ("gradnorm", {"update_every": 3}),
        ("pcgrad", {"update_every": 3}),
        ("gradvac", {}),
        ("dwa", {"window": 2}),
        ("autoscale", {"total_steps": 20, "windows": 2}),
        ("unitary", {}),
    ],
)
def test_methods_that_were_no_modules_continue(name: str, options: dict[str, Any]) -> None:
    one, two = (create(name, 3, **options) for _ in range(2))
    generator = torch.Generator().manual_seed(0)

    def step(*methods: SMTO) -> list[Tensor]:
        jacobian = torch.randn(3, 6, dtype=torch.float64, generator=generator)
        losses = torch.rand(3, dtype=torch.float64, generator=generator)
        return [method.direction(jacobian, losses) for method in methods]

    for _ in range(4):
        step(one)
    two.load_state_dict(smto_state(earlier(name, copy.deepcopy(one.state_dict()))))
    for _ in range(5):
        first, second = step(one, two)
        assert torch.equal(first, second)
    today = one.state_dict()
    assert smto_state(today).keys() == today.keys()
