import copy
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrl.replay import ReplayBuffer
from mtrl.reward_scale import MovingAverage, RewardScale, RewardSigma

CPU = torch.device("cpu")


def make_scale(mode, num_tasks, ema_alpha=0.001):
    if mode == "ema":
        return MovingAverage(num_tasks, CPU, ema_alpha)
    return (RewardSigma if mode == "sample" else RewardScale)(num_tasks, CPU)


def make_buffer(num_tasks=2, slots=50, mode="sample", ema_alpha=0.001, **options):
    scale = make_scale(mode, num_tasks, ema_alpha)
    return ReplayBuffer(num_tasks, num_tasks * slots, 3, 2, scale, CPU, **options)


def coded_transition(num_tasks, step, rewards=None, envs=1):
    """Every field [task, env, ...] says which task and which of its transitions it is."""
    transition = step * envs + np.arange(envs)
    code = np.arange(num_tasks)[:, None, None] * 1000.0 + transition[:, None]
    observations = (code + np.array([0.0, 0.25, 0.5])).astype(np.float32)
    actions = (-code - np.array([0.0, 0.5])).astype(np.float32)
    successors = observations + 100_000.0
    terminated = (np.arange(num_tasks)[:, None] + transition) % 3 == 0
    raw = code[..., 0] + 0.125
    if rewards is not None:
        raw = np.asarray(rewards, dtype=np.float64).reshape(num_tasks, envs)
    ended = terminated | ((np.arange(num_tasks)[:, None] + 2 * transition) % 7 == 0)
    given = torch.from_numpy(observations), torch.from_numpy(actions), raw, successors
    return *given, terminated, ended


def fill(buffer, steps, start=0):
    for step in range(start, start + steps):
        buffer.add(*coded_transition(buffer.num_tasks, step, envs=buffer.envs_per_task))


def fill_rewards(buffer, rewards):
    """rewards [step, task] or [step, task, env]."""
    for step, row in enumerate(rewards):
        buffer.add(*coded_transition(buffer.num_tasks, step, row, buffer.envs_per_task))


def exact_sigma(rewards):
    """sqrt(population variance + 1e-8) over the steps, two passes, in extended precision."""
    values = np.asarray(rewards, dtype=np.longdouble)
    variance = ((values - values.mean(0)) ** 2).mean(0)
    return np.sqrt(variance + np.longdouble(1e-8)).astype(np.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40, deadline=None)
@given(
    offsets=st.tuples(*[st.sampled_from([0.0, 1.0, -3.7, 1e12, -1e12, 1e-12])] * 2),
    scales=st.tuples(*[st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 50.0, 1e6])] * 2),
    count=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
)
def test_sigma_counts_every_reward_ever_added(offsets, scales, count, seed):
    noise = np.random.default_rng(seed).standard_normal((count, 2))
    rewards = np.array(offsets) + np.array(scales) * noise
    buffer = make_buffer(slots=7)  # most of the rewards are evicted
    fill_rewards(buffer, rewards)
    # A mean near 1e12 cannot be held finer than the spacing of floats there.
    tolerance = 1e-9 * exact_sigma(rewards) + 16 * np.spacing(np.abs(rewards).max(0))
    error = np.abs(buffer.scale.moments.sigma.numpy() - exact_sigma(rewards))
    assert (error <= tolerance).all()


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e-12, -7.3, 1e12 / 3])
def test_constant_rewards_meet_the_floor(constant):
    buffer = make_buffer()
    fill_rewards(buffer, np.full((200, 2), constant))
    assert buffer.scale.moments.sigma.tolist() == pytest.approx([1e-4, 1e-4], rel=1e-12)
    rewards = buffer.sample(16, generator()).rewards
    assert torch.isfinite(rewards).all()
    np.testing.assert_allclose(rewards.numpy(), constant / 1e-4, rtol=1e-6)


def test_long_stream_with_large_offset():
    rewards = 1e8 + np.random.default_rng(0).standard_normal((4000, 2)) * [1.0, 1e-2]
    buffer = make_buffer(slots=3)
    fill_rewards(buffer, rewards)
    np.testing.assert_allclose(buffer.scale.moments.sigma.numpy(), exact_sigma(rewards), rtol=1e-4)


@pytest.mark.parametrize(
    ("added", "expected"),
    [(1, [0]), (4, range(4)), (7, range(7)), (8, range(1, 8)), (17, range(10, 17))],
)
def test_ring_buffer_keeps_the_newest(added, expected):
    buffer = make_buffer(num_tasks=3, slots=7)
    fill(buffer, added)
    assert buffer.size == len(expected)
    batch = buffer.sample(400, generator())
    for task in range(3):
        steps = set((batch.observations[task, :, 0] - 1000 * task).tolist())
        assert steps == set(map(float, expected))


@pytest.mark.parametrize("envs", [2, 5])
@pytest.mark.parametrize("mode", ["none", "sample"])
def test_several_environments_equal_one_after_the_other(envs, mode):
    """The same transitions, in vector steps of one and of several environments per task."""
    raw = np.random.default_rng(3).normal([7.0, -1e3], [1.0, 30.0], (20 * envs, 2))
    one = make_buffer(slots=10 * envs, mode=mode)
    several = make_buffer(slots=10 * envs + 1, mode=mode, envs_per_task=envs)
    fill_rewards(one, raw)
    fill_rewards(several, raw.reshape(20, envs, 2).transpose(0, 2, 1))
    assert several.size == one.size == 10 * envs
    batches = [buffer.sample(100, generator()) for buffer in (one, several)]
    for field, (a, b) in zip(batches[0]._fields, zip(*batches, strict=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0, msg=field)
    np.testing.assert_allclose(several.scale.moments.sigma.numpy(), exact_sigma(raw), rtol=1e-9)
    torch.testing.assert_close(several.return_bound(), one.return_bound())


def test_ema_is_shared_by_the_environments_of_a_task():
    buffer = make_buffer(num_tasks=1, slots=40, mode="ema", ema_alpha=0.5, envs_per_task=2)
    fill_rewards(buffer, np.array([[[1.0, 3.0]], [[2.0, 6.0]]]))
    mean, variance = 1.0, 1.0  # after the first step: mean 2 * 0.5, variance (0 + 4) / 2
    variance = 0.5 * variance + 0.5 * (0.0 + 4.0) / 2
    first = np.array([1.0, 3.0]) / np.sqrt(variance)
    mean = 0.5 * mean + 0.5 * 4.0
    variance = 0.5 * variance + 0.5 * ((2.0 - mean) ** 2 + (6.0 - mean) ** 2) / 2
    second = np.array([2.0, 6.0]) / np.sqrt(variance)
    got = np.unique(buffer.sample(200, generator()).rewards.numpy())
    np.testing.assert_allclose(got, np.unique(np.concatenate([first, second])), rtol=1e-6)


def test_capacity_is_shared_evenly_and_rounded_down():
    buffer = ReplayBuffer(3, 11, 3, 2, RewardScale(3, CPU), CPU)
    fill(buffer, 20)
    assert buffer.size == 3


@pytest.mark.parametrize("mode", ["none", "sample"])
def test_sampled_rows_are_whole_stored_transitions(mode):
    num_tasks, steps = 3, 23
    buffer = make_buffer(num_tasks, slots=10, mode=mode)
    raw = np.random.default_rng(1).normal(5.0, [[1.0, 10.0, 100.0]], (steps, num_tasks))
    fill_rewards(buffer, raw)
    batch = buffer.sample(60, generator())
    scale = exact_sigma(raw) if mode == "sample" else np.ones(num_tasks)
    for task in range(num_tasks):
        for k in range(60):
            step = round(float(batch.observations[task, k, 0])) - 1000 * task
            assert steps - 10 <= step < steps
            stored = coded_transition(num_tasks, step)
            assert batch.observations[task, k].tolist() == stored[0][task, 0].tolist()
            assert batch.actions[task, k].tolist() == stored[1][task, 0].tolist()
            assert batch.next_observations[task, k].tolist() == stored[3][task, 0].tolist()
            assert batch.terminated[task, k].item() == float(stored[4][task, 0])
            # Divided by sigma, but the mean is kept.
            expected = raw[step, task] / scale[task]
            assert batch.rewards[task, k].item() == pytest.approx(expected, rel=1e-6)


def test_batch_is_float32():
    buffer = make_buffer()
    fill(buffer, 5)
    assert {field.dtype for field in buffer.sample(4, generator())} == {torch.float32}


def test_old_rewards_are_rescaled_by_later_moments():
    buffer = make_buffer(num_tasks=1, slots=100)
    rewards = np.array([[1.0], [3.0]])
    fill_rewards(buffer, rewards)
    # population deviation 1
    got = np.unique(buffer.sample(50, generator()).rewards.numpy())
    np.testing.assert_allclose(got, [1.0, 3.0], rtol=1e-6)
    more = np.array([[101.0], [-97.0]])
    fill_rewards(buffer, more)
    expected = np.concatenate([rewards, more]) / exact_sigma(np.concatenate([rewards, more]))
    got = np.unique(buffer.sample(200, generator()).rewards.numpy())
    np.testing.assert_allclose(got, np.sort(expected[:, 0]), rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.001, 0.3, 1.0])
def test_ema_equals_a_plain_loop(alpha):
    buffer = make_buffer(num_tasks=2, slots=40, mode="ema", ema_alpha=alpha)
    raw = np.random.default_rng(2).normal([3.0, -50.0], [1.0, 20.0], (40, 2))
    fill_rewards(buffer, raw)
    batch = buffer.sample(400, generator())
    for task in range(2):
        mean, variance, expected = 0.0, 1.0, []
        for r in raw[:, task]:
            mean = (1 - alpha) * mean + alpha * r
            variance = (1 - alpha) * variance + alpha * (r - mean) ** 2
            expected.append(r / (np.sqrt(variance) + 1e-8))
        steps = (batch.observations[task, :, 0] - 1000 * task).long().numpy()
        np.testing.assert_allclose(
            batch.rewards[task].numpy(), np.array(expected)[steps], rtol=1e-5
        )


def chi_square(counts):
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def test_slots_are_drawn_uniformly_and_independently_per_task():
    slots, draws = 20, 40_000
    buffer = make_buffer(num_tasks=2, slots=slots)
    fill(buffer, slots)
    batch = buffer.sample(draws, generator(3))
    picked = [(batch.observations[t, :, 0] - 1000 * t).long().numpy() for t in range(2)]
    for one in picked:
        counts = np.bincount(one, minlength=slots)
        # mean 19, deviation 6.2; without replacement it would be 0
        assert 2 < chi_square(counts) < 60
    joint = np.bincount(picked[0] * slots + picked[1], minlength=slots**2)
    assert 250 < chi_square(joint) < 560  # mean 399, deviation 28
    successive = np.bincount(picked[0][:-1] * slots + picked[0][1:], minlength=slots**2)
    assert 250 < chi_square(successive) < 560


def test_equal_seeds_give_equal_batches():
    buffer = make_buffer()
    fill(buffer, 30)
    one, two, other = (buffer.sample(32, generator(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one.observations, other.observations)


def test_sampling_leaves_the_global_random_stream_alone():
    buffer = make_buffer()
    fill(buffer, 30)
    before = torch.get_rng_state()
    buffer.sample(32, generator())
    assert torch.equal(before, torch.get_rng_state())


def test_too_large_a_buffer_is_refused_before_allocation():
    # An attempt to allocate would be torch's RuntimeError instead.
    with pytest.raises(MemoryError) as caught:
        ReplayBuffer(10, 10**13, 39, 4, RewardScale(10, CPU), CPU)
    need, free = (float(x) for x in re.findall(r"([\d.]+) GiB", str(caught.value)))
    assert need == pytest.approx(10**13 * 4 * (39 + 4 + 1 + 39 + 1) / 2**30, rel=1e-3)
    assert 0 < free < need
    assert str(10**13) in str(caught.value)


@pytest.mark.parametrize("mode", ["none", "sample", "ema"])
@pytest.mark.parametrize("steps", [4, 10, 23])
def test_restored_buffer_continues_identically(mode, steps):
    original, restored = (make_buffer(slots=10, mode=mode, ema_alpha=0.2) for _ in range(2))
    fill(original, steps)
    restored.load_state_dict(copy.deepcopy(original.state_dict()))
    for start, more in ((steps, 0), (steps, 5), (steps + 5, 20)):
        for buffer in (original, restored):
            fill(buffer, more, start)
        one, two = (buffer.sample(64, generator(start)) for buffer in (original, restored))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        assert torch.equal(original.return_bound(), restored.return_bound())


@pytest.mark.parametrize("mode", ["none", "sample"])
def test_return_bound_is_the_best_reward_ever_seen(mode):
    raw = np.random.default_rng(4).normal([3.0, -100.0], [2.0, 5.0], (50, 2))
    raw[0] = [40.0, -1.0]  # evicted later
    buffer = make_buffer(slots=5, mode=mode, gamma=0.95)
    fill_rewards(buffer, raw)
    scale = exact_sigma(raw) if mode == "sample" else 1.0
    np.testing.assert_allclose(
        buffer.return_bound().numpy(), raw.max(0) / scale / (1 - 0.95), rtol=1e-5
    )


def test_return_bound_holds_for_episodes_that_end_before_their_horizon():
    """-1 for every step until the goal: at its last step the return is -1, not -1 / (1 - gamma)."""
    for can_terminate, expected in ((False, [-20.0, 60.0]), (True, [0.0, 60.0])):
        buffer = make_buffer(slots=5, mode="none", gamma=0.95, can_terminate=can_terminate)
        fill_rewards(buffer, np.array([[-1.0, 3.0]] * 4))
        np.testing.assert_allclose(buffer.return_bound().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("mode", ["none", "sample", "ema"])
def test_return_bound_is_in_the_units_of_the_sampled_rewards(mode):
    # A policy that earns the best sampled reward for ever is not clipped.
    raw = 0.01 * np.random.default_rng(5).standard_normal((100, 2))
    buffer = make_buffer(slots=100, mode=mode, ema_alpha=0.3)
    fill_rewards(buffer, raw)
    best = buffer.sample(2000, generator()).rewards.amax(1)
    bound = buffer.return_bound()
    assert (bound * (1 - 0.99) >= best * (1 - 1e-4)).all(), (bound * (1 - 0.99), best)


def test_observation_statistics_pool_the_stored_tasks():
    rng = np.random.default_rng(6)
    observations = rng.normal([1e4, 0.0, -3.0], [1.0, 1e-3, 50.0], (12, 2, 3)).astype(np.float32)
    buffer = make_buffer(slots=8)
    for step, row in enumerate(observations):
        _, *rest = coded_transition(2, step)
        buffer.add(torch.from_numpy(row[:, None]), *rest)
    mean, deviation = buffer.observation_statistics()
    held = observations[-8:].astype(np.float64).reshape(-1, 3)
    np.testing.assert_allclose(mean.numpy(), held.mean(0), rtol=1e-5)
    np.testing.assert_allclose(deviation.numpy(), held.std(0), rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    envs=st.integers(1, 3),
    ring=st.integers(1, 6),
    vector_steps=st.integers(1, 20),
    reload=st.integers(1, 20),
)
def test_storage_is_a_ring_of_vector_steps(envs, ring, vector_steps, reload):
    """Slot by slot as a plain array, also where a run is interrupted."""
    buffer = make_buffer(2, ring * envs, "none", envs_per_task=envs)
    rows = np.zeros((2, ring * envs, 3 + 2 + 1 + 3 + 1), np.float32)
    ends = np.zeros((2, ring * envs), np.bool_)
    for step in range(vector_steps):
        here = slice(step % ring * envs, (step % ring + 1) * envs)
        if step == reload:
            state = copy.deepcopy(buffer.state_dict())
            buffer = make_buffer(2, ring * envs, "none", envs_per_task=envs)
            buffer.load_state_dict(state)
            ends[:, (step - 1) % ring * envs : ((step - 1) % ring + 1) * envs] = True
        *fields, ended = coded_transition(2, step, envs=envs)
        buffer.add(*fields, ended)
        flat = [np.asarray(field).reshape(2, envs, -1) for field in fields]
        rows[:, here], ends[:, here] = np.concatenate(flat, 2), ended
        held = min(step + 1, ring) * envs
        assert (buffer.added, buffer.size) == ((step + 1) * envs, held)
        np.testing.assert_array_equal(buffer.state_dict()["storage"], rows[:, :held])
        np.testing.assert_array_equal(buffer.state_dict()["ended"], ends[:, :held])


def plain_n_step(history, env, step, n, gamma):
    """history [step][field][task 0, env]: the sum, its discount, and the last step it contains."""
    total, discount, last = 0.0, 1.0, step
    for k in range(n):
        last = step + k
        total += discount * history[last][2][0, env]
        discount *= gamma
        if history[last][5][0, env] or last + 1 == len(history):
            break
    return total, discount, last


@settings(max_examples=60, deadline=None)
@given(
    envs=st.integers(1, 3),
    vector_steps=st.integers(1, 25),
    held=st.integers(1, 12),
    n=st.integers(1, 8),
    ends=st.floats(0.0, 0.6),
    seed=st.integers(0, 2**32 - 1),
)
def test_n_step_returns_equal_a_walk_along_the_episode(envs, vector_steps, held, n, ends, seed):
    """Across episode ends, the ring's seam and the newest transition."""
    gamma, rng = 0.9, np.random.default_rng(seed)
    buffer = make_buffer(1, held * envs, "none", envs_per_task=envs, gamma=gamma, n_step=n)
    history = []
    for step in range(vector_steps):
        transition = list(coded_transition(1, step, rng.normal(size=envs), envs))
        transition[5] = rng.random((1, envs)) < ends
        transition[4] = transition[5] & (rng.random((1, envs)) < 0.5)
        history.append(transition)
        buffer.add(*transition)
    batch = buffer.sample(50, generator(seed))
    for k in range(50):
        step, env = divmod(round(float(batch.observations[0, k, 0])), envs)
        assert step >= vector_steps - held
        total, discount, last = plain_n_step(history, env, step, n, gamma)
        assert batch.rewards[0, k].item() == pytest.approx(total, rel=1e-5, abs=1e-6)
        assert batch.discounts[0, k].item() == pytest.approx(discount, rel=1e-6)
        successor = history[last][3][0, env]
        np.testing.assert_array_equal(batch.next_observations[0, k].numpy(), successor)
        assert batch.terminated[0, k].item() == float(history[last][4][0, env])


def test_a_restored_buffer_does_not_continue_cut_episodes():
    original, restored = (make_buffer(1, 20, "none", n_step=3, gamma=0.5) for _ in range(2))
    for step in range(4):
        transition = coded_transition(1, step, [1.0])
        original.add(*transition[:4], np.zeros((1, 1), bool), np.zeros((1, 1), bool))
    restored.load_state_dict(copy.deepcopy(original.state_dict()))
    for step in range(4, 8):  # of another episode
        transition = coded_transition(1, step, [100.0])
        restored.add(*transition[:4], np.zeros((1, 1), bool), np.zeros((1, 1), bool))
    batch = restored.sample(200, generator())
    before = batch.observations[0, :, 0] < 3.5
    assert batch.rewards[0, before].max() < 2.0
    newest_before = batch.observations[0, :, 0].round() == 3
    assert (batch.discounts[0, newest_before] == 0.5).all()


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
def test_compiled_sampling_reads_what_plain_sampling_reads(device):
    """While the ring fills, and after its seam has moved."""
    where = torch.device(device)
    scale = RewardSigma(2, where)
    buffer = ReplayBuffer(2, 40, 3, 2, scale, where, envs_per_task=2, n_step=3)
    if device == "cuda":
        buffer.compile(64)
        read = buffer._read
    else:  # not done in runs, but traced all the same
        read = torch.compile(buffer._read_eagerly, fullgraph=True, backend="aot_eager")
    generator = torch.Generator(where).manual_seed(0)
    for step in range(25):
        buffer.add(*(torch.as_tensor(x, device=where) for x in coded_transition(2, step, envs=2)))
        uniform = torch.rand(2, 64, dtype=torch.float64, device=where, generator=generator)
        for ours, plain in zip(
            read(uniform, buffer._zero_temperature),
            buffer._read_eagerly(uniform, buffer._zero_temperature),
            strict=True,
        ):
            torch.testing.assert_close(ours, plain, rtol=1e-6, atol=0.0)
