"""How sampled rewards are scaled by the returns of finished episodes."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrl.replay import ReplayBuffer
from mtrl.reward_scale import MeanReward, ReturnRange, ReturnScale, ReturnStd

CPU = torch.device("cpu")
GAMMA, SUPPORT, HORIZON, ENTROPY = 0.9, 5.0, 12, 4.0


def make_scale(kind: str, tasks: int = 2) -> ReturnScale:
    arguments = (tasks, CPU, GAMMA, SUPPORT, HORIZON)
    if kind == "return_range":
        return ReturnRange(*arguments, target_entropy=ENTROPY)
    return ReturnStd(*arguments)


def play(scale: ReturnScale, steps: int, ends: float, seed: int, tasks: int, envs: int):
    """Random episodes -> per task, G of every step of its finished episodes, by definition."""
    rng = np.random.default_rng(seed)
    returns: list[list[float]] = [[] for _ in range(tasks)]
    episodes: dict[tuple[int, int], list[float]] = {}
    for _ in range(steps):
        rewards = rng.normal([[1.0], [-30.0], [0.01]][:tasks], [[1.0], [5.0], [0.0]][:tasks])
        rewards = rewards + 0.1 * rng.normal(size=(tasks, envs))
        terminated = rng.random((tasks, envs)) < ends
        done = terminated.copy()
        for lane in np.ndindex(tasks, envs):
            episode = episodes.setdefault(lane, [])
            episode.append(float(rewards[lane]))
            done[lane] |= len(episode) == HORIZON
            if done[lane]:
                last = 0.0 if terminated[lane] else float(np.mean(episode)) / (1 - GAMMA)
                for t in range(len(episode)):
                    rest = episode[t:]
                    value = sum(GAMMA**k * r for k, r in enumerate(rest))
                    returns[lane[0]].append(value + GAMMA ** len(rest) * last)
                episodes[lane] = []
        scale.observe(rewards, terminated, done)
    return returns


@settings(max_examples=30)
@given(
    steps=st.integers(1, 60),
    ends=st.floats(0.0, 0.4),
    envs=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
@pytest.mark.parametrize("kind", ["return_range", "return_std"])
def test_scale_is_that_of_the_finished_episodes_returns(kind, steps, ends, envs, seed):
    tasks = 3
    scale = make_scale(kind, tasks)
    returns = play(scale, steps, ends, seed, tasks, envs)
    temperature = torch.tensor([0.0, 0.1, 2.0])
    got = scale.divisor(temperature)
    for task in range(tasks):
        if not returns[task]:
            assert got[task] == torch.inf
            continue
        largest = max(map(abs, returns[task]))
        if kind == "return_range":
            bonus = float(temperature[task]) * ENTROPY / (2 * (1 - GAMMA))
            expected = (largest + bonus) / SUPPORT
        else:
            expected = max(float(np.std(returns[task])), largest / SUPPORT)
        assert got[task].item() == pytest.approx(expected, rel=1e-6)


def test_rewards_count_nothing_before_the_first_return_and_fit_the_support_after_it():
    scale = make_scale("return_range", 1)
    buffer = ReplayBuffer(1, 50, 1, 1, scale, CPU, gamma=GAMMA)
    flag = np.zeros((1, 1), dtype=bool)
    one = torch.ones(1, 1, 1)
    for step in range(HORIZON):
        if step:
            rewards = buffer.sample(8, torch.Generator().manual_seed(0)).rewards
            assert (rewards == 0).all()
        raw, end = np.full((1, 1), 7.0), np.full((1, 1), step == HORIZON - 1)
        scale.observe(raw, flag, end)
        buffer.add(one, one, raw, np.ones((1, 1, 1), np.float32), flag, end)
    rewards = buffer.sample(8, torch.Generator().manual_seed(0)).rewards
    # The return of 7 for ever is the support's end.
    torch.testing.assert_close(rewards / (1 - GAMMA), torch.full((1, 8), SUPPORT))


@pytest.mark.parametrize("kind", ["return_range", "return_std"])
def test_rewards_that_are_always_zero_stay_finite(kind):
    scale = make_scale(kind, 1)
    zero = np.zeros((1, 1))
    for step in range(HORIZON):
        scale.observe(zero, zero > 0, np.full((1, 1), step == HORIZON - 1))
    divisor = scale.divisor(torch.zeros(1))
    assert torch.isfinite(divisor).all()
    assert (divisor > 0).all()


@pytest.mark.parametrize("kind", ["return_range", "return_std"])
def test_the_first_reward_of_all_fits_the_support_before_its_episode_has_ended(kind):
    scale = make_scale(kind, 1)
    buffer = ReplayBuffer(1, 50, 1, 1, scale, CPU, gamma=GAMMA)
    flag, one = np.zeros((1, 1), dtype=bool), torch.ones(1, 1, 1)
    for step in range(3 * HORIZON + 2):
        raw = np.full((1, 1), -40.0 if step == 3 * HORIZON + 1 else 0.0)
        end = np.full((1, 1), step % HORIZON == HORIZON - 1)
        scale.observe(raw, flag, end)
        buffer.add(one, one, raw, np.ones((1, 1, 1), np.float32), flag, end)
    rewards = buffer.sample(500, torch.Generator().manual_seed(0), torch.zeros(1)).rewards
    assert rewards.min().item() == pytest.approx(-SUPPORT)


def test_a_restored_scale_continues_identically():
    original, restored = (make_scale("return_std") for _ in range(2))
    play(original, 5 * HORIZON, 0.0, seed=1, tasks=2, envs=2)  # all episodes have just ended
    restored.load_state_dict(copy.deepcopy(original.state_dict()))
    for scale in (original, restored):
        play(scale, 3 * HORIZON, 0.1, seed=2, tasks=2, envs=2)
    assert torch.equal(original.divisor(torch.ones(2)), restored.divisor(torch.ones(2)))


def test_mean_rewards_are_compared_with_the_largest_and_held_until_a_reset():
    scale = MeanReward(3, CPU)
    rewards = torch.tensor([[1.0, 3.0], [8.0, 8.0], [0.0, 0.0]], dtype=torch.float64)
    temperature = torch.ones(3)
    assert scale.divisor(temperature).tolist() == [1.0, 1.0, 1.0]
    scale.stored(rewards)
    assert scale.divisor(temperature).tolist() == [1.0, 1.0, 1.0]
    scale.refresh()
    shares = scale.divisor(temperature).tolist()
    assert shares == [0.25, 1.0, 1.0], "a task without rewards keeps those that come"
    held = scale.divisor(temperature).clone()
    scale.stored(10.0 * rewards)
    assert torch.equal(scale.divisor(temperature), held)
    other = MeanReward(3, CPU)
    other.load_state_dict(copy.deepcopy(scale.state_dict()))
    assert torch.equal(other.divisor(temperature), held)
    rare = MeanReward(2, CPU)
    rare.stored(torch.tensor([[1e-9], [5.0]], dtype=torch.float64))
    rare.refresh()
    assert rare.divisor(temperature).tolist() == [1e-3, 1.0], "not made larger without limit"
    negative = MeanReward(2, CPU)
    negative.stored(torch.tensor([[-1.0], [5.0]], dtype=torch.float64))
    negative.refresh()
    assert negative.divisor(temperature).tolist() == [0.2, 1.0]
