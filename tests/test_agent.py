import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from smto_cases import options_of

from mtrl import losses
from mtrl.agent import Agent
from mtrl.commands.notes import notes, of_rewards
from mtrl.config import (
    LOSSES,
    AgentConfig,
    Config,
    CriticConfig,
    EnvConfig,
    LossSmtoConfig,
    NetworkConfig,
    ReplayConfig,
    SmtoConfig,
    TemperatureSmtoConfig,
    TrainConfig,
)
from mtrl.config.benchmarks import TOY
from mtrl.device.streams import stream_seed
from mtrl.replay import Batch
from mtrl.run import checkpoint
from mtrl.smto import FAMO, SMTO, available, register
from mtrl.smto import registry as smto_registry

OBSERVATION, ACTION, SAMPLES = 5, 2, 8
CPU = torch.device("cpu")


def make_agent(
    *, tasks=3, seed=1, smto="unitary", network=None, critic=None, device=CPU, **settings
):
    config = Config(
        critic=CriticConfig(**(critic or {})),
        seed=seed,
        env=EnvConfig(tasks=TOY[:tasks]),
        network=NetworkConfig(**({"width": 16, "depth": 2} | (network or {}))),
        agent=AgentConfig(smto=SmtoConfig(smto) if isinstance(smto, str) else smto, **settings),
    )
    return Agent(config, OBSERVATION, ACTION, device)


def make_batch(tasks=3, seed=0, device=CPU, gamma=0.99):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(tasks, SAMPLES, *shape, generator=generator).to(device)

    scale = torch.logspace(-1, 1, tasks, device=device)[:, None]
    return Batch(
        normal(OBSERVATION),
        normal(ACTION).tanh(),
        scale * normal(),
        normal(OBSERVATION),
        (normal() > 1.0).float(),
        torch.full((tasks, SAMPLES), gamma, device=device),
    )


def train(agent, updates, first=0):
    return [agent.update(make_batch(agent.num_tasks, first + k)) for k in range(updates)]


def parameters(agent):
    networks = (agent.actor.network, agent.critic.network, agent.target_critic)
    values = [p for network in networks for p in network.parameters()]
    return torch.cat([p.detach().flatten() for p in [*values, agent.temperature.log_alpha]])


def scale_learning_rates(agent, factor):
    for part in agent.parts.values():
        part.optimizer.scale(factor)


def norm_of_gradients(network):
    return math.sqrt(sum(float(p.grad.detach().square().sum()) for p in network.parameters()))


@pytest.fixture
def clean_registry(monkeypatch):
    monkeypatch.setattr(smto_registry, "_METHODS", dict(smto_registry._METHODS))


# -- the update as a whole --------------------------------------------------------------------


def textbook_update(agent, batch, adams, smto_weights):
    """One SAC update in plain autograd on the agent's own modules (Haarnoja et al. 2018)."""
    tau = agent.config.tau
    stream = agent.generator

    def policy(states):
        mean, log_std = agent.actor.network(agent.encoder(states))
        normal = torch.distributions.Normal(mean, log_std.exp())
        u = mean + log_std.exp() * torch.randn(mean.shape, generator=stream)
        # float64, because 1 - tanh(u)^2 loses its digits in float32
        squash = torch.log(1 - torch.tanh(u.double()) ** 2).float()
        return torch.tanh(u), (normal.log_prob(u) - squash).sum(-1)

    def q_values(critic, states, actions):
        return critic(agent.encoder(states), actions)

    alpha = agent.temperature.log_alpha.detach().exp().expand(agent.num_tasks)[:, None].clone()
    with torch.no_grad():
        action, log_prob = policy(batch.next_observations)
        value = q_values(agent.target_critic, batch.next_observations, action).min(0).values
        value = value - alpha * log_prob
        target = batch.rewards + batch.discounts * (1 - batch.terminated) * value
    q1, q2 = q_values(agent.critic.network, batch.observations, batch.actions)
    critic_losses = ((q1 - target) ** 2 + (q2 - target) ** 2).mean(1)
    adams["critic"].zero_grad()
    (smto_weights * critic_losses).sum().backward()
    adams["critic"].step()

    action, log_prob = policy(batch.observations)
    value = q_values(agent.critic.network, batch.observations, action).min(0).values
    actor_losses = (alpha * log_prob - value).mean(1)
    adams["actor"].zero_grad()
    (smto_weights * actor_losses).sum().backward()
    adams["actor"].step()

    entropy = -log_prob.detach().mean(1)
    adams["temperature"].zero_grad()
    (
        agent.temperature.log_alpha.exp() * (entropy - agent.temperature.target_entropy)
    ).mean().backward()
    adams["temperature"].step()
    with torch.no_grad():
        for slow, fast in zip(
            agent.target_critic.parameters(), agent.critic.network.parameters(), strict=True
        ):
            slow.copy_((1 - tau) * slow + tau * fast)
    return critic_losses.detach(), actor_losses.detach(), entropy


@pytest.mark.parametrize("temperature", ["shared", "per_task"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_update_equals_textbook_sac(temperature, layer_norm):
    settings = {
        "temperature": temperature,
        "network": {"layer_norm": layer_norm},
        "actor_lr": 1e-3,
        "critic_lr": 2e-3,
        "temperature_lr": 3e-3,
        "actor_l2": 0.01,
        "tau": 0.1,
        "initial_temperature": 0.3,
    }
    agent, twin = make_agent(**settings), make_agent(**settings)
    adams = {
        "critic": torch.optim.Adam(twin.critic.network.parameters(), lr=2e-3),
        "actor": torch.optim.Adam(twin.actor.network.parameters(), lr=1e-3, weight_decay=0.01),
        "temperature": torch.optim.Adam([twin.temperature.log_alpha], lr=3e-3),
    }
    start = parameters(agent)
    for k in range(3):
        batch = make_batch(seed=k, gamma=0.9)
        metrics = agent.update(batch)
        critic, actor, entropy = textbook_update(twin, batch, adams, torch.full((3,), 1 / 3))
        for got, expected in (
            (metrics.critic_loss, critic),
            (metrics.actor_loss, actor),
            (metrics.entropy, entropy),
        ):
            np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)
    difference = (parameters(agent) - parameters(twin)).abs()
    assert (parameters(agent) - start).abs().max() > 1e-3
    # 1% of Adam's step: gradients agree to 1e-7 of the largest, and a step has the same length for
    # an entry that is 1e-5 of it.
    assert difference.max() < 3e-5, difference.max()


def test_the_losses_after_a_step_are_of_its_own_batch_and_noise(monkeypatch):
    seen, after_step = [], FAMO.after_step

    def spy(smto, losses):
        seen.append((smto.before.float(), losses.clone()))
        after_step(smto, losses)

    monkeypatch.setattr(FAMO, "after_step", spy)
    standing = {"actor_lr": 0.0, "temperature_lr": 0.0, "tau": 1e-12}
    own = {"temperature_smto": TemperatureSmtoConfig("famo")}
    agent = make_agent(smto="famo", critic_lr=0.01, **standing, **own)
    stream = agent.generator.get_state()
    first = agent.update(make_batch())
    agent.generator.set_state(stream)
    second = agent.update(make_batch())
    critic, actor, temperature, *_ = seen
    torch.testing.assert_close(critic, (first.critic_loss, second.critic_loss))
    assert (critic[0] != critic[1]).all()
    # These stand still; the actor's critic has moved before.
    torch.testing.assert_close(actor, (first.actor_loss, first.actor_loss))
    torch.testing.assert_close(*temperature)


def test_sgd_steps_along_the_direction():
    agent = make_agent(optimizer="sgd", betas=(0.0, 0.0), critic_lr=0.1)
    before = [p.detach().clone() for p in agent.critic.network.parameters()]
    agent.update(make_batch())
    for old, new in zip(before, agent.critic.network.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old - 0.1 * new.grad)


def test_adamw_decays_the_weights_apart_from_the_gradient():
    plain, decayed = (
        make_agent(critic_lr=0.01, **settings)
        for settings in ({}, {"optimizer": "adamw", "weight_decay": 0.5})
    )
    start = [p.detach().clone() for p in plain.critic.network.parameters()]
    for agent in (plain, decayed):
        agent.update(make_batch())
    moved = zip(
        start, plain.critic.network.parameters(), decayed.critic.network.parameters(), strict=True
    )
    for old, one, two in moved:
        expected = one.detach() - 0.01 * 0.5 * old
        torch.testing.assert_close(two.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_every_optimizer_continues_from_a_checkpoint(optimizer):
    one, two = (make_agent(optimizer=optimizer) for _ in range(2))
    train(one, 3)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for agent in (one, two):
        train(agent, 2, first=3)
    assert torch.equal(parameters(one), parameters(two))


def test_target_network_moves_by_tau_towards_the_critic():
    agent = make_agent(tau=0.25, critic_lr=1e-2)
    for _ in range(3):
        old = [p.clone() for p in agent.target_critic.parameters()]
        agent.update(make_batch())
        for before, after, goal in zip(
            old, agent.target_critic.parameters(), agent.critic.network.parameters(), strict=True
        ):
            expected = 0.75 * before + 0.25 * goal
            np.testing.assert_allclose(
                after.numpy(), expected.detach().numpy(), rtol=1e-5, atol=1e-7
            )
    assert not any(p.requires_grad for p in agent.target_critic.parameters())


def test_target_network_starts_equal_and_separate():
    agent = make_agent()
    pairs = list(
        zip(agent.target_critic.parameters(), agent.critic.network.parameters(), strict=True)
    )
    assert all(torch.equal(a, b) for a, b in pairs)
    agent.update(make_batch())
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_targets_are_clipped_from_above_per_task():
    agent = make_agent()
    batch = make_batch()._replace(rewards=torch.full((3, SAMPLES), 1e3))
    bound = torch.tensor([1.0, 5.0, 1e9])  # the last task is not clipped
    q_values = agent.critic.network(agent.encoder(batch.observations), batch.actions).detach()
    expected = (q_values - bound[:, None]).square().sum(0).mean(1)
    free = make_agent().update(batch)
    clipped = agent.update(batch, bound)
    np.testing.assert_allclose(clipped.critic_loss[:2], expected[:2], rtol=1e-4)
    np.testing.assert_allclose(clipped.critic_loss[2], free.critic_loss[2], rtol=1e-5)


# -- multi-task optimisers ----------------------------------------------------------------------


def register_gramian_mean():
    @register("test_gramian_mean")
    class GramianMean(SMTO):
        """The plain mean, by way of per-task gradients."""

        needs = "gramian"

        def weights(self, *, losses=None, gramian=None):
            return gramian.new_full((self.num_tasks,), 1.0 / self.num_tasks)


@pytest.mark.usefixtures("clean_registry")
@pytest.mark.parametrize("temperature", ["shared", "per_task"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_split_losses_train_like_the_joint_loss(temperature, layer_norm):
    register_gramian_mean()
    joint, split = (
        make_agent(smto=name, temperature=temperature, network={"layer_norm": layer_norm})
        for name in ("unitary", "test_gramian_mean")
    )
    start = parameters(joint)
    for one, two in zip(train(joint, 3), train(split, 3), strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_allclose(a.numpy(), b.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert (parameters(joint) - start).abs().max() > 5e-4
    # 1% of three steps of Adam, as above; and so below.
    assert (parameters(joint) - parameters(split)).abs().max() < 1e-5


def test_pcgrad_of_one_task_is_unitary():
    one, two = (make_agent(tasks=1, smto=name) for name in ("unitary", "pcgrad"))
    train(one, 3), train(two, 3)
    assert (parameters(one) - parameters(two)).abs().max() < 1e-5


@pytest.mark.usefixtures("clean_registry")
def test_jacobian_method_trains_and_reports_no_weights():
    @register("test_jacobian_mean")
    class JacobianMean(SMTO):
        """The plain mean of the Jacobian's rows."""

        needs = "jacobian"

        def direction(self, jacobian, losses):
            return jacobian.mean(0)

    one, two = (make_agent(smto=name) for name in ("unitary", "test_jacobian_mean"))
    train(one, 3)
    metrics = train(two, 3)[-1]
    assert (parameters(one) - parameters(two)).abs().max() < 1e-5
    assert metrics.critic_weight.isnan().all()
    assert metrics.actor_weight.isnan().all()


def test_methods_are_chosen_per_loss():
    weights = (0.5, 0.3, 0.2)
    agent = make_agent(critic_smto=LossSmtoConfig("fixed", {"weights": weights}))
    metrics = agent.update(make_batch())
    np.testing.assert_allclose(metrics.critic_weight.numpy(), weights, rtol=1e-6)
    np.testing.assert_allclose(metrics.actor_weight.numpy(), 1 / 3, rtol=1e-6)


def test_fixed_weights_reach_both_networks():
    weights = (0.6, 0.4, 0.0)  # the last task must leave no trace
    agent, other = (
        make_agent(actor_smto=fixed, critic_smto=fixed)
        for fixed in [LossSmtoConfig("fixed", {"weights": weights})] * 2
    )
    batch = make_batch()
    changed = Batch(*(field.clone() for field in batch))
    changed.observations[2] += 1.0
    changed.rewards[2] -= 5.0
    agent.update(batch)
    other.update(changed)
    for name in ("actor", "critic"):
        pairs = zip(
            getattr(agent, name).network.parameters(),
            getattr(other, name).network.parameters(),
            strict=True,
        )
        assert all(torch.allclose(a, b, rtol=0.0, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("smto", ["unitary", "pcgrad"])
def test_metrics_are_detached_and_per_task(smto):
    metrics = make_agent(smto=smto).update(make_batch())
    for name, value in metrics._asdict().items():
        assert value.shape == (3,), name
        assert value.isfinite().all(), name
    assert not [name for name, value in metrics._asdict().items() if value.requires_grad]


# -- optimisers -----------------------------------------------------------------------------------


def test_actor_l2_is_coupled_weight_decay_and_the_critic_has_none():
    agent = make_agent(actor_l2=0.05, actor_lr=1e-2, critic_lr=1e-2)
    copies = {name: copy.deepcopy(getattr(agent, name).network) for name in ("actor", "critic")}
    adams = {
        "actor": torch.optim.Adam(copies["actor"].parameters(), lr=1e-2, weight_decay=0.05),
        "critic": torch.optim.Adam(copies["critic"].parameters(), lr=1e-2),
    }
    for k in range(4):
        agent.update(make_batch(seed=k))
        for name, network in copies.items():
            own = getattr(agent, name).network.parameters()
            for mine, theirs in zip(network.parameters(), own, strict=True):
                mine.grad = theirs.grad.detach().clone()
            adams[name].step()
    for name, network in copies.items():
        own = getattr(agent, name).network.parameters()
        for mine, theirs in zip(network.parameters(), own, strict=True):
            np.testing.assert_allclose(
                theirs.detach().numpy(), mine.detach().numpy(), rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize("smto", ["unitary", "pcgrad"])
def test_max_grad_norm_bounds_the_direction_and_keeps_its_sense(smto):
    free, clipped = make_agent(smto=smto), make_agent(smto=smto, max_grad_norm=1e-2)
    batch = make_batch()
    free.update(batch), clipped.update(batch)
    norm = norm_of_gradients(free.critic.network)
    assert norm > 0.1
    assert norm_of_gradients(clipped.critic.network) == pytest.approx(1e-2, rel=1e-5)
    assert norm_of_gradients(clipped.actor.network) <= 1e-2 * (1 + 1e-5)
    for a, b in zip(
        free.critic.network.parameters(), clipped.critic.network.parameters(), strict=True
    ):
        np.testing.assert_allclose(
            b.grad.numpy(), a.grad.numpy() * 1e-2 / norm, rtol=1e-5, atol=1e-9
        )


def test_a_norm_below_the_bound_is_left_alone():
    free, clipped = make_agent(), make_agent(max_grad_norm=1e6)
    train(free, 2), train(clipped, 2)
    assert torch.equal(parameters(free), parameters(clipped))


# -- temperature ----------------------------------------------------------------------------------


def agent_with_known_spread(log_stds, **settings):
    """The policy's log standard deviation is set per task: hidden layer = task id."""
    tasks = len(log_stds)
    agent = make_agent(tasks=tasks, network={"width": tasks, "depth": 1}, actor_lr=1e-9, **settings)
    with torch.no_grad():
        body = agent.actor.network.body
        first, last = body.hidden[0].linear.weight, body.head.weight
        first.zero_()
        first[0, OBSERVATION:] = torch.eye(tasks)
        last.zero_()
        last[0, :, ACTION:] = torch.tensor(log_stds)[:, None]
    return agent


def test_each_temperature_follows_its_own_tasks_entropy():
    # Target -2: a spread of e^-5 is far below it, a spread of 1 above it.
    agent = agent_with_known_spread([-5.0, 0.0, -5.0], temperature_lr=0.01)
    metrics = train(agent, 5)
    assert agent.temperature.log_alpha.shape == (3,)
    assert (metrics[0].entropy < -2.0).tolist() == [True, False, True]
    alpha = agent.temperature.log_alpha.detach().exp()
    assert (alpha > 1.0).tolist() == [True, False, True]
    np.testing.assert_allclose(metrics[0].alpha.numpy(), 1.0)
    expected = [0.05, -0.05, 0.05]  # five full Adam steps from log 1
    np.testing.assert_allclose(agent.temperature.log_alpha.detach().numpy(), expected, rtol=0.1)


@pytest.mark.parametrize(("log_stds", "up"), [([-5.0, 0.0, -5.0], True), ([0.0, -0.5, 0.0], False)])
def test_shared_temperature_follows_the_mean_entropy(log_stds, up):
    agent = agent_with_known_spread(log_stds, temperature="shared", initial_temperature=0.5)
    metrics = agent.update(make_batch())
    assert agent.temperature.log_alpha.shape == (1,)
    assert bool(metrics.entropy.mean() < -2.0) == up
    expected = 0.5 * (metrics.entropy.mean().item() + 2.0)
    assert agent.temperature.log_alpha.grad.item() == pytest.approx(expected, rel=1e-5)
    assert (agent.temperature.log_alpha.item() > math.log(0.5)) == up
    assert metrics.alpha.tolist() == pytest.approx([0.5] * 3)


def test_target_entropy_scales_with_the_action_dimensions():
    agent = agent_with_known_spread([-4.0] * 3, target_entropy_scale=4.0, temperature_lr=0.01)
    metrics = train(agent, 1)[0]
    assert (metrics.entropy > -8.0).all()
    assert (metrics.entropy < -2.0).all()
    assert (agent.temperature.log_alpha < 0).all()


def test_observation_norm_reaches_the_update():
    plain, scaled = make_agent(), make_agent(network={"observation_norm": True})
    mean, deviation = torch.arange(5.0), torch.full((5,), 4.0)
    scaled.encoder.set_statistics(mean, deviation)
    batch = make_batch()
    moved = batch._replace(
        observations=batch.observations * 4.0 + mean,
        next_observations=batch.next_observations * 4.0 + mean,
    )
    for one, two in zip(plain.update(batch), scaled.update(moved), strict=True):
        np.testing.assert_allclose(one.numpy(), two.numpy(), rtol=1e-4, atol=1e-5)


# -- acting ---------------------------------------------------------------------------------------


def test_task_codes_are_learned_by_the_critic_and_given_to_the_actor():
    learned = {"task_encoding": "learned", "task_dim": 4}
    agent = make_agent(network=learned, tau=0.5)
    table, old = agent.critic.network.table.rows, agent.target_critic.table.rows.clone()
    batch, noise = make_batch(), torch.randn(3, SAMPLES, ACTION)
    agent.encoder.codes.zero_()  # the critic has codes of its own
    inputs = agent.critic_inputs(batch, noise, agent.temperature.alpha(), None)
    found = agent.critic.direction(batch, noise, agent.temperature.alpha(), None)
    loss = losses.critic_loss(agent.critic.network, agent.value, *inputs)[0].mean()
    expected = torch.autograd.grad(loss, list(agent.critic.network.parameters()))
    for got, wanted in zip(found.gradients, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    before = table.detach().clone()
    agent.update(batch)
    assert (table != before).any(-1).all()
    torch.testing.assert_close(agent.target_critic.table.rows, 0.5 * (old + table))
    codes = agent.encoder.codes
    assert torch.equal(codes, torch.nn.functional.normalize(table[0, :, 0], dim=-1))
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(3))

    other = make_agent(network=learned, tau=0.5, seed=2)
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    assert torch.equal(other.encoder.codes, codes)
    train(agent, 2), train(other, 2)
    assert torch.equal(parameters(agent), parameters(other))
    assert torch.equal(agent.act(batch.observations), other.act(batch.observations))


def test_deterministic_action_is_tanh_of_the_mean():
    agent = make_agent()
    observations = torch.randn(3, OBSERVATION, generator=torch.Generator().manual_seed(0))
    actions = agent.act(observations, deterministic=True)
    for task in range(3):
        one_hot = torch.eye(3)[task]
        mean, _ = agent.actor.network(torch.cat([observations[task], one_hot]))
        np.testing.assert_allclose(actions[task].numpy(), np.tanh(mean.detach().numpy()), rtol=1e-5)
    assert torch.equal(actions, agent.act(observations, deterministic=True))


def test_exploration_has_the_policys_distribution():
    agent = agent_with_known_spread([0.0, -1.0, -3.0])
    observations = torch.zeros(3, OBSERVATION)
    actions = torch.stack([agent.act(observations) for _ in range(1500)])
    u = torch.atanh(actions.double().clamp(-1 + 1e-7, 1 - 1e-7))
    expected = np.exp([[0.0], [-1.0], [-3.0]]) * np.ones((1, ACTION))
    # Five standard errors of 1500 draws.
    np.testing.assert_allclose(u.std(0).numpy(), expected, rtol=5 / np.sqrt(2 * 1500))
    assert (u.mean(0).abs().numpy() < 5 * expected / np.sqrt(1500)).all()
    # Tasks and coordinates have noise of their own.
    correlation = np.corrcoef(u.flatten(1).T.numpy()) - np.eye(3 * ACTION)
    assert np.abs(correlation).max() < 5 / np.sqrt(1500)


def test_random_actions_are_uniform():
    agent = make_agent()
    actions = torch.stack([agent.exploration.uniform() for _ in range(2000)]).flatten()
    counts = torch.histc(actions, 10, -1.0, 1.0).numpy()
    assert counts.sum() == actions.numel()
    assert ((counts - 1200) ** 2 / 1200).sum() < 40  # chi-square, 9 degrees of freedom: p < 1e-5


def test_acting_does_not_change_learning():
    quiet, active = make_agent(smto="pcgrad"), make_agent(smto="pcgrad")
    for k in range(3):
        for deterministic in (True, False):
            active.act(torch.randn(3, OBSERVATION), deterministic=deterministic)
        active.exploration.uniform()
        train(quiet, 1, k), train(active, 1, k)
    assert torch.equal(parameters(quiet), parameters(active))


def test_learning_does_not_change_the_exploration_noise():
    quiet, active = (make_agent(smto="pcgrad", actor_lr=0.0) for _ in range(2))
    observations = torch.randn(3, OBSERVATION)
    for k in range(3):
        train(active, 2, k)
        assert torch.equal(quiet.act(observations), active.act(observations))
        assert torch.equal(quiet.exploration.uniform(), active.exploration.uniform())


# -- compilation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["mlp", "residual"])
def test_compiled_equals_eager(body, monkeypatch):
    """All that is traced, which takes seconds, not translated to C++, which takes a minute:
    tests/test_resume.py does that."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    settings = {
        "critic_smto": LossSmtoConfig("fixed", {"weights": [1.0, 2.0, 3.0]}),
        "network": {
            "observation_norm": True,
            "layer_norm": True,
            "task_encoding": "learned",
            "depth": 1,  # a layer takes seconds to compile
        },
        "critic": {"body": body},
        "smto": "famo",  # of the actor: one more forward, after its step
    }
    eager, compiled = make_agent(**settings), make_agent(**settings)
    compiled.compile(make_batch(seed=9))
    assert torch.equal(parameters(eager), parameters(compiled))  # compiling changes nothing
    for k in range(20):
        expected, got = eager.update(make_batch(seed=k)), compiled.update(make_batch(seed=k))
        for a, b in zip(expected, got, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(parameters(eager), parameters(compiled), rtol=1e-3, atol=1e-4)
    assert not torch.equal(parameters(compiled), parameters(make_agent(**settings)))

    # Standing still, on the same batch: what differs from call to call is the noise.
    scale_learning_rates(compiled, 0.0)
    one, two = (compiled.update(make_batch()) for _ in range(2))
    assert torch.equal(one.alpha, two.alpha)
    for quantity in ("critic_loss", "actor_loss", "entropy"):
        assert (getattr(one, quantity) != getattr(two, quantity)).all()


def test_the_actor_rests_in_some_updates():
    agent, other = make_agent(), make_agent()
    train(agent, 1), train(other, 1)
    before = [p.detach().clone() for p in agent.actor.network.parameters()]
    alpha = agent.temperature.log_alpha.detach().clone()
    old = agent.update(make_batch(seed=5), actor=False)
    new = other.update(make_batch(seed=5))
    for a, b in zip(before, agent.actor.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(alpha, agent.temperature.log_alpha)
    pairs = (agent.critic.network, other.critic.network), (agent.target_critic, other.target_critic)
    for one, two in pairs:
        for a, b in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.equal(a, b)
    assert torch.equal(old.critic_loss, new.critic_loss)
    assert not torch.equal(old.actor_loss, new.actor_loss), "it is the last update's"


@pytest.mark.parametrize("smto", ["unitary", "famo", "excess_mtl"])
def test_a_reset_agent_starts_again_from_other_weights(smto):
    agent = make_agent(smto=smto)
    train(agent, 5)
    alpha = agent.temperature.log_alpha.detach().clone()
    places = [p.data_ptr() for p in agent.critic.network.parameters()]
    agent.reset(1)
    assert places == [p.data_ptr() for p in agent.critic.network.parameters()]
    assert torch.equal(alpha, agent.temperature.log_alpha)
    fresh = make_agent(seed=1 + 1_000_003, smto=smto)
    for mine, its in (
        (agent.actor.network, fresh.actor.network),
        (agent.critic.network, fresh.critic.network),
        (agent.target_critic, fresh.critic.network),
    ):
        for a, b in zip(mine.parameters(), its.parameters(), strict=True):
            assert torch.equal(a, b)
    # One step from there, without moments: as far as the first step of a new optimiser.
    fresh.generator.set_state(agent.generator.get_state())
    with torch.no_grad():
        fresh.temperature.log_alpha.copy_(agent.temperature.log_alpha)
    agent.update(make_batch(seed=3)), fresh.update(make_batch(seed=3))
    for a, b in zip(
        agent.critic.network.parameters(), fresh.critic.network.parameters(), strict=True
    ):
        assert torch.equal(a, b)


def test_any_number_of_agents_may_be_compiled(monkeypatch):
    """PyTorch stops after some variants of a function, by default eight."""
    traced = partial(torch.compile, backend="eager")  # what it traces it need not translate
    monkeypatch.setattr(torch, "compile", traced)
    with torch._dynamo.config.patch(recompile_limit=1):
        for width in (3, 4):
            agent = make_agent(network={"width": width, "depth": 1})
            agent.compile(make_batch())
            agent.update(make_batch())


def test_learning_rates_scale():
    still, moving = make_agent(), make_agent()
    scale_learning_rates(still, 0.0)
    before = parameters(still)
    train(still, 2)
    for name in ("actor", "critic"):
        pair = zip(
            getattr(still, name).network.parameters(),
            getattr(moving, name).network.parameters(),
            strict=True,
        )
        assert all(torch.equal(a, b) for a, b in pair)
    assert torch.equal(still.temperature.log_alpha, moving.temperature.log_alpha)
    scale_learning_rates(still, 1.0)
    train(still, 1)
    assert not torch.equal(parameters(still), before)


# -- reproducibility ------------------------------------------------------------------------------


@pytest.mark.parametrize("smto", ["unitary", "pcgrad"])
def test_equal_seeds_are_bitwise_equal(smto):
    torch.manual_seed(0)
    one = make_agent(smto=smto)
    torch.manual_seed(1)  # the global stream must not matter
    two = make_agent(smto=smto)
    train(one, 5)
    torch.manual_seed(2)
    train(two, 5)
    assert torch.equal(parameters(one), parameters(two))
    assert torch.equal(one.exploration.uniform(), two.exploration.uniform())


def test_creating_and_updating_leave_the_global_random_stream_alone():
    before = torch.get_rng_state()
    train(make_agent(smto="pcgrad"), 1)
    assert torch.equal(before, torch.get_rng_state())


def test_different_seeds_differ():
    one, two = make_agent(seed=1), make_agent(seed=2)
    assert not torch.equal(parameters(one), parameters(two))
    two.load_state_dict(one.state_dict() | {"generator": two.generator.get_state()})
    assert torch.equal(parameters(one), parameters(two))
    train(one, 1), train(two, 1)  # equal networks, other noise
    assert not torch.equal(parameters(one), parameters(two))
    assert not torch.equal(
        make_agent(seed=1).exploration.uniform(), make_agent(seed=2).exploration.uniform()
    )


@pytest.mark.parametrize("smto", ["unitary", "pcgrad"])
def test_restored_agent_continues_bitwise(smto, tmp_path):
    settings = {"smto": smto, "actor_l2": 1e-3, "network": {"observation_norm": True}}
    original, restored = make_agent(**settings), make_agent(seed=77, **settings)
    original.encoder.set_statistics(torch.arange(5.0), torch.full((5,), 2.0))
    train(original, 3)
    original.exploration.uniform()
    torch.save(original.state_dict(), tmp_path / "agent.pt")
    train(original, 3, first=3)
    restored.load_state_dict(torch.load(tmp_path / "agent.pt"))
    train(restored, 3, first=3)
    assert torch.equal(parameters(original), parameters(restored))
    observations = torch.randn(3, OBSERVATION)
    assert torch.equal(original.act(observations), restored.act(observations))


def options_for(name, tasks):
    """Options with which every method has as much state as it can have."""
    options = {"weights": [1.0] * tasks} if name == "fixed" else {}
    return options | ({"update_every": 2} if "update_every" in options_of(name) else {})


@pytest.mark.parametrize("name", available())
def test_every_method_resumes_bitwise(name, tmp_path):
    """Through the checkpoint file; the temperature has the method too."""
    smto = SmtoConfig(name, options_for(name, 3))
    temperature = TemperatureSmtoConfig(name, smto.options)
    original, restored = (
        make_agent(smto=smto, temperature_smto=temperature, seed=seed) for seed in (1, 77)
    )
    train(original, 3)
    checkpoint.save(tmp_path / "agent.pt", original.state_dict())
    expected = train(original, 3, first=3)
    restored.load_state_dict(checkpoint.load(tmp_path / "agent.pt"))
    got = train(restored, 3, first=3)
    assert parameters(original).isfinite().all()
    assert torch.equal(parameters(original), parameters(restored))
    for one, two in zip(expected, got, strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_losses_have_methods_and_streams_of_their_own():
    agent = make_agent(smto="rlw_normal", temperature_smto=TemperatureSmtoConfig("rlw_normal"))
    smtos = (agent.critic.smto, agent.actor.smto, agent.temperature.smto)
    draws = [smto.weights(losses=torch.ones(3)) for smto in smtos]
    assert all(not torch.equal(draws[i], draws[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_runs_of_neighbouring_seeds_share_no_stream():
    uses = ("exploration", "updates", *(f"{loss}_smto" for loss in LOSSES))
    seeds = [stream_seed(seed, use) for seed in range(200) for use in uses]
    assert len({*seeds, *range(200)}) == len(seeds) + 200, "of weights: the run's seed itself"
    agents = [
        make_agent(smto="rlw_normal", seed=s, temperature_smto=TemperatureSmtoConfig("rlw_normal"))
        for s in range(3)
    ]
    streams = [s for a in agents for s in (*a.generators, a.exploration.generator)]
    draws = {tuple(torch.randn(4, generator=stream).tolist()) for stream in streams}
    assert len(draws) == len(streams) == 3 * 5


def test_autoscale_is_told_how_many_updates_there_are():
    config = Config(
        env=EnvConfig(tasks=TOY[:3], horizon=10),
        train=TrainConfig(total_steps=3 * 100, warmup_steps=3 * 20),
        network=NetworkConfig(width=16, depth=2),
        agent=AgentConfig(
            smto=SmtoConfig("autoscale", {"windows": 4}), updates_per_step=0.5, warmup_updates=10
        ),
    )
    agent = Agent(config, OBSERVATION, ACTION, CPU)
    assert config.total_updates == 10 + 40
    needs = []
    for k in range(config.total_updates):
        needs.append(agent.critic.smto.needs)
        agent.update(make_batch(3, k))
    explored = needs.count("gramian")
    assert needs == ["gramian"] * explored + ["losses"] * (50 - explored)
    assert 0.15 * 50 <= explored <= 0.25 * 50


@pytest.mark.parametrize(("temperature", "frozen"), [("shared", True), ("per_task", False)])
def test_pcgrad_freezes_a_shared_temperature_whose_tasks_conflict(temperature, frozen):
    """Opposed scalars project to zero; temperatures of their own have nothing to project."""
    agent = agent_with_known_spread(
        [-5.0, 0.5],
        temperature=temperature,
        temperature_smto=TemperatureSmtoConfig("pcgrad"),
    )
    plain = agent_with_known_spread([-5.0, 0.5], temperature=temperature)
    for one in (agent, plain):
        one.update(make_batch(2))
    assert plain.temperature.log_alpha.grad.abs().min() > 0.01
    if frozen:
        assert agent.temperature.log_alpha.grad.abs().max() < 1e-6
    else:
        np.testing.assert_allclose(
            agent.temperature.log_alpha.grad, plain.temperature.log_alpha.grad, rtol=1e-6
        )


def test_a_network_that_takes_the_general_way_is_named():
    agent = make_agent()
    agent.actor.is_recorded = False
    (warning,) = notes(Config(), agent)
    assert "actor" in warning
    assert "general" in warning


def test_methods_that_want_positive_losses_say_so_at_the_start():
    def said(**settings):
        config = Config(agent=AgentConfig(**settings))
        return notes(config, make_agent(**settings))

    assert said(smto=SmtoConfig("pcgrad")) == []
    (warning,) = said(smto=SmtoConfig("famo"))
    assert "famo" in warning
    assert "lower bound" in warning
    assert said(critic_smto=LossSmtoConfig("famo")) == []


@pytest.mark.parametrize(
    ("critic", "way", "warmup", "said"),
    [
        ("categorical", "sample", 10_000, "categorical with replay.reward_normalization = sample"),
        ("categorical", "return_std", 10_000, None),
        ("popart", "none", 10_000, "popart normalises the critics' loss alone"),
        ("popart", "sample", 10_000, None),
        ("scalar", "return_range", 9_980, "counts its rewards as 0"),
        ("scalar", "return_range", 9_981, None),  # a vector step has 20
        ("scalar", "sample", 20, None),
    ],
)
def test_a_run_says_so_when_critics_and_reward_scale_do_not_fit(critic, way, warmup, said):
    config = Config(
        critic=CriticConfig(kind=critic),
        replay=ReplayConfig(reward_normalization=way),
        train=TrainConfig(warmup_steps=warmup, envs_per_task=2),
    )
    found = of_rewards(config)
    assert len(found) == (said is not None)
    assert all(said in line for line in found)


# -- GPU ----------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("smto", ["unitary", "pcgrad"])
def test_update_on_cuda_is_close_to_the_cpu(smto):
    # Two tasks: PCGrad's order, drawn on the device, then does not matter.
    cuda = torch.device("cuda")
    here, there = (make_agent(tasks=2, smto=smto, device=device) for device in (CPU, cuda))
    assert torch.equal(parameters(here), parameters(there).cpu())
    batch = make_batch(2)
    noise = torch.randn(2, SAMPLES, ACTION, generator=torch.Generator().manual_seed(0))
    directions = []
    for agent, device in ((here, CPU), (there, cuda)):
        there_batch = Batch(*(field.to(device) for field in batch))
        alpha = torch.ones(2, device=device)
        critic = agent.critic.direction(there_batch, noise.to(device), alpha, None)
        actor = agent.actor.direction(there_batch.observations, noise.to(device), alpha)
        for combined in (critic, actor):
            direction = torch.cat([g.detach().flatten() for g in combined.gradients]).cpu()
            directions.append((direction, combined.losses.cpu()))
    for k in range(2):
        (direction, losses), (direction_there, losses_there) = directions[k], directions[k + 2]
        error = (direction - direction_there).abs().max()
        assert error <= 1e-4 * direction.abs().max()
        np.testing.assert_allclose(losses_there.numpy(), losses.numpy(), rtol=1e-4, atol=1e-5)
    for k in range(3):
        metrics = there.update(make_batch(2, k, cuda))
    assert parameters(there).isfinite().all()
    assert all(value.isfinite().all() for value in metrics)
    there.load_state_dict(there.state_dict())
