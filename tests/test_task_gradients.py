import numpy as np
import pytest
import torch

from mtrl import losses
from mtrl.agent import Agent
from mtrl.config import AgentConfig, Config, EnvConfig, NetworkConfig, SmtoConfig
from mtrl.smto import SMTO, create
from mtrl.task_gradients import combined_gradients, jacobian

TASKS, SAMPLES, OBSERVATION, ACTION = 4, 6, 5, 2


def make_agent(layer_norm=False, encoding="one_hot", smto="unitary"):
    config = Config(
        env=EnvConfig(benchmark="toy"),
        network=NetworkConfig(width=16, depth=2, layer_norm=layer_norm, task_encoding=encoding),
        agent=AgentConfig(smto=SmtoConfig(smto)),
    )
    agent = Agent(config, OBSERVATION, ACTION, torch.device("cpu"))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():  # zero biases would hide a gradient in the wrong place
        for p in [*agent.actor.parameters(), *agent.critic.parameters()]:
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return agent


def problem(agent, which):
    """-> (task loss, network, inputs [task, ...]) of the real agent."""
    generator = torch.Generator().manual_seed(3)
    observations = torch.randn(TASKS, SAMPLES, OBSERVATION, generator=generator)
    inputs = agent.encoder(observations)
    noise = torch.randn(TASKS, SAMPLES, ACTION, generator=generator)
    scale = torch.tensor([0.1, 1.0, 3.0, 10.0])[:, None]
    if which == "actor":

        def actor_loss(actor, *args):
            return losses.actor_loss(actor, agent.critic, *args)

        return actor_loss, agent.actor, (inputs, noise, 0.2 * scale)

    def critic_loss(critic, *args):
        loss = losses.critic_loss(critic, *args)
        return loss, 2.0 * loss

    targets = scale * torch.randn(TASKS, SAMPLES, generator=generator)
    return critic_loss, agent.critic, (inputs, noise.tanh(), targets)


def separate_backwards(task_loss, network, inputs):
    """One ordinary backward per task, on that task's rows alone -> (J, losses, auxiliary)."""
    rows, values, extras = [], [], []
    for t in range(TASKS):
        network.zero_grad()
        loss, extra = task_loss(network, *(value[t] for value in inputs))
        loss.backward()
        rows.append(torch.cat([p.grad.flatten() for p in network.parameters()]).clone())
        values.append(loss.item())
        extras.append(extra.item())
    network.zero_grad()
    return torch.stack(rows).numpy(), values, extras


def flat_tensor(gradients):
    return torch.cat([g.flatten() for g in gradients])


def flat(gradients):
    return flat_tensor(gradients).detach().numpy()


def assert_close(got, expected, relative=1e-5):
    """Close relative to the largest entry of each row: small entries are float32 sums."""
    largest = np.abs(expected).max(-1, keepdims=True)
    assert largest.min() > 0
    assert (np.abs(got - expected) <= relative * largest).all()


every_problem = pytest.mark.parametrize("which", ["critic", "actor"])


@every_problem
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("encoding", ["one_hot", "none"])
def test_jacobian_rows_equal_separate_backwards(which, layer_norm, encoding):
    task_loss, network, inputs = problem(make_agent(layer_norm, encoding), which)
    expected, values, extras = separate_backwards(task_loss, network, inputs)
    matrix, task_losses, auxiliary = jacobian(task_loss, network, inputs)
    assert_close(matrix.detach().numpy(), expected)
    np.testing.assert_allclose(task_losses.numpy(), values, rtol=1e-5)
    np.testing.assert_allclose(auxiliary.numpy(), extras, rtol=1e-5)


@every_problem
@pytest.mark.parametrize("layer_norm", [False, True])
def test_mean_of_the_rows_is_the_joint_gradient(which, layer_norm):
    task_loss, network, inputs = problem(make_agent(layer_norm), which)
    matrix, task_losses, _ = jacobian(task_loss, network, inputs)
    joint = combined_gradients(create("unitary", TASKS), task_loss, network, inputs)
    assert_close(matrix.detach().mean(0).numpy(), flat(joint.gradients))
    np.testing.assert_allclose(joint.losses.numpy(), task_losses.numpy(), rtol=1e-5)


@every_problem
def test_weights_of_losses_weigh_the_separate_gradients(which):
    task_loss, network, inputs = problem(make_agent(), which)
    rows, values, extras = separate_backwards(task_loss, network, inputs)
    weights = np.array([0.1, 0.0, 0.3, 0.6])
    smto = create("fixed", TASKS, weights=tuple(weights))
    combined = combined_gradients(smto, task_loss, network, inputs)
    assert_close(flat(combined.gradients), weights @ rows)
    np.testing.assert_allclose(combined.weights.numpy(), weights, rtol=1e-6)
    np.testing.assert_allclose(combined.losses.numpy(), values, rtol=1e-5)
    np.testing.assert_allclose(combined.auxiliary.numpy(), extras, rtol=1e-5)


class InverseNorm(SMTO):
    """Weights 1 / |g_i|: needs the diagonal of the Gramian."""

    needs = "gramian"

    def weights(self, *, losses=None, gramian=None):
        return gramian.diagonal().rsqrt()


@every_problem
def test_gramian_method_gets_the_inner_products_of_the_gradients(which):
    task_loss, network, inputs = problem(make_agent(), which)
    rows, *_ = separate_backwards(task_loss, network, inputs)
    combined = combined_gradients(InverseNorm(TASKS), task_loss, network, inputs)
    lengths = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(combined.weights.detach().numpy(), 1 / lengths, rtol=1e-4)
    assert_close(flat(combined.gradients), (rows / lengths[:, None]).sum(0), 1e-4)


class Majority(SMTO):
    """Per coordinate, the sum of the entries that have the sign of the total."""

    needs = "jacobian"

    def combine(self, jacobian, losses):
        agree = jacobian.sign() == jacobian.sum(0).sign()
        return (jacobian * agree).sum(0) * losses.max()


@every_problem
def test_jacobian_method(which):
    task_loss, network, inputs = problem(make_agent(), which)
    rows, values, _ = separate_backwards(task_loss, network, inputs)
    combined = combined_gradients(Majority(TASKS), task_loss, network, inputs)
    agree = np.sign(rows) == np.sign(rows.sum(0))
    # A coordinate whose total is zero up to rounding may fall either way.
    clear = np.abs(rows.sum(0)) > 1e-5 * np.abs(rows).max()
    expected = (rows * agree).sum(0) * max(values)
    assert clear.mean() > 0.5
    assert_close(flat(combined.gradients)[clear], expected[clear])
    assert combined.weights is None


@every_problem
def test_gradients_have_the_shapes_of_the_parameters(which):
    task_loss, network, inputs = problem(make_agent(), which)
    for smto in (create("unitary", TASKS), create("pcgrad", TASKS), Majority(TASKS)):
        combined = combined_gradients(smto, task_loss, network, inputs)
        for parameter, gradient in zip(network.parameters(), combined.gradients, strict=True):
            assert gradient.shape == parameter.shape


@every_problem
@pytest.mark.parametrize(
    "smto",
    [create("unitary", TASKS), create("pcgrad", TASKS), Majority(TASKS)],
    ids=["losses", "gramian", "jacobian"],
)
def test_nothing_returned_holds_an_autograd_graph(which, smto):
    # A graph would be built at every update, kept alive in p.grad, and grow without end in a
    # method that averages Gramians or weights over time.
    task_loss, network, inputs = problem(make_agent(), which)
    combined = combined_gradients(smto, task_loss, network, inputs)
    held = {
        "losses": combined.losses,
        "auxiliary": combined.auxiliary,
        "weights": combined.weights,
        "gradients": flat_tensor(combined.gradients),
    }
    assert not [name for name, value in held.items() if value is not None and value.requires_grad]


class Alternating(SMTO):
    """Plain mean, asking for losses and the Gramian in turn."""

    def weights(self, *, losses=None, gramian=None):
        given = losses if self.needs == "losses" else gramian
        self.needs = "gramian" if self.needs == "losses" else "losses"
        return given.new_full((self.num_tasks,), 1.0 / self.num_tasks)


def test_needs_may_change_while_training():
    task_loss, network, inputs = problem(make_agent(), "critic")
    rows, *_ = separate_backwards(task_loss, network, inputs)
    smto, seen = Alternating(TASKS), []
    for _ in range(3):
        seen.append(smto.needs)
        combined = combined_gradients(smto, task_loss, network, inputs)
        assert_close(flat(combined.gradients), rows.mean(0))
    assert seen == ["losses", "gramian", "losses"]


@pytest.mark.parametrize("smto", ["unitary", "pcgrad"])
def test_only_the_named_network_gets_gradients(smto):
    agent = make_agent(smto=smto)
    observations = torch.randn(TASKS, SAMPLES, OBSERVATION)
    noise = torch.randn(TASKS, SAMPLES, ACTION)
    combined = agent.actor_gradients(observations, noise, torch.ones(TASKS))
    assert len(combined.gradients) == len(list(agent.actor.parameters()))
    assert all(p.grad is None for p in [*agent.critic.parameters(), agent.log_alpha])


def test_each_row_uses_the_noise_of_its_own_task():
    agent = make_agent()
    task_loss, _, inputs = problem(agent, "actor")
    noise = inputs[1].clone()
    noise[0] += 1.0
    moved = (inputs[0], noise, inputs[2])
    before, *_ = jacobian(task_loss, agent.actor, inputs)
    after, *_ = jacobian(task_loss, agent.actor, moved)
    assert torch.equal(before[1:], after[1:])
    assert not torch.allclose(before[0], after[0])
    again, *_ = jacobian(task_loss, agent.actor, inputs)
    assert torch.equal(before, again)
