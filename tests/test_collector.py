"""What goes to the environments and comes from them: acting and storing, eager and captured."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, differences
from torch import Tensor

from mtrl.agent import Agent
from mtrl.collector import Collector
from mtrl.config import (
    Config,
    EnvConfig,
    NetworkConfig,
    ReplayConfig,
    SmtoConfig,
    TrainConfig,
    load_yaml,
)
from mtrl.config.benchmarks import TOY
from mtrl.device import cuda_graph as capture
from mtrl.envs.vector import Step, VectorEnv, make_vector_env
from mtrl.replay import ReplayBuffer
from mtrl.reward_scale import create_scale
from mtrl.run import checkpoint
from mtrl.run.directory import RunDirectory
from mtrl.trainer import Trainer

TASKS, ENVS, OBSERVATION, ACTION, RING = 3, 2, 5, 2, 4
LANES = TASKS * ENVS
CPU = torch.device("cpu")
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Play:
    """A collector, and environments that answer at random in memory that they use again."""

    def __init__(self, device: torch.device = CPU, normalization: Any = "sample") -> None:
        config = Config(
            env=EnvConfig(tasks=TOY[:TASKS], horizon=20),
            train=TrainConfig(envs_per_task=ENVS),
            replay=ReplayConfig(reward_normalization=normalization),
            network=NetworkConfig(width=16, depth=2, observation_norm=True),
        )
        self.agent = Agent(config, OBSERVATION, ACTION, device)
        scale = create_scale(config, ACTION, device)
        self.replay = ReplayBuffer(
            TASKS, LANES * RING, OBSERVATION, ACTION, scale, device, envs_per_task=ENVS, n_step=3
        )
        self.collector = Collector(self.agent, self.replay, OBSERVATION)
        self.warnings: list[str] = []
        self.random = np.random.default_rng(0)
        vectors = np.zeros((2, LANES, OBSERVATION), np.float32)
        self.outcome = Step(*vectors, np.zeros(LANES), *np.zeros((3, LANES), np.bool_))
        self.outcome.observations[:] = self.random.normal(size=(LANES, OBSERVATION))
        self.collector.begin(self.outcome.observations)
        self.acted: list[np.ndarray] = []
        self.stored: list[np.ndarray] = []
        """Rows [lane, field] as the replay has them, but with raw rewards."""

    def step(self, *, random: bool = False) -> None:
        before, new = self.outcome.observations.copy(), self.outcome
        self.acted.append(self.collector.act(random=random).copy())
        new.next_observations[:] = self.random.normal(size=(LANES, OBSERVATION))
        new.rewards[:] = self.random.normal(size=LANES)
        new.terminated[:] = self.random.random(LANES) < 0.2
        new.truncated[:] = self.random.random(LANES) < 0.2
        first = self.random.normal(size=(LANES, OBSERVATION)).astype(np.float32)
        new.observations[:] = np.where(new.ended[:, None], first, new.next_observations)
        self.collector.store(new)
        fields = (before, self.acted[-1], new.rewards, new.next_observations, new.terminated)
        self.stored.append(np.column_stack(fields).astype(np.float32))

    def train(self) -> None:
        """Change in place what an update, and the end of the warm-up, would change."""
        with torch.no_grad():
            for parameter in self.agent.actor.network.parameters():
                parameter.mul_(1.01)
        self.agent.encoder.set_statistics(*self.replay.observation_statistics())

    def capture(self) -> None:
        self.collector.capture(self.warnings.append)

    def state(self) -> dict[str, Any]:
        return checkpoint.snapshot(
            {
                "replay": self.replay.state_dict(),
                "exploration": self.agent.exploration.generator.get_state(),
                "next": self.collector._observations,
            }
        )

    def is_captured(self) -> list[bool]:
        parts = self.collector._act, self.collector._store
        return [part.is_captured for part in parts if isinstance(part, capture.Captured)]


def test_a_transition_joins_an_observation_its_action_and_what_came_of_both() -> None:
    play = Play(normalization="none")
    for step in range(3 * RING + 1):
        play.step(random=step < 2)
        held = min(step + 1, RING)
        assert (play.replay.added, play.replay.size) == ((step + 1) * ENVS, held * ENVS)
        for age in range(held):  # task-major, a vector step after the other around the ring
            slot = (step - age) % RING * ENVS
            rows = play.replay.storage[:, slot : slot + ENVS].flatten(0, 1)
            assert np.array_equal(rows.numpy(), play.stored[step - age])
    assert len({actions.tobytes() for actions in play.acted}) == len(play.acted)


def test_what_a_graph_would_read_and_write_stays_where_it_is() -> None:
    play = Play(normalization="ema")

    def addresses() -> list[int]:
        collector, replay = play.collector, play.replay
        scale = [*replay.scale.moments.state_dict().values(), *replay.scale._tensors().values()]
        own = [collector._observations, collector._actions, *collector._arrived]
        stored = [replay.storage, replay.ended, replay.maximum, replay._added]
        return [tensor.data_ptr() for tensor in (*own, *stored, *scale)]

    play.step(random=True)
    before = addresses()
    for _ in range(RING):
        play.step()
        play.train()
    assert addresses() == before


def test_where_capturing_fails_everything_continues_as_it_is() -> None:
    """As it does without a CUDA device."""
    plain, play = Play(), Play()
    play.capture()
    for _ in range(capture.WARM_UPS + 3):
        plain.step()
        play.step()
    assert differences(plain.state(), play.state()) == []
    assert np.array_equal(plain.acted, play.acted)
    said = [warning.partition(":")[0] for warning in play.warnings]
    assert said == [f"{w} could not be captured, continuing without" for w in ("acting", "storing")]


# -- GPU ------------------------------------------------------------------------------------------


@pytest.fixture(params=[pytest.param("cuda", marks=on_gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.mark.parametrize("normalization", ["none", "sample", "ema", "return_range", "return_std"])
def test_captured_equals_eager_bit_for_bit(normalization: str, device: torch.device) -> None:
    """Across the ring's seam, ends of episodes, and changes of networks and statistics."""
    eager, play = Play(device, normalization), Play(device, normalization)
    for one in (eager, play):
        for _ in range(2):
            one.step(random=True)
    play.capture()
    for step in range(capture.WARM_UPS + 3 * RING):
        for one in (eager, play):
            one.step()
            one.train()
        assert np.array_equal(eager.acted[-1], play.acted[-1]), step
        assert differences(eager.state(), play.state()) == [], step
    assert (play.warnings, play.is_captured()) == ([], [True, True])


def test_transitions_on_cuda_are_those_on_the_cpu(device: torch.device) -> None:
    """Captured or not: what the replay holds is what the environments said, and in its place."""
    play = Play(device, "none")
    play.capture()
    for step in range(capture.WARM_UPS + 2 * RING):
        play.step()
        slot = step % RING * ENVS
        rows = play.replay.storage[:, slot : slot + ENVS].flatten(0, 1)
        assert np.array_equal(rows.cpu().numpy(), play.stored[step])
    assert play.is_captured() == [True, True]


def test_every_replayed_act_draws_fresh_noise(device: torch.device) -> None:
    play = Play(device)
    play.capture()
    actions = [play.collector.act(random=False).copy() for _ in range(capture.WARM_UPS + 5)]
    assert play.warnings == []
    for one, other in itertools.pairwise(actions):
        assert not (one == other).any()


def test_acting_that_waits_for_the_device_is_not_captured(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager, play = Play(device), Play(device)
    act = play.agent.act

    def waiting(observations: Tensor) -> Tensor:
        actions = act(observations)
        actions.sum().item()
        return actions

    monkeypatch.setattr(play.agent, "act", waiting)
    play.capture()
    for _ in range(capture.WARM_UPS + 4):
        eager.step()
        play.step()
    assert np.array_equal(eager.acted, play.acted)
    assert differences(eager.state(), play.state()) == []
    assert len(play.warnings) == 1
    assert play.is_captured() == [False, True]


class Trained(NamedTuple):
    checkpoints: Path
    captured: list[bool]
    """Both kinds of updates, acting and storing."""


@pytest.fixture(scope="module")
def base() -> Config:
    config, change = load_yaml(REPOSITORY / "configs/toy.yaml"), dataclasses.replace
    return change(
        config,
        env=change(config.env, workers=1, horizon=5),
        train=change(config.train, total_steps=400, warmup_steps=80, envs_per_task=2),
        replay=change(config.replay, capacity=200, batch_size=32),
        network=change(config.network, width=16, observation_norm=True),
        agent=change(config.agent, smto=SmtoConfig("pcgrad"), lr_decay=0.5),
        learner=change(config.learner, device="cuda", precision="fp32", capture="on"),
        evaluation=change(config.evaluation, every=0, final_episodes_per_task=1),
        diagnostics=change(config.diagnostics, every=5),
        checkpoint=change(config.checkpoint, every=200),
    )


@pytest.fixture(scope="module")
def envs(base: Config) -> Iterator[VectorEnv]:
    with make_vector_env(base, base.train.envs_per_task) as shared:
        yield shared


def train(
    config: Config, envs: VectorEnv, folder: Path, state: dict[str, Any] | None = None
) -> Trained:
    config = dataclasses.replace(config, run_dir=str(folder))
    with ExitStack() as stack:
        device = torch.device(config.learner.device)
        trainer = Trainer(config, RunDirectory.create(config), envs, device, stack)
        if state is not None:
            trainer.load(state)
        trainer.open_recorder()
        trainer.learner.prepare()
        trainer.loop()
    parts = *trainer.learner.captured.values(), trainer.collector._act, trainer.collector._store
    captured = [isinstance(p, capture.Captured) and p.is_captured for p in parts]
    return Trained(trainer.run.checkpoints, captured)


def state_at(run: Trained, step: int) -> dict[str, Any]:
    return checkpoint.load(checkpoint.step_path(run.checkpoints, step))


@pytest.fixture(scope="module")
def uninterrupted(base: Config, envs: VectorEnv, tmp_path_factory: Any) -> Trained:
    return train(base, envs, tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_run_equals_an_eager_one_bit_for_bit(
    base: Config,
    envs: VectorEnv,
    uninterrupted: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Never captured, but with the same optimisers: Adam rounds otherwise without `capture`.
    monkeypatch.setattr(capture, "WARM_UPS", 1_000_000)
    eager = train(base, envs, tmp_path)
    assert (eager.captured, uninterrupted.captured) == ([False] * 4, [True] * 4)
    one, other = (state_at(run, base.train.total_steps) for run in (eager, uninterrupted))
    for part in ("replay", "agent"):
        assert differences(one[part], other[part]) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_resumed_captured_run_equals_an_uninterrupted_one(
    base: Config, envs: VectorEnv, uninterrupted: Trained, tmp_path: Path
) -> None:
    half = state_at(uninterrupted, base.checkpoint.every)
    resumed = train(base, envs, tmp_path, half)
    assert resumed.captured == [True] * 4
    one, other = (state_at(run, base.train.total_steps) for run in (resumed, uninterrupted))
    for part in ("agent", "replay", "episodes", "recent_success", "recent_returns"):
        assert differences(one[part], other[part]) == []
