"""Architectures that share a network among tasks in other ways than one network for all."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gradient_cases import check_task_gradients
from test_cli import TOY, refused
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mtrl.agent import Agent
from mtrl.commands import main as cli
from mtrl.commands.notes import notes
from mtrl.config import (
    AgentConfig,
    Config,
    CriticConfig,
    EnvConfig,
    NetworkConfig,
    SmtoConfig,
    benchmarks,
)
from mtrl.device.compiled import MANY
from mtrl.networks import Shape, available_networks, create_network
from mtrl.networks.layers import layers_of
from mtrl.networks.moore import orthonormal
from mtrl.options.methods import check_network
from mtrl.replay import Batch
from mtrl.schema import ConfigError
from mtrl.sweep.grid import expand
from mtrl.sweep.options import SweepOptions

CPU = torch.device("cpu")
TASKS = ("toy-east", "toy-north", "toy-west")
SAMPLES, INPUTS, OUTPUTS, ACTIONS, WIDTH = 4, 5, 3, 2, 7
OPTIONS: dict[str, dict[str, Any]] = {
    "care": {"encoders": 2, "encoder_width": 4, "features": 3, "context": 3},
    "film": {"embedding": 3},
    "moore": {"experts": 3},
    "multi_head": {},
    "paco": {"sets": 2},
    "soft_modules": {"modules": 2, "module_width": 4},
}
every_architecture = pytest.mark.parametrize("name", OPTIONS)
with_and_without_norm = pytest.mark.parametrize("layer_norm", [False, True])


def test_every_architecture_is_tested() -> None:
    assert {"shared", *OPTIONS} == set(available_networks())


def shape(**changes: Any) -> Shape:
    usual = Shape(TASKS, INPUTS, OUTPUTS, actions=ACTIONS, copies=2, width=WIDTH, depth=4)
    return dataclasses.replace(usual, **changes)


def make(name: str, seed: int = 0, options: Any = None, **changes: Any) -> Any:
    """Random parameters in float64: zero biases would hide a misplaced bias."""
    body = create_network(name, shape(**changes), OPTIONS[name] if options is None else options)
    generator = torch.Generator().manual_seed(seed)
    body.double()
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
    return body


def draw(*sizes: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*sizes, dtype=torch.float64, generator=generator)


# -- what they compute ----------------------------------------------------------------------------
# The obvious version: one row x [in] of one task in one copy.


def linear(layer: Any, index: Any, x: Tensor) -> Tensor:
    y = x @ layer.weight[index]
    return y if layer.bias is None else y + layer.bias[index][0]


def hidden(layer: Any, index: int, x: Tensor) -> Tensor:
    y = linear(layer.linear, index, x)
    if layer.norm is not None:
        y = F.layer_norm(y, y.shape) + layer.norm.bias[index, 0]
    return y.relu() if layer.relu else y


def care(net: Any, c: int, t: int, x: Tensor) -> Tensor:
    state, action = x[:-ACTIONS], x[-ACTIONS:]
    context = linear(net.context[1], c, hidden(net.context[0], c, net.embeddings[t]))
    attention = linear(net.attention[1], c, hidden(net.attention[0], c, context)).softmax(0)
    z = torch.zeros(3).double()
    for k in range(2):
        encoded, index = state, 2 * c + k
        for layer in net.encoders[:-1]:
            encoded = hidden(layer, index, encoded)
        z = z + attention[k] * linear(net.encoders[-1], index, encoded)
    y = torch.cat([z, context, action])
    for layer in net.trunk:
        y = hidden(layer, c, y)
    return linear(net.head, c, y)


def film(net: Any, c: int, t: int, x: Tensor) -> Tensor:
    embedding = net.embedding.rows[c, t, 0]
    for layer, generator in zip(net.hidden, net.generators, strict=True):
        scale, shift = linear(generator, c, embedding).split(WIDTH)
        x = ((1 + scale) * hidden(layer, c, x) + shift).relu()
    return linear(net.head, c, x)


def moore(net: Any, c: int, t: int, x: Tensor) -> Tensor:
    features = []
    for k in range(3):
        u, index = x, 3 * c + k
        for layer in net.trunk:
            u = hidden(layer, index, u)
        features.append(linear(net.features, index, u))
    q, r = torch.linalg.qr(torch.stack(features, 1))  # up to signs
    return linear(net.head, (c, t), (q * r.diagonal().sign() @ net.weights.rows[c, t, 0]).tanh())


def multi_head(net: Any, c: int, t: int, x: Tensor) -> Tensor:
    for layer in net.hidden:
        x = hidden(layer, c, x)
    return linear(net.head, (c, t), x)


def paco(net: Any, c: int, t: int, x: Tensor) -> Tensor:
    w = net.coefficients.rows[c, t, 0]
    for layer in [*net.hidden, net.head]:
        x = x @ (w[0] * layer.weight.sets[c, 0] + w[1] * layer.weight.sets[c, 1])
        if net.layer_norm and layer is not net.head:
            x = F.layer_norm(x, x.shape)
        x = x + (w[0] * layer.bias.sets[c, 0] + w[1] * layer.bias.sets[c, 1])[0]
        if layer is not net.head:
            x = x.relu()
    return x


def soft_modules(net: Any, c: int, t: int, x: Tensor) -> Tensor:
    f = hidden(net.first, c, x)
    u = f * net.task.rows[c, t, 0]
    g, p = [f, f], linear(net.down[0], c, u.relu())
    for index, layer in enumerate(net.layers):
        h = [hidden(layer, 2 * c + j, g[j]) for j in range(2)]
        if index == len(net.layers) - 1:
            return linear(net.head, c, torch.cat(h))
        if index > 0:
            p = linear(net.down[index], c, (linear(net.up[index - 1], c, p) * u).relu())
        routes = p.view(2, 2).softmax(1)
        g = [routes[i, 0] * h[0] + routes[i, 1] * h[1] for i in range(2)]
    raise AssertionError


OBVIOUS: dict[str, Callable[[Any, int, int, Tensor], Tensor]] = {
    function.__name__: function for function in (care, film, moore, multi_head, paco, soft_modules)
}


@every_architecture
@with_and_without_norm
def test_outputs_are_those_of_the_obvious_version(name: str, layer_norm: bool) -> None:
    body = make(name, layer_norm=layer_norm)
    x = draw(len(TASKS), SAMPLES, INPUTS)
    found = body(x).detach()
    for c in range(2):
        for t in range(len(TASKS)):
            for s in range(SAMPLES):
                expected = OBVIOUS[name](getattr(body, "network", body), c, t, x[t, s])
                # Gram-Schmidt divides by what is left of a vector; hence not 1e-12.
                torch.testing.assert_close(found[c, t, s], expected.detach(), rtol=1e-7, atol=1e-6)


@every_architecture
def test_any_leading_dimensions_behind_the_task(name: str) -> None:
    body = make(name)
    x = draw(len(TASKS), 2, SAMPLES, INPUTS)
    whole = body(x)
    assert whole.shape == (2, len(TASKS), 2, SAMPLES, OUTPUTS)
    torch.testing.assert_close(body(x[:, 1]), whole[:, :, 1])
    torch.testing.assert_close(body(x[:, 1, 2]), whole[:, :, 1, 2])  # as in acting


@every_architecture
@with_and_without_norm
@pytest.mark.parametrize("copies", [1, 2])
def test_task_gradients_are_those_of_one_backward_per_task(
    name: str, layer_norm: bool, copies: int
) -> None:
    body = make(name, layer_norm=layer_norm, copies=copies)
    x, y = draw(len(TASKS), SAMPLES, INPUTS), draw(len(TASKS), SAMPLES, OUTPUTS, seed=2)
    check_task_gradients(body, (x, y))


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("care", []),
        ("film", ["network.embedding.rows"]),
        ("moore", ["network.weights.rows", "network.head.weight", "network.head.bias"]),
        ("multi_head", ["head.weight", "head.bias"]),
        ("paco", ["network.coefficients.rows"]),
        ("soft_modules", ["network.task.rows"]),
    ],
)
def test_what_belongs_to_one_task_alone(name: str, own: list[str]) -> None:
    body = make(name)
    of_one_task = {
        id(p) for layer in layers_of(body) if layer.of_one_task for p in layer.parameters()
    }
    found = [key for key, p in body.named_parameters() if id(p) in of_one_task]
    assert sorted(found) == sorted(own)


def plain_of(layers: list[Any], head: Any, depth: int, inputs: int, width: int) -> nn.Module:
    """The plain network with these layers' weights [copies, in, out] and biases."""
    plain = create_network("shared", shape(inputs=inputs, width=width, depth=depth), {}).double()
    for mine, (weight, bias) in zip(plain.hidden, layers, strict=True):  # type: ignore[arg-type]
        mine.linear.load_state_dict({"weight": weight, "bias": bias})
    plain.head.load_state_dict({"weight": head[0], "bias": head[1]})  # type: ignore[operator]
    return plain


def test_without_what_tells_tasks_apart_they_are_the_plain_network() -> None:
    x = draw(len(TASKS), SAMPLES, INPUTS)

    def weights(layer: Any) -> tuple[Tensor, Tensor]:
        return layer.weight.detach(), layer.bias.detach()

    def same(body: Any, layers: list[Any], head: Any, depth: int = 4, width: int = WIDTH) -> None:
        torch.testing.assert_close(body(x), plain_of(layers, head, depth, INPUTS, width)(x))

    heads = make("multi_head")
    for p in (heads.head.weight, heads.head.bias):
        p.data[:] = p.data[:, :1]
    first = heads.head.weight[:, 0].detach(), heads.head.bias[:, 0].detach()
    same(heads, [weights(layer.linear) for layer in heads.hidden], first)

    network = (body := make("film")).network
    for generator in network.generators:
        generator.weight.data.zero_()
        generator.bias.data.zero_()
    same(body, [weights(layer.linear) for layer in network.hidden], weights(network.head))

    network = (body := make("paco", options={"sets": 1})).network
    network.coefficients.rows.data.fill_(1.0)
    *layers, head = [
        (layer.weight.sets[:, 0].detach(), layer.bias.sets[:, 0].detach())
        for layer in [*network.hidden, network.head]
    ]
    same(body, layers, head)

    one = {"modules": 1, "module_width": WIDTH}
    network = (body := make("soft_modules", options=one)).network
    layers = [weights(layer.linear) for layer in [network.first, *network.layers]]
    same(body, layers, weights(network.head), depth=5)


def test_experts_are_orthonormal_also_where_they_depend_on_each_other() -> None:
    vectors = draw(4, 6, WIDTH)
    units = torch.stack(orthonormal(list(vectors)), 1)
    identity = torch.eye(4).double().expand(6, 4, 4)
    torch.testing.assert_close(units @ units.mT, identity, rtol=0, atol=1e-4)  # EPSILON
    x = draw(6, WIDTH).requires_grad_()
    units = torch.stack(orthonormal([x, 2.0 * x, 0.0 * x]), 1)
    units.square().sum().backward()
    assert x.grad is not None
    assert units.isfinite().all()
    assert x.grad.isfinite().all()


# -- in an agent ----------------------------------------------------------------------------------


def make_config(name: str, smto: str = "pcgrad", **sections: Any) -> Config:
    network = sections.pop("network", {})
    return Config(
        env=EnvConfig(tasks=benchmarks.TOY[: len(TASKS)]),
        network=NetworkConfig(
            **{
                "architecture": name,
                "options": OPTIONS.get(name, {}),
                "width": 8,
                "depth": 3,
                **network,
            }
        ),
        agent=AgentConfig(smto=SmtoConfig(smto), critic_lr=1e-2, actor_lr=1e-2),
        **sections,
    )


def make_agent(name: str, smto: str = "pcgrad", **sections: Any) -> Agent:
    return Agent(make_config(name, smto, **sections), 6, 2, CPU)


def make_batch(k: int) -> Batch:
    def normal(*sizes: int) -> Tensor:
        return draw(len(TASKS), SAMPLES, *sizes, seed=k).float()

    shape = len(TASKS), SAMPLES
    return Batch(
        normal(6),
        normal(2).tanh(),
        normal(),
        normal(6),
        torch.zeros(shape),
        torch.full(shape, 0.9),
    )


@every_architecture
@pytest.mark.parametrize("kind", ["scalar", "categorical", "popart"])
def test_a_restored_agent_continues_bitwise_with_every_kind_of_critic(name: str, kind: Any) -> None:
    """With learned task codes; the methods are Gramian and Jacobian ones."""
    settings: dict[str, Any] = {
        "critic": CriticConfig(kind=kind, bins=5),
        "network": {"task_encoding": "learned", "layer_norm": True},
    }
    smto = "graddrop" if kind == "categorical" else "pcgrad"
    one, two = (make_agent(name, smto, **settings) for _ in range(2))
    for k in range(2):
        one.update(make_batch(k))
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for k in range(2, 4):
        first, second = (agent.update(make_batch(k), gramians=True) for agent in (one, two))
        assert all(torch.equal(a, b) for a, b in zip(first[:5], second[:5], strict=True))
        assert all(value.isfinite().all() for value in first[:5])
    assert all(part.gramian.isfinite().all() for part in (one.critic, one.actor))
    for a, b in zip(one.target_critic.parameters(), two.target_critic.parameters(), strict=True):
        assert torch.equal(a, b)


@every_architecture
def test_the_compiler_takes_all_that_lies_before_the_optimizer(name: str) -> None:
    """Without a break that would leave part of it to Python. (The compiler's own code is tested
    with the plain network: `test_agent.py`.)"""
    agent, batch = make_agent(name, "unitary"), make_batch(0)
    given = batch, torch.zeros_like(batch.actions), agent.temperature.alpha(), None
    eager = agent.critic.direction(*given)
    with torch._dynamo.config.patch(  # as `compiled` does
        trace_autograd_ops=True, recompile_limit=MANY, accumulated_recompile_limit=MANY
    ):
        quick = torch.compile(agent.critic.direction, fullgraph=True, backend="eager")(*given)
    torch.testing.assert_close(quick.losses, eager.losses)
    for a, b in zip(quick.gradients, eager.gradients, strict=True):
        torch.testing.assert_close(a, b)


@every_architecture
def test_bf16_rounds_and_leaves_the_results_nearly_as_they_are(name: str) -> None:
    sizes = {"width": 64, "inputs": 8}
    torch.manual_seed(0)
    exact = create_network(name, shape(**sizes), OPTIONS[name])
    rounded = create_network(name, shape(bf16=True, **sizes), OPTIONS[name])
    rounded.load_state_dict(exact.state_dict())
    x = draw(len(TASKS), 20, 8).float()
    one, two = exact(x), rounded(x)
    assert two.dtype == torch.float32
    assert 1e-5 < (one - two).norm() / one.norm() < 5e-2  # a rounding is 2^-9 = 0.002


@every_architecture
def test_muon_and_every_reset(name: str) -> None:
    agent = make_agent(name)
    config = make_config(name)
    muon = dataclasses.replace(config.agent, optimizer="muon")
    agent = Agent(dataclasses.replace(config, agent=muon), 6, 2, CPU)
    agent.update(make_batch(0))
    agent.reset(1)
    assert agent.update(make_batch(1)).critic_loss.isfinite().all()


@every_architecture
def test_its_products_can_be_counted(name: str) -> None:
    """As `mtrl bench` does."""
    with FlopCounterMode(display=False) as counter:
        make_agent(name).update(make_batch(0))
    assert counter.get_total_flops() > 0


# -- choosing one ---------------------------------------------------------------------------------

BAD = {
    "unknown": (
        "--network.architecture more",
        ["network.architecture = 'more'", "one of shared, care, film, moore", "mean 'moore'?"],
    ),
    "another's option": (
        "--network.architecture paco --network.options experts=3",
        [
            "network.options.experts = 3",
            "network paco has no such option; it has: sets, reset_above",
        ],
    ),
    "no options": (
        "--network.options experts=3",
        ["network.options.experts = 3", "network shared has no such option; it has: none"],
    ),
    "type": (
        "--network.architecture moore --network.options experts=two",
        ["network.options.experts = 'two'", "must be an integer"],
    ),
    "range": (
        "--network.architecture moore --network.options experts=99",
        ["network.options = {'experts': 99}", "network moore: experts must be in 1..64"],
    ),
    "too shallow": (
        "--network.architecture soft_modules --network.depth 1",
        ["network soft_modules: needs a depth of at least 2, not 1"],
    ),
    "residual": (
        "--network.architecture film --network.body residual",
        ["network.body = 'residual'", "shared and multi_head; film has layers of its own"],
    ),
    "residual critic": (
        "--network.architecture film --critic.body residual",
        ["critic.body = 'residual'"],
    ),
    "no such file": (
        "--network.architecture care --network.options embeddings=none.json",
        ["network.options", "none.json cannot be read: [Errno 2] No such file"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_choice(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = BAD[case]
    run = tmp_path / "run"
    refused(["train", TOY, *words.split(), "--run-dir", str(run)], capsys, *expected)
    assert not run.exists()


def test_listing(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["list", "networks"])
    listed = capsys.readouterr().out
    for name in available_networks():
        assert f"\n{name}:\n" in f"\n{listed}"
    assert "options: experts=4" in listed


def test_a_sweep_over_architectures(tmp_path: Path) -> None:
    """The file's options mean nothing to another architecture."""
    file = tmp_path / "moore.yaml"
    file.write_text("env: {benchmark: toy}\nnetwork: {architecture: moore, options: {experts: 2}}")
    choices = {"network.architecture": ["moore", "paco"]}
    runs = expand(SweepOptions(config=str(file), methods=("unitary", "pcgrad"), set=choices))
    networks = {run.name.split("/")[0]: run.config.network for run in runs}
    assert len(runs) == 4
    assert networks["network.architecture=moore"].options == {"experts": 2}
    assert networks["network.architecture=paco"].options == {}


# -- task embeddings ------------------------------------------------------------------------------


def test_task_embeddings_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.json"
    path.write_text(json.dumps({"toy-west": [3.0, 4], "toy-east-v1": [1, 2], "toy-north": [0, 1]}))
    config = make_config("care", network={"options": {"embeddings": str(path)}})
    agent = Agent(config, 6, 2, CPU)
    expected = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 4.0]])
    for network in (agent.actor.network, agent.critic.network, agent.target_critic):
        assert torch.equal(network.get_buffer("body.network.embeddings"), expected)
    assert notes(config, agent) == []
    (warning,) = notes(make_config("care"), make_agent("care"))
    assert "no task embeddings" in warning


def test_a_relative_file_is_stored_as_an_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.json").write_text(json.dumps({task: [1.0] for task in TASKS}))
    config = make_config("care", network={"options": {"embeddings": "own.json"}})
    assert check_network(config).network.options == {"embeddings": str(tmp_path / "own.json")}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "cannot be read"),
        ("[1]", "must be a mapping"),
        ('{"toy-east": [1]}', "have none for task toy-north"),
        ('{"toy-east": [1], "toy-north": [1, 2], "toy-west": [1]}', "2 numbers for task toy-north"),
        ('{"toy-east": [NaN], "toy-north": [1], "toy-west": [1]}', "needs a list of finite"),
        ('{"toy-east": ["a"], "toy-north": [1], "toy-west": [1]}', "needs a list of finite"),
        ('{"toy-east": 3, "toy-north": [1], "toy-west": [1]}', "needs a list of finite"),
    ],
)
def test_bad_task_embeddings(content: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "embeddings.json"
    path.write_text(content)
    config = make_config("care", network={"options": {"embeddings": str(path)}})
    with pytest.raises(ConfigError, match=expected):
        check_network(config)
