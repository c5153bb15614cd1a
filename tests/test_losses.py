import numpy as np
import pytest
import torch

from mtrl import losses
from mtrl.networks import values

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
SCALAR = values.ScalarValue("min")


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


def bellman(terminated, alpha=ALPHA, noise=NOISE, ensemble="min"):
    return losses.bellman_target(
        actor,
        linear_critic(TARGET_WEIGHTS),
        values.ScalarValue(ensemble),
        tensor(NEXT_STATES),
        tensor(REWARDS),
        tensor(GAMMA * (1.0 - terminated)),
        tensor(noise),
        tensor(alpha)[:, None],
    ).numpy()


@pytest.mark.parametrize(("ensemble", "combine"), [("min", min), ("mean", np.mean)])
def test_bellman_target(ensemble, combine):
    terminated = (RNG.random((TASKS, SAMPLES)) < 0.4).astype(float)
    got = bellman(terminated, ensemble=ensemble)
    assert 0 < terminated.sum() < terminated.size
    for t in range(TASKS):
        for k in range(SAMPLES):
            # Action and log-probability belong to the successor, not to the state.
            action, log_prob = plain_policy(NEXT_STATES[t, k], NOISE[t, k])
            value = combine(plain_value(TARGET_WEIGHTS, NEXT_STATES[t, k], action))
            future = 0.0 if terminated[t, k] else GAMMA * (value - ALPHA[t] * log_prob)
            assert got[t, k] == pytest.approx(REWARDS[t, k] + future, rel=1e-9)


def test_termination_stops_the_bootstrap_and_truncation_does_not():
    np.testing.assert_array_equal(bellman(np.ones((TASKS, SAMPLES))), REWARDS)
    # Truncation never reaches the loss: a truncated transition has terminated = 0.
    assert (np.abs(bellman(np.zeros((TASKS, SAMPLES))) - REWARDS) > 1e-6).all()


def test_critic_loss():
    targets = RNG.normal(size=(TASKS, SAMPLES))
    got, _ = losses.critic_loss(
        linear_critic(VALUE_WEIGHTS), SCALAR, tensor(STATES), tensor(ACTIONS), tensor(targets)
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
        SCALAR,
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
        return losses.actor_loss(shifted, critic, SCALAR, tensor(STATES), tensor(NOISE), alpha)[
            0
        ].sum()

    (gradient,) = torch.autograd.grad(total(shift), [shift])
    for d in range(ACTION):
        step = torch.zeros(ACTION, dtype=torch.float64)
        step[d] = 1e-6
        numeric = (total(step) - total(-step)).item() / 2e-6
        assert gradient[d].item() == pytest.approx(numeric, rel=1e-6, abs=1e-8)


# -- categorical critics --------------------------------------------------------------------------

BINS, SUPPORT, DELTA = 7, 3.0, 1.0
ATOMS = np.linspace(-SUPPORT, SUPPORT, BINS)


def categorical(ensemble, bins=BINS):
    return values.CategoricalValue(bins, SUPPORT, torch.device("cpu"), ensemble)


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def plain_projection(probabilities, moved):
    """Bellemare et al. 2017, algorithm 1: every atom's mass to its two neighbours."""
    projected = np.zeros(BINS)
    for p, z in zip(probabilities, np.clip(moved, -SUPPORT, SUPPORT), strict=True):
        position = (z + SUPPORT) / DELTA
        low, high = int(np.floor(position)), int(np.ceil(position))
        if low == high:
            projected[low] += p
        else:
            projected[low] += p * (high - position)
            projected[high] += p * (position - low)
    return projected


@pytest.mark.parametrize("ensemble", ["min", "mean"])
@pytest.mark.parametrize("bounded", [False, True])
def test_categorical_target_equals_a_double_loop(ensemble, bounded):
    rng = np.random.default_rng(1)
    logits = 3.0 * rng.normal(size=(2, TASKS, SAMPLES, BINS))
    discounts = rng.choice([0.0, 0.9**3, 0.9, 1.0], (TASKS, SAMPLES))  # 0: terminated
    rewards = rng.choice([-10.0, -1.0, 0.0, 0.3, 1.0, 10.0], (TASKS, SAMPLES))
    bonus, bound = rng.normal(size=(2, TASKS, SAMPLES))
    got = categorical(ensemble).target(
        *(torch.tensor(x, dtype=torch.float32) for x in (logits, rewards, discounts, bonus)),
        torch.tensor(bound, dtype=torch.float32) if bounded else None,
    )
    members = softmax(logits)
    for t in range(TASKS):
        for k in range(SAMPLES):
            each = members[:, t, k]
            p = each.mean(0) if ensemble == "mean" else min(each, key=lambda q: q @ ATOMS)
            moved = rewards[t, k] + discounts[t, k] * (ATOMS - bonus[t, k])
            moved = np.minimum(moved, bound[t, k]) if bounded else moved
            # Positions up to 20 carry a rounding error of 20 eps, which moves that much mass.
            np.testing.assert_allclose(got[t, k].numpy(), plain_projection(p, moved), atol=2e-5)


def test_projection_keeps_mass_and_mean():
    """Where nothing is clipped: the mean of the target is r + discount (E Z - bonus)."""
    rng = np.random.default_rng(2)
    logits = torch.tensor(rng.normal(size=(1, 200, 51)), dtype=torch.float32)
    value = categorical("mean", bins=51)
    rewards, bonus = torch.full((200,), 0.4), torch.full((200,), -0.2)
    target = value.target(logits, rewards, torch.full((200,), 0.7), bonus)
    torch.testing.assert_close(target.sum(-1), torch.ones(200), rtol=0, atol=1e-4)
    expected = rewards + 0.7 * (value.value(logits) - bonus)
    torch.testing.assert_close(target @ value.atoms, expected, rtol=0, atol=1e-3)


def test_categorical_loss_and_value():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(2, SAMPLES, BINS)) * np.array([1.0, 60.0])[:, None, None]
    target = softmax(rng.normal(size=(SAMPLES, BINS)))
    outputs, y = (torch.tensor(x, dtype=torch.float32) for x in (logits, target))
    got = categorical("mean").loss(outputs, y)
    log = logits - logits.max(-1, keepdims=True)
    log -= np.log(np.exp(log).sum(-1, keepdims=True))
    np.testing.assert_allclose(got.numpy(), -(target * log).sum(-1).sum(0), rtol=1e-5)
    means = softmax(logits) @ ATOMS
    np.testing.assert_allclose(categorical("mean").value(outputs), means.mean(0), atol=1e-5)
    np.testing.assert_allclose(categorical("min").value(outputs), means.min(0), atol=1e-5)


def test_categorical_critic_learns_the_value_that_a_scalar_critic_learns():
    """A cycle of three states with rewards 1, 0, -0.5 and gamma 0.6, learned by fixed-point steps:
    the expected value obeys the same Bellman equation as a number does."""
    rewards, gamma = torch.tensor([1.0, 0.0, -0.5]), 0.6
    exact = np.linalg.solve(np.eye(3) - gamma * np.roll(np.eye(3), 1, axis=1), rewards.numpy())
    value = categorical("mean", bins=51)
    logits = torch.zeros(1, 3, 51)
    for _ in range(60):
        successors = logits[:, [1, 2, 0]]
        target = value.target(successors, rewards, torch.full((3,), gamma), torch.zeros(3))
        logits = target.clamp(min=1e-30).log()[None]  # minimises the cross-entropy exactly
    np.testing.assert_allclose(value.value(logits).numpy(), exact, atol=1e-3)


def test_losses_of_one_task_equal_their_row():
    critic = linear_critic(VALUE_WEIGHTS)
    targets = tensor(REWARDS)
    whole_critic, _ = losses.critic_loss(critic, SCALAR, tensor(STATES), tensor(ACTIONS), targets)
    whole_actor, _ = losses.actor_loss(
        actor, critic, SCALAR, tensor(STATES), tensor(NOISE), tensor(ALPHA)[:, None]
    )
    for t in range(TASKS):
        one_critic, _ = losses.critic_loss(
            critic, SCALAR, tensor(STATES[t]), tensor(ACTIONS[t]), targets[t]
        )
        one_actor, _ = losses.actor_loss(
            actor, critic, SCALAR, tensor(STATES[t]), tensor(NOISE[t]), tensor(ALPHA[t : t + 1])
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
