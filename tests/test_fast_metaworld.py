"""The fast Meta-World step against upstream's own: bitwise equal, and upstream untouched."""

import copy
import pickle
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import verify_simulation
from mtrl.envs import metaworld as metaworld_tasks
from mtrl.envs import tasks
from mtrl.envs.fast_metaworld import versions

metaworld = metaworld_tasks.import_metaworld()

from metaworld.utils import reward_utils  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402

from mtrl.envs.fast_metaworld import numerics  # noqa: E402
from mtrl.envs.fast_metaworld.environment import fast_class  # noqa: E402

ENVIRONMENTS = metaworld.env_dict.ALL_V3_ENVIRONMENTS
GOAL = np.array([0.05, 0.65, 0.02, -0.05, 0.85, 0.02])  # of push-v3: the puck, the target


def set_goal(env: Any, goal: NDArray[np.float64], partially_observable: bool = False) -> None:
    data = {
        "rand_vec": goal,
        "env_cls": ENVIRONMENTS["push-v3"],
        "partially_observable": partially_observable,
    }
    env.set_task(metaworld.types.Task("push-v3", pickle.dumps(data)))


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """Upstream's push-v3 and ours."""
    upstream = ENVIRONMENTS["push-v3"]
    return upstream(), fast_class(upstream)()


@pytest.fixture
def both(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    for env in pair:
        set_goal(env, GOAL)
        env.reset()
    return pair


def assert_same(both: tuple[Any, Any], actions: Any) -> None:
    for action in actions:
        verify_simulation.compare_step(*(env.step(action) for env in both))
        assert len({verify_simulation.PhysicsState(env).bits() for env in both}) == 1


def random_actions(steps: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1, 1, (steps, 4)).astype(np.float32)


# ---------------------------------------------------------------- equal to upstream


@pytest.mark.parametrize(
    "task",
    [
        "assembly-v3",  # imports `tolerance` itself; calls static helpers by the class's name
        "basketball-v3",  # keeps live views of the simulation; its resets accumulate
        "faucet-close-v3",  # settles the hand in its own way
        "pick-place-v3",  # its own caging reward; contact forces
        "stick-push-v3",  # two objects
    ],
)
def test_episodes_equal_upstreams(task: str) -> None:
    episodes = (("random", 1, 0), ("scripted", 1, 7), ("saturated", 1, 0))
    goals = {1: metaworld_tasks.goal_vectors((task,), 1)[task]}
    outcome = verify_simulation.compare_task(task, episodes=episodes, steps=40, goals=goals)
    assert outcome.error == ""
    assert outcome.steps == 2 * 3 * 40
    assert outcome.rewards_bitwise


@pytest.mark.parametrize(
    "actions",
    [
        random_actions(5).astype(np.float64),
        random_actions(5).astype(np.float16),
        random_actions(5).astype(np.float64).tolist(),
        np.array([[1, -1, 0, 1], [3, 0, 0, -2]]),
        np.array([[np.inf, -np.inf, np.inf, 0.5]], np.float32),
    ],
    ids=["float64", "float16", "list", "integers", "infinite"],
)
def test_actions_of_any_kind_are_scaled_as_upstream_scales_them(
    both: tuple[Any, Any], actions: Any
) -> None:
    assert_same(both, actions)


def test_hidden_goals_stay_hidden(both: tuple[Any, Any]) -> None:
    for env in both:
        set_goal(env, GOAL, partially_observable=True)
    assert np.array_equal(both[0].reset()[0], both[1].reset()[0])
    assert_same(both, random_actions(3))
    assert not both[1].step(np.zeros(4, np.float32))[0][36:].any()


def test_goals_drawn_at_every_reset_follow_the_same_random_stream(both: tuple[Any, Any]) -> None:
    state = np.random.get_state()  # noqa: NPY002 - upstream draws from NumPy's global stream
    try:
        first = []
        for env in both:
            env._freeze_rand_vec = False
            np.random.seed(5)  # noqa: NPY002
            first.append([env.reset()[0] for _ in range(2)])
        assert np.array_equal(*first)
        assert not np.array_equal(first[0][0], first[0][1])
    finally:
        np.random.set_state(state)  # noqa: NPY002


def test_errors_are_upstreams() -> None:
    for make in (ENVIRONMENTS["push-v3"], fast_class(ENVIRONMENTS["push-v3"])):
        env = make()
        with pytest.raises(RuntimeError, match="set_task"):
            env.step(np.zeros(4, np.float32))
        set_goal(env, GOAL)
        env.reset()
        with pytest.raises(AssertionError, match="size 4"):
            env.step(np.zeros(3, np.float32))
        env.curr_path_length = env.max_path_length
        with pytest.raises(ValueError, match="reset"):
            env.step(np.zeros(4, np.float32))


# ---------------------------------------------------------------- the remembered settled hand


def test_a_changed_model_settles_anew(both: tuple[Any, Any]) -> None:
    before = both[1].data.qpos.copy()
    masses = both[0].model.body_mass.copy()
    for env in both:
        env.model.body_mass[:] = masses * 3
        env.reset()
    assert not np.array_equal(before, both[1].data.qpos)
    assert_same(both, random_actions(3))
    for env in both:
        env.model.opt.gravity[2] = -3
        env.reset()
    assert_same(both, random_actions(3))
    for env in both:
        env.model.body_mass[:] = masses
        env.model.opt.gravity[2] = -9.81
        env.reset()
    assert np.array_equal(before, both[1].data.qpos)


def test_only_so_many_settled_states_are_kept(both: tuple[Any, Any]) -> None:
    from mtrl.envs.fast_metaworld import environment

    settled = both[1]._settled
    settled.clear()
    for number in range(environment.SETTLED_STATES):
        settled[str(number).encode()] = np.zeros(1)
    both[1].reset()
    assert len(settled) == environment.SETTLED_STATES
    assert b"0" not in settled
    assert b"1" in settled


def test_a_copy_goes_on_alike_and_alone(both: tuple[Any, Any]) -> None:
    _, ours = both
    for clone in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        original = copy.deepcopy(both[0])
        original.reset()
        clone.reset()
        before = ours.data.qpos.copy()
        assert_same((original, clone), random_actions(5))
        assert np.array_equal(before, ours.data.qpos)


# ---------------------------------------------------------------- upstream stays as it is


def test_upstreams_classes_and_modules_are_not_modified() -> None:
    upstream = ENVIRONMENTS["door-close-v3"]
    watched = [*upstream.__mro__, reward_utils, np, np.linalg, sys.modules[upstream.__module__]]
    before = [dict(vars(item)) for item in watched]
    env = tasks.make_env("door-close-v3", seed=1, fast=True)
    env.reset()
    env.step(np.zeros(4, np.float32))
    assert isinstance(env.env, upstream)  # type: ignore[attr-defined]
    assert type(env.env) is not upstream  # type: ignore[attr-defined]
    for item, old in zip(watched, before, strict=True):
        changed = [name for name, value in old.items() if vars(item)[name] is not value]
        assert changed == [], f"{item} was modified"


def test_fast_false_is_upstreams_own_class() -> None:
    env = tasks.make_env("push-v3", seed=1, fast=False)
    assert type(env.env) is ENVIRONMENTS["push-v3"]  # type: ignore[attr-defined]


def test_unverified_versions_warn_once_and_use_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(versions.VERIFIED, "mujoco", ("0.0.1",))
    versions.is_verified.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"verified for .*mujoco 0\.0\.1, not for"):
            env = tasks.make_env("push-v3", seed=1, fast=True)
        assert type(env.env) is ENVIRONMENTS["push-v3"]  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not versions.is_verified()
    finally:
        versions.is_verified.cache_clear()


# ---------------------------------------------------------------- the comparison itself


def broken(spoil: Callable[[Any, list[Any]], None]) -> Callable[[type], Any]:
    """`fast_class`, with something wrong at the seventh step of an episode."""

    def make(upstream: type) -> Any:
        class Broken(fast_class(upstream)):  # type: ignore[misc]
            def step(self, action: Any) -> Any:
                result = list(super().step(action))
                if self.curr_path_length == 7:
                    spoil(self, result)
                return tuple(result)

        return Broken

    return make


def wrong_observation(env: Any, result: list[Any]) -> None:
    result[0][5] = np.nextafter(result[0][5], np.inf)


def wrong_reward(env: Any, result: list[Any]) -> None:
    result[1] *= 1 + 1e-11


def wrong_info(env: Any, result: list[Any]) -> None:
    result[4]["success"] = 1.0 - result[4]["success"]


def missing_info(env: Any, result: list[Any]) -> None:
    del result[4]["near_object"]


def wrong_state(env: Any, result: list[Any]) -> None:
    env.data.qacc_warmstart[0] = np.nextafter(env.data.qacc_warmstart[0], np.inf)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (wrong_observation, "step 6: observation"),
        (wrong_reward, "step 6: rewards"),
        (wrong_info, "step 6: info"),
        (missing_info, "step 6: info"),
        (wrong_state, "step 6: physics state"),
    ],
)
def test_the_smallest_difference_is_found(
    spoil: Callable[[Any, list[Any]], None], said: str
) -> None:
    outcome = verify_simulation.compare_task(
        "push-v3",
        reward_versions=("v2",),
        episodes=(("random", 0, 0),),
        steps=9,
        make_fast=broken(spoil),
        goals={0: [GOAL]},
    )
    assert said in outcome.error


# ---------------------------------------------------------------- one vector, one number

finite = st.floats(-1e3, 1e3)
doubles = st.one_of(finite, finite.map(np.float64))
widths = st.sampled_from([0.0, 0, 1e-6, 0.05, 1, 30.0])


def same(expected: Any, actual: Any) -> bool:
    return np.asarray(expected).tobytes() == np.asarray(actual).tobytes()


@given(st.lists(finite, min_size=1, max_size=8), st.sampled_from([None, 2]), st.booleans())
def test_norm(values: list[float], order: int | None, strided: bool) -> None:
    vector = np.array(values)
    if strided:
        vector = np.repeat(vector, 2)[::2]
    assert same(np.linalg.norm(vector, ord=order), numerics.norm(vector, ord=order))


@given(doubles, doubles, widths, widths, st.sampled_from(["long_tail", "gaussian", "hyperbolic"]))
@settings(max_examples=300)
def test_tolerance(x: Any, lower: Any, width: Any, margin: Any, sigmoid: str) -> None:
    arguments = (x, (lower, lower + width), margin, sigmoid)
    assert same(reward_utils.tolerance(*arguments), numerics.tolerance(*arguments))


@pytest.mark.parametrize(
    "arguments", [(0.5, (1.0, 0.0)), (0.5, (0.0, 1.0), -0.1), (2.0, (0, 1), 1.0, "no such")]
)
def test_tolerance_refuses_what_upstream_refuses(arguments: Any) -> None:
    with pytest.raises(ValueError, match=r"bound|margin|sigmoid"):
        numerics.tolerance(*arguments)


@given(st.floats(0, 1), st.one_of(st.floats(0, 1), st.floats(0, 1, width=32).map(np.float32)))
def test_hamacher_product(a: float, b: Any) -> None:
    try:
        expected = reward_utils.hamacher_product(a, b)
    except AssertionError:
        with pytest.raises(AssertionError):
            numerics.hamacher_product(a, b)
        return
    assert same(float(expected), float(numerics.hamacher_product(a, b)))


@given(st.one_of(doubles, st.floats(-3, 3, width=32).map(np.float32)))
def test_clip(x: Any) -> None:
    assert same(np.clip(x, -1, 1), numerics.clip(x, -1, 1))
    assert np.asarray(np.clip(x, -1, 1)).dtype == np.asarray(numerics.clip(x, -1, 1)).dtype


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4))
@settings(max_examples=300)
def test_matrix_to_quaternion(quaternion: list[float]) -> None:
    if np.linalg.norm(quaternion) < 1e-3:
        quaternion = [0.0, 0.0, 0.0, 1.0]
    matrix = Rotation.from_quat(quaternion).as_matrix()
    assert same(Rotation.from_matrix(matrix).as_quat(), numerics.matrix_to_quaternion(matrix))


def test_the_quick_rotation_is_in_use_here() -> None:
    assert numerics.rotation() is not Rotation
