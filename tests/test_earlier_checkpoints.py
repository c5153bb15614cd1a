"""Checkpoints written before networks were made of recorded layers."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from conftest import REPOSITORY, Mtrl, final_state, succeeded
from torch.nn import functional as F

from mtrl.agent import Agent
from mtrl.config import load_yaml
from mtrl.envs import toy
from mtrl.trained import open_trained

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
