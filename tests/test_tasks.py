"""Tasks, goals and single environments, against upstream Meta-World itself."""

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mtrl.config import benchmarks
from mtrl.envs import metaworld as metaworld_tasks
from mtrl.envs import tasks
from mtrl.envs.goals import goal_index, lane_goals

metaworld = metaworld_tasks.import_metaworld()

SEED = 12


def rand_vecs(benchmark: Any) -> dict[str, list[NDArray[np.float64]]]:
    goals: dict[str, list[NDArray[np.float64]]] = {}
    for task in benchmark.train_tasks:
        goals.setdefault(task.env_name, []).append(pickle.loads(task.data)["rand_vec"])
    return goals


@functools.cache
def upstream_mt1(name: str) -> Any:
    """MT1 with its first goals only: each takes a real reset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metaworld, "_N_GOALS", 20)
        return metaworld.MT1(name, seed=SEED)


@pytest.fixture(scope="module")
def mt10_goals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[np.float64]]:
    with pytest.MonkeyPatch.context() as patch:
        # A fresh cache: goals cached by older code must not hide a bug.
        patch.setenv("MTRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        return metaworld_tasks.goal_vectors(benchmarks.MT10, SEED)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def random_actions(steps: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, (steps, 4)).astype(np.float32)


# ---------------------------------------------------------------- benchmarks and goals


def test_task_order_is_upstreams() -> None:
    env_dict = metaworld.env_dict
    assert tuple(env_dict.MT10_V3) == benchmarks.MT10
    assert tuple(env_dict.MT25_V3) == benchmarks.MT25
    assert tuple(env_dict.MT50_V3) == benchmarks.MT50


def test_mt10_goals_equal_upstreams_bit_for_bit(
    mt10_goals: dict[str, NDArray[np.float64]],
) -> None:
    expected = rand_vecs(metaworld.MT10(seed=SEED))
    assert list(expected) == list(mt10_goals)
    for name in benchmarks.MT10:
        assert mt10_goals[name].dtype == np.float64
        assert np.array_equal(mt10_goals[name], np.array(expected[name])), name


def test_goals_of_the_tasks_outside_mt10_equal_upstreams(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Two goals per task keep it to seconds; a wrong number of draws in any task shifts the next.
    names = tuple(name for name in benchmarks.MT50 if name not in benchmarks.MT10)
    env_dict = metaworld.env_dict
    classes = env_dict._get_env_dict(list(names))
    arguments = env_dict._get_args_kwargs(env_dict.ALL_V3_ENVIRONMENTS, classes)
    monkeypatch.setenv("MTRL_CACHE", str(tmp_path))
    monkeypatch.setattr(metaworld, "_N_GOALS", 2)
    monkeypatch.setattr(metaworld_tasks, "MAX_GOALS", 2)
    goals = metaworld_tasks.goal_vectors(names, SEED)
    expected = metaworld._make_tasks(classes, arguments, {"partially_observable": False}, SEED)
    assert [task.env_name for task in expected] == [name for name in names for _ in range(2)]
    for index, task in enumerate(expected):
        rand_vec = pickle.loads(task.data)["rand_vec"]
        assert np.array_equal(goals[task.env_name][index % 2], rand_vec), task.env_name


def test_drawing_goals_and_simulating_leave_numpys_global_random_state_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MTRL_CACHE", str(tmp_path))
    before = np.random.get_state()  # noqa: NPY002
    env = tasks.make_env("drawer-close-v3", seed=3)
    env.reset()
    env.step(np.zeros(4, np.float32))
    after = np.random.get_state()  # noqa: NPY002
    assert len(list(tmp_path.rglob("*.npz"))) == 1, "the goals were not drawn here"
    assert np.array_equal(before[1], after[1])
    assert before[2:] == after[2:]


# ---------------------------------------------------------------- the goal cache


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


def flip_one_bit_of_a_goal(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[600] ^= 1  # well inside the [50, 3] float64 array of the first member
    path.write_bytes(data)


def other_tasks_goals(path: Path) -> None:
    np.savez(path, **{"reach-v3": np.zeros((50, 3))})


def too_few_goals(path: Path) -> None:
    np.savez(path, **{"drawer-close-v3": np.zeros((7, 3))})


def not_finite(path: Path) -> None:
    np.savez(path, **{"drawer-close-v3": np.full((50, 3), np.nan)})


@pytest.fixture(scope="module")
def drawer_goals() -> NDArray[np.float64]:
    return metaworld_tasks.goal_vectors(("drawer-close-v3",), 5)["drawer-close-v3"]


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        empty,
        garbage,
        flip_one_bit_of_a_goal,
        other_tasks_goals,
        too_few_goals,
        not_finite,
    ],
)
def test_a_damaged_cache_file_is_rebuilt(
    damage: Callable[[Path], None],
    drawer_goals: NDArray[np.float64],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MTRL_CACHE", str(tmp_path))
    metaworld_tasks.goal_vectors(("drawer-close-v3",), 5)
    (path,) = tmp_path.rglob("*.npz")
    damage(path)
    goals = metaworld_tasks.goal_vectors(("drawer-close-v3",), 5)["drawer-close-v3"]
    assert np.array_equal(goals, drawer_goals)
    assert list(tmp_path.rglob("*.npz")) == [path]
    with np.load(path) as stored:
        assert np.array_equal(stored["drawer-close-v3"], drawer_goals)


def test_the_cache_is_read_when_it_is_good(
    drawer_goals: NDArray[np.float64], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MTRL_CACHE", str(tmp_path))
    metaworld_tasks.goal_vectors(("drawer-close-v3",), 5)
    (path,) = tmp_path.rglob("*.npz")
    marked = drawer_goals + 1.0  # only a reader of the file can return these
    np.savez(path, **{"drawer-close-v3": marked})
    goals = metaworld_tasks.goal_vectors(("drawer-close-v3",), 5)["drawer-close-v3"]
    assert np.array_equal(goals, marked)


def test_an_interrupted_write_leaves_no_damaged_cache_file(
    drawer_goals: NDArray[np.float64], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def disk_full(file: Any, **arrays: Any) -> None:
        Path(file).write_bytes(b"PK\x03\x04 half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("MTRL_CACHE", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", disk_full)
        goals = metaworld_tasks.goal_vectors(("drawer-close-v3",), 5)["drawer-close-v3"]
    assert np.array_equal(goals, drawer_goals)
    partial = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    goals = metaworld_tasks.goal_vectors(("drawer-close-v3",), 5)["drawer-close-v3"]
    assert np.array_equal(goals, drawer_goals)
    final = {path.name for path in tmp_path.rglob("*.npz")} - partial
    assert len(final) == 1, "the half-written bytes went into the file that is read"


def test_a_failed_write_leaves_no_temporary_file_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def disk_full(file: Any, **arrays: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("MTRL_CACHE", str(tmp_path))
    monkeypatch.setattr(np, "savez", disk_full)
    metaworld_tasks.goal_vectors(("drawer-close-v3",), 5)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_cache_folder_may_be_read_only_or_impossible(
    drawer_goals: NDArray[np.float64], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, blocked = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    folder.chmod(0o555)
    blocked.write_text("not a folder")  # stops root too, whom permissions do not
    try:
        for base in (folder, blocked):
            monkeypatch.setenv("MTRL_CACHE", str(base))
            goals = metaworld_tasks.goal_vectors(("drawer-close-v3",), 5)["drawer-close-v3"]
            assert np.array_equal(goals, drawer_goals)
    finally:
        folder.chmod(0o755)


# ---------------------------------------------------------------- which goal an episode gets

seeds = st.integers(0, 2**31 - 1)
names = st.sampled_from(benchmarks.all_tasks())


@given(seeds, names, st.integers(0, 40), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_every_sweep_visits_each_goal_once(
    seed: int, name: str, sweep: int, num_goals: int
) -> None:
    episodes = range(sweep * num_goals, (sweep + 1) * num_goals)
    visited = [goal_index(seed, name, episode, num_goals) for episode in episodes]
    assert sorted(visited) == list(range(num_goals))
    # Whatever was asked before: a resumed run asks only for later episodes.
    assert visited[-1] == goal_index(seed, name, episodes[-1], num_goals)


def test_goal_orders_differ_between_tasks_seeds_and_sweeps() -> None:
    orders = {
        tuple(goal_index(seed, name, 50 * sweep + i, 50) for i in range(50))
        for name in benchmarks.all_tasks()
        for seed in (0, 1, 2)
        for sweep in (0, 1)
    }
    assert len(orders) == len(benchmarks.all_tasks()) * 3 * 2


@given(seeds, st.integers(1, 12), st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_lanes_of_a_task_share_its_goals_out(seed: int, copies: int, num_goals: int) -> None:
    """Every goal once before any comes again, in whichever lane; other tasks' lanes alike."""
    task_names = [name for name in ("reach-v3", "push-v3") for _ in range(copies)]
    visited = [
        lane_goals(seed, task_names, np.full(2 * copies, episode), copies, num_goals)
        for episode in range(num_goals)
    ]
    for index, name in enumerate(("reach-v3", "push-v3")):
        order = [g for row in visited for g in row[index * copies : (index + 1) * copies]]
        assert order == [goal_index(seed, name, i, num_goals) for i in range(copies * num_goals)]


@given(seeds, st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_lanes_that_have_had_more_episodes_are_further_in_the_order(
    seed: int, copies: int, num_goals: int, draw: int
) -> None:
    task_names = [name for name in ("reach-v3", "push-v3") for _ in range(copies)]
    episodes = np.random.default_rng(draw).integers(0, 30, 2 * copies)
    goals = lane_goals(seed, task_names, episodes, copies, num_goals)
    assert goals.tolist() == [
        goal_index(seed, name, episodes[lane] * copies + lane % copies, num_goals)
        for lane, name in enumerate(task_names)
    ]


# ---------------------------------------------------------------- make_env


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"task_name": "reach-v2"}, r"reach-v2.*reach-v3.*toy-east"),
        ({"reward_version": "v3"}, r"v1.*v2.*v3"),
        ({"horizon": 0}, r"1 and 500.*0"),
        ({"horizon": 501}, r"1 and 500.*501"),
        ({"num_goals": 0}, r"1 and 50.*0"),
        ({"num_goals": 51}, r"1 and 50.*51"),
    ],
)
def test_bad_arguments_name_what_is_allowed(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tasks.make_env(**{"task_name": "reach-v3", **arguments})


@pytest.mark.filterwarnings("ignore")
def test_make_env_follows_the_gymnasium_api() -> None:
    check_env(tasks.make_env("reach-v3", seed=SEED), skip_render_check=True)


@pytest.mark.filterwarnings("ignore")
def test_make_env_of_a_registered_environment_is_what_a_run_sees() -> None:
    env = tasks.make_env("Pendulum-v1", seed=SEED, horizon=900, num_goals=3)
    check_env(env, skip_render_check=True)
    np.testing.assert_array_equal(env.action_space.high, [1.0])  # Pendulum's own: 2
    starts = [env.reset(options={"goal": goal})[0] for goal in (0, 1, 0)]
    np.testing.assert_array_equal(starts[0], starts[2])
    assert not np.array_equal(starts[0], starts[1])
    *_, info = env.step(np.zeros(1, np.float32))
    assert info["success"] is False


@pytest.mark.parametrize("horizon", [1, 7, 500])
def test_episodes_are_truncated_exactly_at_the_horizon_and_never_terminated(horizon: int) -> None:
    env = tasks.make_env("reach-v3", horizon=horizon, num_goals=2, seed=SEED)
    for _ in range(1 if horizon == 500 else 2):
        env.reset()
        for step in range(1, horizon + 1):
            observation, reward, terminated, truncated, info = env.step(np.ones(4, np.float32))
            assert observation.shape == (39,)
            assert observation.dtype == np.float64
            assert isinstance(reward, float)
            assert info["success"] in (0.0, 1.0)
            assert not terminated
            assert truncated == (step == horizon)


def test_reset_sweeps_the_goals_and_a_seed_restarts_the_order() -> None:
    env = tasks.make_env("reach-v3", num_goals=5, seed=SEED)
    visited = [env.reset()[1]["goal"] for _ in range(10)]
    assert sorted(visited[:5]) == sorted(visited[5:]) == list(range(5))
    assert [env.reset(seed=SEED)[1]["goal"]] + [
        env.reset()[1]["goal"] for _ in range(4)
    ] == visited[:5]


@pytest.mark.parametrize("name", ["door-open-v3", "hammer-v3"])
def test_the_goals_of_make_env_are_mt1s(name: str) -> None:
    benchmark = upstream_mt1(name)
    env = tasks.make_env(name, seed=SEED)
    upstream = benchmark.train_classes[name]()
    observations = []
    for index in (0, 1, 19):
        upstream.set_task(benchmark.train_tasks[index])
        observation, info = env.reset(options={"goal": index})
        assert np.array_equal(observation, upstream.reset()[0])
        assert info["goal"] == index
        assert env.observation_space.contains(observation)
        observations.append(observation)
    assert len(np.unique(observations, axis=0)) == 3


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("name", ["door-open-v3", "hammer-v3"])
def test_steps_equal_upstreams_environment_bit_for_bit(name: str, version: str) -> None:
    benchmark = upstream_mt1(name)
    upstream = benchmark.train_classes[name](reward_function_version=version)
    upstream.set_task(benchmark.train_tasks[4])
    upstream.reset()
    env = tasks.make_env(name, reward_version=version, seed=SEED)
    env.reset(options={"goal": 4})
    rewards = []
    for action in random_actions(60):
        theirs, ours = upstream.step(action), env.step(action)
        assert np.array_equal(theirs[0], ours[0])
        assert theirs[1] == ours[1]
        assert theirs[4] == ours[4]
        rewards.append(ours[1])
    assert len(set(rewards)) > 10, "a constant reward would compare equal by accident"
    if version == "v1":
        env = tasks.make_env(name, reward_version="v2", seed=SEED)
        env.reset(options={"goal": 4})
        assert [env.step(action)[1] for action in random_actions(60)] != rewards


# ---------------------------------------------------------------- what exact resume relies on


def episode(env: gymnasium.Env, goal: int, steps: int, seed: int) -> list[NDArray[np.float64]]:
    rows = [env.reset(options={"goal": goal})[0]]
    for action in random_actions(steps, seed):
        observation, reward, _, _, info = env.step(action)
        rows.append(np.append(observation, [reward, info["success"]]))
    return rows


@pytest.mark.parametrize("name", benchmarks.MT10)
def test_an_episode_does_not_depend_on_the_environments_past(
    name: str, mt10_goals: dict[str, NDArray[np.float64]]
) -> None:
    make = functools.partial(metaworld_tasks.MetaWorldTask, name, mt10_goals[name])
    fresh, used = make(), make()
    past = episode(used, goal=31, steps=80, seed=1)
    expected, actual = (episode(env, goal=6, steps=15, seed=2) for env in (fresh, used))
    for step, (a, b) in enumerate(zip(expected, actual, strict=True)):
        assert np.array_equal(a, b), f"{name}: differs at step {step} by {np.abs(a - b).max()}"
    assert np.any(expected[0][36:] != 0), "the goal is not in the observation"
    assert not np.array_equal(expected[0], past[0]), "another goal, the same observation"
