import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from mtrl.networks.actor import Actor, sample_action
from mtrl.networks.bodies import MLP, Residual
from mtrl.networks.critic import Critic
from mtrl.networks.encoder import InputEncoder
from mtrl.networks.shape import Shape


def randomise(module, seed=0):
    """Random float64 parameters: zero biases would hide a misplaced bias."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
    return module


def plain_network(mlp, copy, x, layer_norm):
    """One copy in NumPy: x [rows, input] -> [rows, output]."""
    for layer in mlp.hidden:
        x = x @ layer.linear.weight[copy].detach().numpy()
        if layer_norm:
            x = normalised(x)
        bias = layer.norm.bias if layer_norm else layer.linear.bias
        x = np.maximum(x + bias[copy, 0].detach().numpy(), 0.0)
    return affine(mlp.head, copy, x)


def normalised(x):
    centred = x - x.mean(1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)


def affine(linear, copy, x):
    weight, bias = (p[copy].detach().numpy() for p in (linear.weight, linear.bias))
    return x @ weight + bias[0]


def dense(layer, copy, x):
    gain, bias = (p[copy, 0].detach().numpy() for p in (layer.norm.gain, layer.norm.bias))
    return normalised(affine(layer.linear, copy, x)) * gain + bias


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("leading", [(), (6,), (3, 6), (3, 2, 4)])
@pytest.mark.parametrize("copies", [1, 2, 3])
def test_mlp_equals_separate_networks(copies, leading, layer_norm):
    mlp = randomise(
        MLP(Shape(("task",), 5, 4, copies=copies, width=7, depth=2, layer_norm=layer_norm))
    )
    x = torch.randn(*leading, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = x.reshape(-1, 5).numpy()
    out = mlp(x)
    assert out.shape == (copies, *leading, 4)
    for copy in range(copies):
        expected = plain_network(mlp, copy, rows, layer_norm)
        np.testing.assert_allclose(
            out[copy].detach().numpy().reshape(-1, 4), expected, rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("depth", [1, 3])
def test_residual_body_equals_separate_networks(depth):
    body = randomise(Residual(Shape(("task",), 5, 4, copies=2, width=7, depth=depth)))
    x = torch.randn(3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = body(x).detach().numpy()
    assert out.shape == (2, 3, 6, 4)
    for copy in range(2):
        hidden = np.maximum(dense(body.first, copy, x.reshape(-1, 5).numpy()), 0.0)
        for block in body.blocks:
            inner = np.maximum(dense(block.first, copy, hidden), 0.0)
            hidden = hidden + dense(block.second, copy, inner)
        expected = affine(body.head, copy, hidden)
        np.testing.assert_allclose(out[copy].reshape(-1, 4), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_bf16_rounds_the_products_between_hidden_layers_alone(layer_norm):
    torch.manual_seed(0)  # the initial weights
    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(1))
    for depth, products in ((1, 0), (3, 2)):
        shape = Shape(("task",), 20, 3, copies=2, width=64, depth=depth, layer_norm=layer_norm)
        exact, rounded = MLP(shape), MLP(dataclasses.replace(shape, bf16=True))
        rounded.load_state_dict(exact.state_dict())
        outputs, gradients = [], []
        for mlp in (exact, rounded):
            output = mlp(x)
            output.square().mean().backward()
            outputs.append(output.detach())
            gradients.append(torch.cat([p.grad.flatten() for p in mlp.parameters()]))
        assert all(value.dtype == torch.float32 for value in outputs + gradients)
        for one, two in (outputs, gradients):
            error = (one - two).norm() / one.norm()
            # A rounding is 2^-9 = 0.002.
            assert error == 0 if products == 0 else 1e-4 < error < 4e-2, error


@pytest.mark.parametrize("layer_norm", [False, True])
def test_mlp_leaves_its_input_alone(layer_norm):
    mlp = MLP(Shape(("task",), 5, 4, copies=2, width=7, depth=2, layer_norm=layer_norm))
    x = torch.randn(6, 5)
    before = x.clone()
    mlp(x).sum().backward()
    assert torch.equal(x, before)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mlp.parameters())


def test_initial_weights_are_xavier_uniform_and_differ_between_copies():
    mlp = MLP(Shape(("task",), 30, 10, copies=2, width=200, depth=2))
    linears = [*(layer.linear for layer in mlp.hidden), mlp.head]
    sizes = [(30, 200), (200, 200), (200, 10)]
    for weight, (fan_in, fan_out) in zip((x.weight for x in linears), sizes, strict=True):
        bound = math.sqrt(6.0 / (fan_in + fan_out))
        for copy in weight.detach():
            assert 0.98 * bound < copy.abs().max() <= bound
            assert copy.std().item() == pytest.approx(bound / math.sqrt(3.0), rel=0.05)
        assert not torch.equal(weight[0], weight[1])
    assert all((linear.bias == 0).all() for linear in linears)


def test_critic_is_two_networks_on_inputs_and_actions():
    critic = randomise(Critic(MLP(Shape(("task",), 5, 1, copies=2, width=6, depth=2))))
    inputs, actions = torch.randn(4, 5, 3).double(), torch.randn(4, 5, 2).double()
    values = critic(inputs, actions).detach().numpy()
    rows = torch.cat([inputs, actions], -1).reshape(-1, 5).numpy()
    for k in range(2):
        expected = plain_network(critic.body, k, rows, False).reshape(4, 5)
        np.testing.assert_allclose(values[k], expected, rtol=1e-10)


@pytest.mark.parametrize("bound", ["clamp", "tanh"])
def test_log_std_is_bounded(bound):
    low, high = -4.0, 1.5
    actor = randomise(Actor(MLP(Shape(("task",), 3, 4, width=6, depth=1)), low, high, bound))
    with torch.no_grad():  # reach far beyond both bounds, and stay between them too
        actor.body.head.weight *= 30.0
    inputs = torch.randn(200, 3).double()
    mean, log_std = (out.detach().numpy() for out in actor(inputs))
    raw = plain_network(actor.body, 0, inputs.numpy(), False)
    assert raw[:, 2:].min() < low
    assert raw[:, 2:].max() > high
    if bound == "clamp":
        expected = np.minimum(np.maximum(raw[:, 2:], low), high)
    else:
        expected = low + (high - low) * (np.tanh(raw[:, 2:]) + 1.0) / 2.0
    np.testing.assert_allclose(mean, raw[:, :2], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(log_std, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("samples", [(), (5,), (2, 3)])
def test_encoder_appends_the_id_of_the_leading_task(samples):
    encoder = InputEncoder(3, 2)
    observations = 100.0 * torch.randn(3, *samples, 2)
    encoded = encoder(observations)
    assert encoded.shape[-1] == encoder.output_dim == 5
    assert torch.equal(encoded[..., :2], observations)
    for task in range(3):
        for row in encoded[task].reshape(-1, 5)[:, 2:].tolist():
            assert row == [float(task == other) for other in range(3)]


def test_encoder_without_task_id():
    encoder = InputEncoder(3, 2, task_encoding="none")
    observations = torch.randn(3, 4, 2)
    assert encoder.output_dim == 2
    assert torch.equal(encoder(observations), observations)


@pytest.mark.parametrize("encoding", ["one_hot", "none"])
def test_encoder_standardises_and_clips_observations_only(encoding):
    encoder = InputEncoder(3, 4, observation_norm=True, task_encoding=encoding)
    mean = np.array([1.0, -2.0, 10.0, 0.5])
    deviation = np.array([2.0, 0.5, 1e-7, 0.0])  # the last two are below the floor
    encoder.set_statistics(torch.tensor(mean).float(), torch.tensor(deviation).float())
    rng = np.random.default_rng(0)
    observations = mean + rng.normal(0.0, 3.0, (3, 50, 4)) * [2.0, 0.5, 1e-2, 1e-2]
    encoded = encoder(torch.tensor(observations).float()).numpy()
    scaled = (observations - mean) / np.array([2.0, 0.5, 1e-2, 1e-2])
    assert np.abs(scaled).max() > 5.0
    # float32: an observation near 10 is rounded by up to 2^-21, and divided by 1e-2: 5e-5.
    np.testing.assert_allclose(encoded[..., :4], np.clip(scaled, -5.0, 5.0), rtol=0, atol=1e-4)
    if encoding == "one_hot":
        assert (encoded[..., 4:].sum(-1) == 1.0).all()


def test_statistics_survive_a_state_dict():
    one, two = (InputEncoder(2, 3, observation_norm=True) for _ in range(2))
    one.set_statistics(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 5.0, 0.0]))
    two.load_state_dict(one.state_dict())
    observations = torch.randn(2, 6, 3)
    assert torch.equal(one(observations), two(observations))


def test_log_probability_equals_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, log_std, noise = (
        torch.randn(50, 4, 3, dtype=torch.float64, generator=generator) for _ in range(3)
    )
    log_std = 0.5 * log_std - 0.5
    action, log_prob = sample_action(mean, log_std, noise)
    policy = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform(cache_size=1))
    np.testing.assert_allclose(
        action.numpy(), np.tanh(mean.numpy() + np.exp(log_std.numpy()) * noise.numpy()), rtol=1e-12
    )
    np.testing.assert_allclose(
        log_prob.numpy(), policy.log_prob(action).sum(-1).numpy(), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("u", [40.0, -40.0])
def test_log_probability_of_saturated_actions(u, dtype):
    # log(1 - tanh(u)^2) -> 2 (log 2 - |u|), where 1 - tanh(u)^2 itself rounds to zero.
    mean = torch.tensor([u], dtype=dtype, requires_grad=True)
    log_std = torch.tensor([0.3], dtype=dtype, requires_grad=True)
    noise = torch.zeros(1, dtype=dtype)
    action, log_prob = sample_action(mean, log_std, noise)
    expected = -0.3 - 0.5 * math.log(2 * math.pi) - 2.0 * (math.log(2.0) - abs(u))
    assert log_prob.item() == pytest.approx(expected, rel=1e-6)
    assert action.item() == pytest.approx(math.copysign(1.0, u))
    log_prob.backward()
    # d log pi / d mean = 2 tanh(u): the gradient pulls back from saturation.
    assert mean.grad.item() == pytest.approx(2.0 * math.copysign(1.0, u), rel=1e-6)
    assert log_std.grad.item() == pytest.approx(-1.0, rel=1e-6)
