"""PopArt: normalised critics whose values stay when their scale moves."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtrl.agent import Agent
from mtrl.config import AgentConfig, Config, CriticConfig, EnvConfig, NetworkConfig, SmtoConfig
from mtrl.config.benchmarks import TOY
from mtrl.networks.critic import Critic
from mtrl.networks.shape import Shape
from mtrl.networks.shared import shared_network
from mtrl.networks.values import PopArtValue
from mtrl.replay import Batch

CPU = torch.device("cpu")
TASKS, SAMPLES = 3, 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_critic(body: str = "mlp") -> Critic:
    torch.manual_seed(1)
    shape = Shape(
        ("a", "b", "c"), 5, 1, width=8, depth=1, layer_norm=True, copies=2, task_head=True
    )
    return Critic(shared_network(dataclasses.replace(shape, body=body)))


@given(
    means=st.lists(st.floats(-1e3, 1e3), min_size=TASKS, max_size=TASKS),
    spreads=st.lists(st.floats(1e-2, 1e3), min_size=TASKS, max_size=TASKS),
    body=st.sampled_from(["mlp", "residual"]),
)
def test_values_stay_when_the_moments_move(
    means: list[float], spreads: list[float], body: str
) -> None:
    value, critic = PopArtValue(TASKS, 0.1, CPU), make_critic(body)
    target = copy.deepcopy(critic)
    states, actions = normal(TASKS, SAMPLES, 3), normal(TASKS, SAMPLES, 2, seed=1)
    y = normal(TASKS, 9, seed=3)
    value.follow(value.summary(y[:, 0], y), (critic, target))  # sets them
    for scale in (1.0, 3.0, 0.5):
        with torch.no_grad():
            before = [value.value(network(states, actions)) for network in (critic, target)]
        y = scale * (
            torch.tensor(means)[:, None] + torch.tensor(spreads)[:, None] * normal(TASKS, 9, seed=2)
        )
        assert value.follow(value.summary(y[:, 0], y), (critic, target))
        largest = float(value.std.max() + value.mean.abs().max())
        for network, old in zip((critic, target), before, strict=True):
            with torch.no_grad():
                now = value.value(network(states, actions))
            # float32 holds 1e-7 of the largest term, mu or sigma n.
            torch.testing.assert_close(now, old, rtol=1e-5, atol=1e-5 * max(largest, 1.0))


def test_moments_are_those_of_the_targets_so_far() -> None:
    value, critic = PopArtValue(TASKS, 1e-3, CPU), make_critic()
    seen = np.empty((TASKS, 0))
    for k in range(20):
        y = 5.0 + normal(TASKS, SAMPLES, seed=k)
        seen = np.concatenate([seen, y.numpy()], axis=1)
        value.follow(value.summary(y[:, 0], y), (critic,))
    np.testing.assert_allclose(value.mean, seen.mean(1), rtol=1e-5)
    np.testing.assert_allclose(value.std, seen.std(1), rtol=1e-4)


def make_agent(**critic: float) -> Agent:
    config = Config(
        env=EnvConfig(tasks=TOY[:TASKS]),
        network=NetworkConfig(width=32, depth=2, layer_norm=True),
        critic=CriticConfig(kind="popart", popart_rate=0.05, **critic),  # type: ignore[arg-type]  # numbers
        agent=AgentConfig(critic_lr=3e-3, tau=0.1, gamma=0.5, smto=SmtoConfig("unitary")),
    )
    return Agent(config, 5, 2, CPU)


def make_batch(k: int, scale: Tensor) -> Batch:
    def draw(*shape: int) -> Tensor:
        return normal(TASKS, 64, *shape, seed=k)

    observations, actions = draw(5), draw(2).tanh()
    rewards = scale[:, None] * (1.0 + observations[..., 0] * actions[..., 0])
    return Batch(
        observations, actions, rewards, draw(5), torch.ones(TASKS, 64), torch.full((TASKS, 64), 0.5)
    )


def test_tasks_of_very_different_scale_are_learned_alike() -> None:
    """One-step problems whose value is the reward: errors relative to each task's scale."""
    scale = torch.tensor([1e-2, 1.0, 1e3])
    agent = make_agent()
    for k in range(400):
        agent.update(make_batch(k, scale))
    batch = make_batch(9999, scale)
    with torch.no_grad():
        outputs = agent.critic.network(agent.encoder(batch.observations), batch.actions)
        error = (agent.value.value(outputs) - batch.rewards).square().mean(1).sqrt()
    relative = error / batch.rewards.std(1)
    assert (relative < 0.35).all(), relative


def test_a_restored_agent_continues_bitwise() -> None:
    scale = torch.tensor([1.0, 10.0, 100.0])
    one, two = make_agent(), make_agent()
    for k in range(3):
        one.update(make_batch(k, scale))
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for k in range(3, 6):
        first, second = one.update(make_batch(k, scale)), two.update(make_batch(k, scale))
        assert all(torch.equal(a, b) for a, b in zip(first[:5], second[:5], strict=True))
    for a, b in zip(one.target_critic.parameters(), two.target_critic.parameters(), strict=True):
        assert torch.equal(a, b)
