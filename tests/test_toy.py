import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mtrl.config.benchmarks import TOY
from mtrl.envs import toy

tasks = st.sampled_from(TOY)
horizons = st.integers(1, 40)
starts = hnp.arrays(np.float64, 2, elements=st.floats(-2.0, 2.0))


def start_at(task: str, start: NDArray[np.float64], horizon: int) -> toy.PointMass:
    env = toy.PointMass(task, horizon=horizon)
    env.reset()
    env.position = start.copy()
    return env


@given(tasks, starts, horizons)
@settings(max_examples=60, deadline=None)
def test_full_speed_towards_the_target_earns_exactly_the_optimal_return(
    task: str, start: NDArray[np.float64], horizon: int
) -> None:
    env = start_at(task, start, horizon)
    observation, total, truncated, steps = start, 0.0, False, 0
    while not truncated:
        speed = np.clip((np.array(toy.TARGETS[task]) - observation) / toy.STEP_SIZE, -1.0, 1.0)
        observation, reward, terminated, truncated, _ = env.step(speed)
        assert not terminated
        total += reward
        steps += 1
    assert steps == horizon
    scale = toy.REWARD_SCALES[task]
    assert total == pytest.approx(
        toy.optimal_return(task, start, horizon), rel=1e-9, abs=1e-9 * scale
    )


@given(
    tasks,
    starts,
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 30), st.just(2)),
        elements=st.floats(-5.0, 5.0, width=32),  # outside the box too: actions must be clipped
    ),
)
@settings(max_examples=100, deadline=None)
def test_no_actions_beat_the_optimal_return(
    task: str, start: NDArray[np.float64], actions: NDArray[np.float32]
) -> None:
    env = start_at(task, start, len(actions))
    total = sum(env.step(action)[1] for action in actions)
    assert total <= toy.optimal_return(task, start, len(actions)) + 1e-6 * toy.REWARD_SCALES[task]


def test_equal_displacement_costs_each_task_its_own_scale() -> None:
    costs = []
    for task in TOY:
        start = np.array(toy.TARGETS[task]) + np.array([0.25, -0.5])
        _, reward, _, _, info = start_at(task, start, 5).step(np.zeros(2, np.float32))
        assert reward == pytest.approx(-0.75 * toy.REWARD_SCALES[task])
        assert info["success"] == 0.0
        costs.append(-reward)
    assert np.allclose(np.array(costs[1:]) / costs[:-1], 10.0)


def test_success_exactly_inside_the_radius() -> None:
    target = np.array(toy.TARGETS["toy-north"])
    for offset, solved in ((0.0, 1.0), (0.09, 1.0), (-0.09, 1.0), (0.11, 0.0), (-0.11, 0.0)):
        for axis in np.eye(2):
            env = start_at("toy-north", target + offset * axis, 5)
            assert env.step(np.zeros(2, np.float32))[4]["success"] == solved


def test_goals_are_distinct_starts_that_depend_on_the_seed_alone() -> None:
    env, same, other = (toy.PointMass("toy-east", seed=seed) for seed in (3, 3, 4))
    env.reset(options={"goal": 9})
    env.step(np.ones(2, np.float32))
    first = [env.reset(options={"goal": goal})[0] for goal in range(50)]
    assert len(np.unique(first, axis=0)) == 50
    assert np.array_equal(first, [same.reset(options={"goal": goal})[0] for goal in range(50)])
    assert not np.array_equal(first[0], other.reset(options={"goal": 0})[0])


@pytest.mark.filterwarnings("ignore")
def test_follows_the_gymnasium_api_and_reset_seed_restarts_it() -> None:
    env: gymnasium.Env = toy.PointMass("toy-east")
    check_env(env, skip_render_check=True)
