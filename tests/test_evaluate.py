import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from concurrent import futures

import numpy as np
import pytest
import torch
from conftest import PATIENCE, differences
from numpy.typing import NDArray

from mtrl.agent import Agent
from mtrl.config import Config, EnvConfig, NetworkConfig
from mtrl.config.benchmarks import TOY
from mtrl.device.compilation import Compilation
from mtrl.device.memory import snapshot
from mtrl.envs import tasks, toy
from mtrl.envs.vector import VectorEnv, WorkerError
from mtrl.evaluation import (
    Evaluator,
    Policy,
    evaluate,
    frozen_policy,
    goal_schedule,
)

HORIZON = 20
NUM_GOALS = 9
SEED = 4
TARGETS = np.array([toy.TARGETS[name] for name in TOY], np.float32)
TOWARDS = np.array([True, False, True, False])
GOALS = np.array([[3, 1, 7], [0, 8, 2], [5, 6, 4], [2, 1, 0]])


@pytest.fixture(scope="module")
def envs() -> Iterator[VectorEnv]:
    task_set = tasks.make_task_set(TOY, seed=SEED, horizon=HORIZON, num_goals=NUM_GOALS)
    with VectorEnv(*task_set, workers=2) as envs:
        yield envs


def scripted(observations: NDArray[np.float32]) -> NDArray[np.float32]:
    """Straight to the target in the tasks TOWARDS, straight away from it in the others."""
    to_target = np.clip((TARGETS - observations) / toy.STEP_SIZE, -1.0, 1.0)
    return np.where(TOWARDS[:, None], to_target, -to_target).astype(np.float32)


def play_here(
    lane: int, goal: int, policy: Policy, stop_at_success: bool
) -> tuple[float, bool, int]:
    """One episode, in this process: return, success at any step, steps."""
    env = toy.PointMass(TOY[lane], num_goals=NUM_GOALS, horizon=HORIZON, seed=SEED)
    observation, _ = env.reset(options={"goal": goal})
    total, success, ended, steps = 0.0, False, False, 0
    while not ended:
        everyone = np.zeros((4, 2), np.float32)
        everyone[lane] = observation
        observation, reward, _, ended, info = env.step(policy(everyone)[lane])
        total += reward
        steps += 1
        success = success or bool(info["success"])
        ended = ended or (stop_at_success and success)
    return total, success, steps


@pytest.mark.parametrize("stop", [True, False])
def test_success_and_returns_equal_playing_the_episodes_here(envs: VectorEnv, stop: bool) -> None:
    result = evaluate(scripted, envs, GOALS, stop_at_success=stop)
    expected = [[play_here(lane, int(g), scripted, stop) for g in GOALS[lane]] for lane in range(4)]
    assert np.array_equal(result.returns, [[e[0] for e in row] for row in expected])
    assert np.array_equal(result.success, [[e[1] for e in row] for row in expected])
    assert result.task_success.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert result.success_mean == 0.5


def test_stopping_at_success_shortens_only_the_episodes_that_succeed(envs: VectorEnv) -> None:
    whole = evaluate(scripted, envs, GOALS, stop_at_success=False)
    stopped = evaluate(scripted, envs, GOALS, stop_at_success=True)
    assert np.array_equal(stopped.success, whole.success)
    assert (stopped.returns[TOWARDS] > whole.returns[TOWARDS]).all()
    assert np.array_equal(stopped.returns[~TOWARDS], whole.returns[~TOWARDS])


def test_an_evaluation_does_not_depend_on_the_one_before(envs: VectorEnv) -> None:
    first = evaluate(scripted, envs, GOALS)
    evaluate(lambda observations: -scripted(observations), envs, GOALS[:, :1])
    again = evaluate(scripted, envs, GOALS)
    assert np.array_equal(first.returns, again.returns)
    assert np.array_equal(first.success, again.success)


@pytest.mark.parametrize("stop", [True, False])
def test_goals_are_visited_in_the_order_given_each_once(envs: VectorEnv, stop: bool) -> None:
    seen: list[NDArray[np.float32]] = []

    def watched(observations: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(observations.copy())
        return scripted(observations)

    evaluate(watched, envs, GOALS, stop_at_success=stop)
    starts = toy.PointMass("toy-east", num_goals=NUM_GOALS, seed=SEED).starts.astype(np.float32)
    for lane in range(4):
        visited = [
            int(goal)
            for observation in np.array(seen)[:, lane]
            for goal in np.flatnonzero((starts == observation).all(1))
        ]
        # An idle lane keeps its last observation, never a start: one visit is one row here.
        assert visited == GOALS[lane].tolist()


def test_an_episode_that_succeeds_and_leaves_the_target_counts_as_success(envs: VectorEnv) -> None:
    steps = 0

    def there_and_away(observations: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal steps
        steps += 1
        to_target = np.clip((TARGETS - observations) / toy.STEP_SIZE, -1.0, 1.0)
        return np.float32(to_target if steps < 13 else -np.sign(TARGETS))

    last: dict[str, NDArray[np.float32]] = {}

    def watched(observations: NDArray[np.float32]) -> NDArray[np.float32]:
        last["observations"] = observations.copy()
        return there_and_away(observations)

    result = evaluate(watched, envs, GOALS[:, :1], stop_at_success=False)
    assert (np.abs(last["observations"] - TARGETS).max(1) > 2 * toy.SUCCESS_RADIUS).all()
    assert result.success.all()


def test_a_success_does_not_carry_over_to_the_next_episode(envs: VectorEnv) -> None:
    steps = 0

    def only_the_first_episode(observations: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal steps
        steps += 1
        to_target = np.clip((TARGETS - observations) / toy.STEP_SIZE, -1.0, 1.0)
        return np.float32(to_target if steps <= HORIZON else -to_target)

    result = evaluate(only_the_first_episode, envs, GOALS, stop_at_success=False)
    assert result.success.tolist() == [[True, False, False]] * 4


def toy_config(num_goals: int) -> Config:
    return dataclasses.replace(Config(), env=EnvConfig(benchmark="toy", num_goals=num_goals))


@pytest.mark.parametrize(("num_goals", "episodes"), [(50, 10), (50, 50), (7, 3), (1, 1), (7, 5)])
def test_successive_evaluations_rotate_through_all_goals_without_repeats(
    num_goals: int, episodes: int
) -> None:
    config = toy_config(num_goals)
    visits = np.zeros(num_goals, np.int64)
    for evaluation in range(num_goals):
        goals = goal_schedule(config, episodes, first=evaluation * episodes)
        assert goals.shape == (4, episodes)
        for row in goals:
            assert len(set(row.tolist())) == episodes
        visits += np.bincount(goals[0], minlength=num_goals)
        # As even as can be at any time, so no goal is favoured in the history of a run.
        assert visits.max() - visits.min() <= 1
    assert (visits == episodes).all()


def test_more_episodes_than_goals_are_capped() -> None:
    goals = goal_schedule(toy_config(7), 50, first=3)
    assert goals.shape == (4, 7)
    assert [sorted(row) for row in goals.tolist()] == [list(range(7))] * 4


# -- in the background ----------------------------------------------------------------------------

SMALL = dataclasses.replace(
    Config(),
    env=EnvConfig(benchmark="toy", horizon=HORIZON, num_goals=NUM_GOALS, workers=1),
    network=NetworkConfig(width=8, depth=1, observation_norm=True),
)


def make_agent() -> Agent:
    return Agent(SMALL, observation_dim=2, action_dim=2, device=torch.device("cpu"))


def alter(agent: Agent) -> None:
    """As training does, in place."""
    with torch.no_grad():
        for parameter in agent.policy.actor.parameters():
            parameter.add_(1.0)
        agent.encoder.set_statistics(torch.ones(2), torch.ones(2))


def test_a_frozen_policy_is_that_of_the_agent_then() -> None:
    agent, observations = make_agent(), np.float32(np.random.default_rng(0).normal(size=(4, 2)))
    frozen, now = frozen_policy(agent), torch.from_numpy(observations)
    then = agent.policy(now).detach().numpy()
    assert np.array_equal(frozen(observations), then)
    alter(agent)
    assert np.array_equal(frozen(observations), then)
    assert not np.array_equal(frozen_policy(agent)(observations), then)


def test_a_network_that_draws_while_it_learns_is_evaluated_without() -> None:
    """As one with Dropout does."""

    class Noisy(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean, log_std = self.network(x)
            return mean + self.training * torch.randn(mean.shape), log_std

    agent, observations = make_agent(), np.zeros((4, 2), dtype=np.float32)
    agent.policy.actor = Noisy(agent.policy.actor)
    policy = frozen_policy(agent)
    assert np.array_equal(policy(observations), policy(observations))
    assert agent.policy.training, "the agent's own learns on"


def test_what_is_evaluated_is_the_agent_of_the_start(envs: VectorEnv) -> None:
    agent = make_agent()
    expected = evaluate(frozen_policy(agent), envs, GOALS)
    state = snapshot(agent.state_dict())
    with contextlib.closing(Evaluator(SMALL, envs)) as evaluator:
        evaluator.start(80, agent, GOALS)
        alter(agent)
        started, (result, seconds) = evaluator.collect()
        assert evaluator.under_way is None
    assert started.step == 80
    assert seconds > 0
    assert differences(started.agent, state) == []
    assert differences(started.agent, agent.state_dict()) != []
    assert np.array_equal(result.returns, expected.returns)
    assert np.array_equal(result.success, expected.success)
    envs.check()  # given ones are left running


def test_an_evaluation_waits_while_a_compilation_traces(envs: VectorEnv) -> None:
    """Tracing changes how every module is called: another thread that calls one would fail."""
    agent, tracing, release = make_agent(), threading.Event(), threading.Event()
    expected = evaluate(frozen_policy(agent), envs, GOALS)

    class Traced(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tracing.set()
            assert release.wait(PATIENCE)
            return x + 1.0

    compilation = Compilation(lambda: torch.fx.symbolic_trace(Traced()))
    assert tracing.wait(PATIENCE)
    with contextlib.closing(Evaluator(SMALL, envs)) as evaluator:
        evaluator.start(80, agent, GOALS)
        assert evaluator.under_way is not None
        futures.wait([evaluator.under_way.future], timeout=0.5)
        assert evaluator.finished() is None
        release.set()
        _, (result, _) = evaluator.collect()
    compilation.join(PATIENCE)
    assert compilation.failure == ""
    assert np.array_equal(result.returns, expected.returns)


def test_a_dead_evaluation_worker_is_named_and_an_abandoned_evaluation_ends() -> None:
    with contextlib.closing(Evaluator(SMALL)) as evaluator:
        evaluator.start(0, make_agent(), GOALS)
        assert evaluator.finished() is None, "the worker is still starting"
        assert evaluator.envs is not None
        os.kill(evaluator.envs.worker_pids[0], signal.SIGKILL)
        assert evaluator.under_way is not None
        futures.wait([evaluator.under_way.future], timeout=PATIENCE)
        with pytest.raises(WorkerError, match=r"toy-east.* was killed by signal 9"):
            evaluator.finished()
        with pytest.raises(WorkerError, match=r"toy-east.* was killed by signal 9"):
            evaluator.collect()
    with contextlib.closing(Evaluator(SMALL)) as evaluator:
        evaluator.start(0, make_agent(), GOALS)
        assert evaluator.under_way is not None
    assert evaluator.under_way.future.done(), "closing waits for the thread, not for the episodes"
    assert isinstance(evaluator.under_way.future.exception(), WorkerError)
