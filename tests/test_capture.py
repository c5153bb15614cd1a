"""The update as a CUDA graph: what a graph cannot hold is found, what it reads stays in place."""

from __future__ import annotations

import io
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from smto_cases import options_of, step
from torch import Tensor

from mtrl.agent import Agent, Metrics
from mtrl.config import (
    AgentConfig,
    Config,
    CriticConfig,
    EnvConfig,
    NetworkConfig,
    ReplayConfig,
    SmtoConfig,
)
from mtrl.config.benchmarks import TOY
from mtrl.device.cuda_graph import WARM_UPS, CapturedUpdate
from mtrl.networks import available_networks
from mtrl.replay import ReplayBuffer
from mtrl.reward_scale import create_scale
from mtrl.run import checkpoint
from mtrl.smto import SMTO, available, create

CPU = torch.device("cpu")
TASKS, SAMPLES, OBSERVATION, ACTION = 3, 4, 2, 2
NORMALIZATIONS = ("none", "sample", "ema", "return_range", "return_std")


class Learner:
    """Agent and replay, a transition between two updates, as in training."""

    def __init__(
        self, method: str = "unitary", device: torch.device = CPU, normalization: Any = "sample",
        critic: Any = "scalar", n_step: int = 1, network: str = "shared",
        options: Any = None, **settings: Any,
    ) -> None:  # fmt: skip
        """options: of the network."""
        weights = {"weights": [1.0, 2.0, 3.0]} if method == "fixed" else {}
        config = Config(
            env=EnvConfig(tasks=TOY[:TASKS]),
            replay=ReplayConfig(reward_normalization=normalization),
            network=NetworkConfig(network, options or {}, width=8, depth=2, observation_norm=True),
            critic=CriticConfig(kind=critic),
            agent=AgentConfig(smto=SmtoConfig(method, weights), target_clip=True, **settings),
        )
        self.agent = Agent(config, OBSERVATION, ACTION, device)
        scale = create_scale(config, ACTION, device)
        self.replay = ReplayBuffer(
            TASKS, 30, OBSERVATION, ACTION, scale, device, gamma=0.9, n_step=n_step
        )
        self.device = device
        self.random = np.random.default_rng(0)
        self.warnings: list[str] = []
        for _ in range(5):
            self.add()

    def add(self) -> None:
        def normal(*shape: int) -> np.ndarray:
            return self.random.normal(size=(TASKS, 1, *shape)).astype(np.float32)

        first, actions = (
            torch.tensor(normal(n), device=self.device) for n in (OBSERVATION, ACTION)
        )
        rewards = normal().astype(np.float64)
        terminated, ended = normal() > 1, normal() > 0
        ended |= terminated
        self.replay.scale.observe(rewards, terminated, ended)
        self.replay.add(first, actions.tanh(), rewards, normal(OBSERVATION), terminated, ended)

    def update(self) -> Tensor:
        agent = self.agent
        alpha = agent.temperature.alpha()
        bound = self.replay.return_bound(alpha)
        batch = self.replay.sample(SAMPLES, agent.generator, alpha)
        return torch.stack(agent.update(batch, bound))

    def captured(self) -> CapturedUpdate:
        self.make_capturable()
        smtos = [part.smto for part in self.agent.parts.values()]
        return CapturedUpdate(
            self.update, smtos, self.agent.generators, self.device, self.warnings.append
        )

    def make_capturable(self) -> None:
        for part in self.agent.parts.values():
            part.optimizer.make_capturable()

    def scale_learning_rates(self, factor: float) -> None:
        for part in self.agent.parts.values():
            part.optimizer.scale(factor)

    def parameters(self) -> Tensor:
        agent = self.agent
        networks = (agent.actor.network, agent.critic.network, agent.target_critic)
        return torch.cat([p.detach().flatten() for n in networks for p in n.parameters()]).cpu()


def tensors(value: Any, path: str = "") -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {path: value}
    if isinstance(value, dict):
        value = value.items()
    elif isinstance(value, list | tuple):
        value = enumerate(value)
    else:
        return {}
    return {k: v for name, item in value for k, v in tensors(item, f"{path}/{name}").items()}


def all_state(learner: Learner) -> dict[str, Tensor]:
    """Whatever a checkpoint holds, in the place where the learner has it."""
    agent, replay = learner.agent, learner.replay
    state = agent.state_dict() | {
        "replay": replay.state_dict(),
        "added": replay._added,
    }
    found = tensors({k: v for k, v in state.items() if k not in ("generator", "exploration")})
    return {name: tensor for name, tensor in found.items() if not name.endswith("/generator")}


@pytest.mark.parametrize("method", available())
def test_all_that_changes_stays_where_it_is(method: str) -> None:
    """A graph reads addresses: a tensor that is replaced, or a number, would stand still in it."""
    normalization = NORMALIZATIONS[available().index(method) % 5]
    n_step, critic = (3, "categorical") if normalization.startswith("return") else (1, "scalar")
    learner = Learner(method, normalization=normalization, n_step=n_step, critic=critic)
    learner.make_capturable()
    for _ in range(2):  # optimisers and methods make their state
        learner.update()
    before = all_state(learner)
    values = {name: tensor.clone() for name, tensor in before.items()}
    learner.add()
    learner.agent.encoder.set_statistics(*learner.replay.observation_statistics())
    learner.scale_learning_rates(0.5)
    learner.update()
    after = all_state(learner)
    assert before.keys() == after.keys()
    moved = [name for name in before if before[name].data_ptr() != after[name].data_ptr()]
    assert moved == []
    changed = {name for name in before if not torch.equal(values[name], after[name])}
    for part in (
        "actor/",
        "critic/",
        "target_critic/",
        "encoder/mean",
        "log_alpha",
        "added",
    ):
        assert any(f"/{part}" in f"{name}/" for name in changed), part
    for optimizer in ("actor", "critic", "temperature"):
        state = f"/{optimizer}_optimizer/"
        for part in ("exp_avg", "exp_avg_sq", "step", "lr"):
            assert any(n.startswith(state) and n.endswith(part) for n in changed), part
    for part in (
        "storage",
        "maximum",
        *(f"scale/moments/{name}" for name in ("count", "mean", "squares")),
    ):
        same = part == "maximum"  # not every transition is a record
        assert same or f"/replay/{part}" in changed, part


class AddressPickler(pickle.Pickler):
    """Writes the addresses of tensors instead of their contents."""

    def persistent_id(self, value: object) -> str | None:
        if isinstance(value, Tensor):
            return f"tensor at {value.data_ptr()}"
        return "generator" if isinstance(value, torch.Generator) else None


def python_state(smto: SMTO) -> bytes:
    """What a graph would freeze of a method: everything but the contents of its tensors."""
    file = io.BytesIO()
    attributes = {name: value for name, value in vars(smto).items() if name != "_certificates"}
    AddressPickler(file).dump(attributes)
    return file.getvalue()


def steps_of(smto: SMTO) -> Iterator[tuple[bool, bool]]:
    """Per step: whether the method said that it may be captured, and whether a graph would do."""
    generator = torch.Generator().manual_seed(0)
    while True:
        said, before = smto.capturable, python_state(smto)
        jacobian = torch.randn(TASKS, 6, generator=generator)
        step(smto, jacobian, torch.rand(TASKS, generator=generator))
        yield said, before == python_state(smto)


OPTIONS: dict[str, dict[str, Any]] = {
    "fixed": {"weights": [1.0, 2.0, 3.0]},
    "autoscale": {"total_steps": 8, "exploration": 0.5, "windows": 2},
}


@pytest.mark.parametrize("method", available())
def test_methods_say_truly_whether_they_may_be_captured(method: str) -> None:
    smto = create(method, TASKS, **OPTIONS.get(method, {}))
    steps = list(itertools.islice(steps_of(smto), 8))
    # In the first two, tensors may be made.
    assert all(equal for said, equal in steps[2:] if said)
    assert all(said for said, _ in steps[5:]), "in the end every one may be"
    if "update_every" in options_of(method):
        slow = create(method, TASKS, update_every=4)
        assert not any(said for said, _ in itertools.islice(steps_of(slow), 8))


def test_a_users_own_method_is_captured_if_it_says_so() -> None:
    class Own(SMTO):
        pass

    assert not Own(TASKS).capturable
    Own.capturable = True  # type: ignore[method-assign, assignment]  # as in a class body
    assert Own(TASKS).capturable


@pytest.mark.parametrize(("method", "tries"), [("aligned_mtl", True), ("autoscale", False)])
def test_without_cuda_every_call_is_an_ordinary_update(method: str, tries: bool) -> None:
    plain, learner = Learner(method), Learner(method)
    plain.make_capturable()
    captured = learner.captured()
    for k in range(WARM_UPS + 4):
        assert torch.equal(plain.update(), captured())
        assert len(learner.warnings) == (tries and k >= WARM_UPS)
    assert torch.equal(plain.parameters(), learner.parameters())
    if tries:
        assert "could not be captured, continuing without: " in learner.warnings[0]


def test_step_sizes_are_plain_numbers_again_after_loading() -> None:
    learner, other = Learner(actor_lr=1e-3), Learner(actor_lr=1e-3)
    learner.make_capturable()
    learner.scale_learning_rates(0.5)
    learner.update()
    state = checkpoint.snapshot(learner.agent.state_dict())
    group = state["actor_optimizer"]["param_groups"][0]
    assert float(group["lr"]) == pytest.approx(5e-4)
    other.agent.load_state_dict(state)
    group = other.agent.actor.optimizer.torch.param_groups[0]
    assert (group["lr"], group["capturable"]) == (1e-3, False)


# -- GPU ------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["unitary", "pcgrad", "mgda", "rlw_normal", "famo"])
def test_captured_updates_equal_eager_ones_and_draw_fresh_noise(method: str) -> None:
    cuda = torch.device("cuda")
    eager, learner = Learner(method, cuda), Learner(method, cuda)
    captured = learner.captured()
    for k in range(WARM_UPS + 10):
        torch.testing.assert_close(eager.update(), captured(), rtol=1e-3, atol=1e-4)
        for one in (eager, learner):
            one.add()  # the replay grows under the graph
            one.scale_learning_rates(1.0 - 0.01 * k)
    assert learner.warnings == []
    assert captured._graph is not None
    torch.testing.assert_close(eager.parameters(), learner.parameters(), rtol=1e-3, atol=1e-4)
    for a, b in zip(eager.agent.generators, learner.agent.generators, strict=True):
        assert torch.equal(a.get_state(), b.get_state()), "a resumed run continues the same stream"
    learner.scale_learning_rates(0.0)
    entropies = [captured()[3].clone() for _ in range(3)]
    assert not torch.equal(entropies[0], entropies[1])
    assert not torch.equal(entropies[1], entropies[2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", [name for name in available() if name != "autoscale"])
def test_every_method_whose_steps_are_equal_is_captured(method: str) -> None:
    learner = Learner(method, torch.device("cuda"))
    captured = learner.captured()
    for _ in range(WARM_UPS + 2):  # the first step of a method may differ from the others
        for name, values in zip(Metrics._fields, captured(), strict=True):
            assert values.isfinite().all() or name.endswith("_weight")  # some have no weights
    assert learner.warnings == []
    assert captured.is_captured


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["unitary", "pcgrad"])
@pytest.mark.parametrize("network", available_networks())
def test_every_network_is_captured(network: str, method: str) -> None:
    cuda = torch.device("cuda")
    eager, learner = (Learner(method, cuda, network=network) for _ in range(2))
    captured = learner.captured()
    for _ in range(WARM_UPS + 5):
        torch.testing.assert_close(eager.update(), captured(), rtol=1e-3, atol=1e-4)
    assert learner.warnings == []
    assert captured.is_captured
    torch.testing.assert_close(eager.parameters(), learner.parameters(), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_failed_capture_leaves_a_working_learner() -> None:
    """An update that waits for the device cannot be captured."""
    cuda = torch.device("cuda")
    plain, learner = Learner("pcgrad", cuda), Learner("pcgrad", cuda)
    update = learner.update

    def waiting() -> Tensor:
        metrics = update()
        metrics.sum().item()
        return metrics

    learner.update = waiting  # type: ignore[method-assign]
    captured = learner.captured()
    for _ in range(WARM_UPS + 3):
        torch.testing.assert_close(plain.update(), captured(), rtol=1e-4, atol=1e-5)
    assert len(learner.warnings) == 1
