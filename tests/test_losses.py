import numpy as np
import pytest
import torch

from mtrl import losses

RNG = np.random.default_rng(0)
TASKS, SAMPLES, STATE, ACTION = 3, 5, 4, 2
MEAN_WEIGHT = RNG.normal(0.0, 0.7, (STATE, ACTION))
SPREAD_WEIGHT = RNG.normal(0.0, 0.3, (STATE, ACTION))
VALUE_WEIGHTS = RNG.normal(0.0, 1.0, (2, STATE + ACTION))
TARGET_WEIGHTS = RNG.normal(0.0, 1.0, (2, STATE + ACTION))
STATES, NEXT_STATES = RNG.normal(size=(2, TASKS, SAMPLES, STATE))
NOISE = RNG.normal(size=(TASKS, SAMPLES, ACTION))
ACTIONS = RNG.uniform(-1.0, 1.0, (TASKS, SAMPLES, ACTION))
REWARDS = RNG.normal(size=(TASKS, SAMPLES))
ALPHA = np.array([0.1, 1.0, 3.0])
GAMMA = 0.9


def tensor(array):
    return torch.tensor(array, dtype=torch.float64)


def actor(states):
    """A linear policy: the mean and the spread both depend on the state."""
    return states @ tensor(MEAN_WEIGHT), states @ tensor(SPREAD_WEIGHT)


def linear_critic(weights):
    def values(states, actions):
        pairs = torch.cat([states, actions], dim=-1)
        return torch.stack([pairs @ tensor(w) for w in weights])

    return values


def plain_policy(state, noise):
    """One state -> (action, log-probability), straight from the definition."""
    mean, deviation = state @ MEAN_WEIGHT, np.exp(state @ SPREAD_WEIGHT)
    u = mean + deviation * noise
    density = np.exp(-0.5 * noise**2) / (deviation * np.sqrt(2 * np.pi))
    return np.tanh(u), float(np.log(density / (1.0 - np.tanh(u) ** 2)).sum())


def plain_value(weights, state, action):
    return [float(w @ np.concatenate([state, action])) for w in weights]


def bellman(terminated, alpha=ALPHA, noise=NOISE):
    return losses.bellman_target(
        actor,
        linear_critic(TARGET_WEIGHTS),
        tensor(NEXT_STATES),
        tensor(REWARDS),
        tensor(terminated),
        tensor(noise),
        tensor(alpha)[:, None],
        GAMMA,
    ).numpy()


def test_bellman_target():
    terminated = (RNG.random((TASKS, SAMPLES)) < 0.4).astype(float)
    got = bellman(terminated)
    assert 0 < terminated.sum() < terminated.size
    for t in range(TASKS):
        for k in range(SAMPLES):
            # Action and log-probability belong to the successor, not to the state.
            action, log_prob = plain_policy(NEXT_STATES[t, k], NOISE[t, k])
            value = min(plain_value(TARGET_WEIGHTS, NEXT_STATES[t, k], action))
            future = 0.0 if terminated[t, k] else GAMMA * (value - ALPHA[t] * log_prob)
            assert got[t, k] == pytest.approx(REWARDS[t, k] + future, rel=1e-9)


def test_termination_stops_the_bootstrap_and_truncation_does_not():
    np.testing.assert_array_equal(bellman(np.ones((TASKS, SAMPLES))), REWARDS)
    # Truncation never reaches the loss: a truncated transition has terminated = 0.
    assert (np.abs(bellman(np.zeros((TASKS, SAMPLES))) - REWARDS) > 1e-6).all()


def test_critic_loss():
    targets = RNG.normal(size=(TASKS, SAMPLES))
    got = losses.critic_loss(
        linear_critic(VALUE_WEIGHTS), tensor(STATES), tensor(ACTIONS), tensor(targets)
    )
    assert got.shape == (TASKS,)
    for t in range(TASKS):
        errors = [
            sum((q - targets[t, k]) ** 2 for q in plain_value(VALUE_WEIGHTS, s, a))
            for k, (s, a) in enumerate(zip(STATES[t], ACTIONS[t], strict=True))
        ]
        assert got[t].item() == pytest.approx(np.mean(errors), rel=1e-9)


def test_actor_loss():
    got, log_probs = losses.actor_loss(
        actor,
        linear_critic(VALUE_WEIGHTS),
        tensor(STATES),
        tensor(NOISE),
        tensor(ALPHA)[:, None],
    )
    for t in range(TASKS):
        terms, entropies = [], []
        for state, noise in zip(STATES[t], NOISE[t], strict=True):
            action, log_prob = plain_policy(state, noise)
            terms.append(ALPHA[t] * log_prob - min(plain_value(VALUE_WEIGHTS, state, action)))
            entropies.append(log_prob)
        assert got[t].item() == pytest.approx(np.mean(terms), rel=1e-9)
        assert log_probs[t].item() == pytest.approx(np.mean(entropies), rel=1e-9)


def test_actor_loss_gradient_equals_finite_differences():
    shift = torch.zeros(ACTION, dtype=torch.float64, requires_grad=True)

    def total(offset):
        def shifted(states):
            mean, log_std = actor(states)
            return mean + offset, log_std + 0.5 * offset

        critic = linear_critic(VALUE_WEIGHTS)
        alpha = tensor(ALPHA)[:, None]
        return losses.actor_loss(shifted, critic, tensor(STATES), tensor(NOISE), alpha)[0].sum()

    (gradient,) = torch.autograd.grad(total(shift), [shift])
    for d in range(ACTION):
        step = torch.zeros(ACTION, dtype=torch.float64)
        step[d] = 1e-6
        numeric = (total(step) - total(-step)).item() / 2e-6
        assert gradient[d].item() == pytest.approx(numeric, rel=1e-6, abs=1e-8)


def test_losses_of_one_task_equal_their_row():
    critic = linear_critic(VALUE_WEIGHTS)
    targets = tensor(REWARDS)
    whole_critic = losses.critic_loss(critic, tensor(STATES), tensor(ACTIONS), targets)
    whole_actor, _ = losses.actor_loss(
        actor, critic, tensor(STATES), tensor(NOISE), tensor(ALPHA)[:, None]
    )
    for t in range(TASKS):
        one_critic = losses.critic_loss(critic, tensor(STATES[t]), tensor(ACTIONS[t]), targets[t])
        one_actor, _ = losses.actor_loss(
            actor, critic, tensor(STATES[t]), tensor(NOISE[t]), tensor(ALPHA[t : t + 1])
        )
        assert one_critic.shape == one_actor.shape == ()
        assert one_critic.item() == pytest.approx(whole_critic[t].item(), rel=1e-12)
        assert one_actor.item() == pytest.approx(whole_actor[t].item(), rel=1e-12)


@pytest.mark.parametrize("log_alpha", [[0.5, -1.0, 0.0], [0.7]])
def test_temperature_loss_and_its_gradient(log_alpha):
    log_prob, target_entropy = np.array([1.0, 3.0, -4.0]), -2.0
    parameter = tensor(log_alpha).requires_grad_()
    policy_output = tensor(log_prob).requires_grad_()
    loss = losses.temperature_loss(parameter, policy_output, target_entropy)
    alpha = np.exp(np.broadcast_to(log_alpha, 3))
    expected = -alpha * (log_prob + target_entropy)
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-12)
    loss.sum().backward()
    # alpha = exp(log_alpha) is its own derivative; the policy gets nothing from this loss.
    per_entry = expected if len(log_alpha) == 3 else [expected.sum()]
    np.testing.assert_allclose(parameter.grad.numpy(), per_entry, rtol=1e-12)
    assert policy_output.grad is None
