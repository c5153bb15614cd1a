import copy
import itertools

import numpy as np
import pytest
import torch
from torchjd.aggregation import PCGrad as ReferencePCGrad

from mtrl.smto import SMTO, available, create, register
from mtrl.smto import base as smto_base

GOLDEN = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=torch.float64)
ALL = ("unitary", "fixed", "pcgrad")


def make(name, num_tasks, **options):
    if name == "fixed":
        options.setdefault("weights", [1.0 + 0.5 * i for i in range(num_tasks)])
    return create(name, num_tasks, **options)


def random_jacobian(num_tasks, dim=3, seed=0):
    """Few dimensions, so that many pairs of tasks conflict."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tasks, dim, dtype=torch.float64, generator=generator)


def random_orders(num_tasks, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.permutation(num_tasks).tolist() for _ in range(num_tasks)]


def published_pcgrad(jacobian, orders):
    """Yu et al. 2020, Algorithm 1, on the gradient vectors; the mean instead of the sum."""
    original = [row.numpy() for row in jacobian]
    projected = []
    for i, own_order in enumerate(orders):
        g = original[i].copy()
        for j in own_order:
            if j == i or not original[j].any():
                continue
            product = g @ original[j]
            if product < 0:
                g = g - product / (original[j] @ original[j]) * original[j]
        projected.append(g)
    return np.mean(projected, axis=0)


def pcgrad_direction(jacobian, orders):
    smto = create("pcgrad", len(jacobian))
    return (smto.project(jacobian @ jacobian.T, torch.tensor(orders)) @ jacobian).numpy()


def pcgrad_weights(jacobian, **options):
    return create("pcgrad", len(jacobian), **options).weights(gramian=jacobian @ jacobian.T)


def test_pcgrad_golden_values():
    weights = pcgrad_weights(GOLDEN).numpy()
    np.testing.assert_allclose(2 * weights, [1 + 22 / 18, 1 + 22 / 38], rtol=1e-12)
    np.testing.assert_allclose(2 * weights, [2.2222, 1.5789], atol=5e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10])
def test_pcgrad_equals_the_published_loop(num_tasks, seed):
    jacobian = random_jacobian(num_tasks, seed=seed)
    orders = random_orders(num_tasks, seed)
    expected = published_pcgrad(jacobian, orders)
    np.testing.assert_allclose(pcgrad_direction(jacobian, orders), expected, rtol=1e-8, atol=1e-10)


def test_pcgrad_equals_the_published_loop_with_a_zero_gradient():
    jacobian = random_jacobian(5, seed=3)
    jacobian[2] = 0.0
    orders = random_orders(5, 3)
    np.testing.assert_allclose(
        pcgrad_direction(jacobian, orders), published_pcgrad(jacobian, orders), rtol=1e-8
    )


@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_of_two_tasks_equals_torchjd(seed):
    jacobian = random_jacobian(2, seed=seed)
    jacobian[1] *= -torch.sign(jacobian[0] @ jacobian[1])  # make them conflict
    ours = create("pcgrad", 2).combine(jacobian, torch.zeros(2, dtype=torch.float64))
    np.testing.assert_allclose(2 * ours.numpy(), ReferencePCGrad()(jacobian).numpy(), rtol=1e-9)
    assert not np.allclose(ours.numpy(), jacobian.mean(0).numpy())


@pytest.fixture(scope="module")
def conflicting():
    """Three tasks in the plane for which all 8 combinations of orders give other directions."""
    angles = torch.tensor([0.0, 1.9, 4.0], dtype=torch.float64)
    lengths = torch.tensor([[1.0], [2.0], [0.7]], dtype=torch.float64)
    return lengths * torch.stack([angles.cos(), angles.sin()], dim=1)


def possible_directions(jacobian):
    """One direction for every combination of the rows' own orders."""
    orders = list(itertools.permutations(range(len(jacobian))))
    combinations = itertools.product(orders, repeat=len(jacobian))
    return np.array([published_pcgrad(jacobian, own) for own in combinations])


def distinct(rows):
    return np.unique(np.round(rows, 9), axis=0)


def test_pcgrad_reaches_every_combination_of_orders_as_torchjd_does(conflicting):
    # Eight: one order shared by all rows would reach at most the six permutations.
    expected = distinct(possible_directions(conflicting))
    assert len(expected) == 8
    smto, losses = create("pcgrad", 3), torch.zeros(3, dtype=torch.float64)
    ours = distinct([smto.combine(conflicting, losses).numpy() for _ in range(200)])
    np.testing.assert_allclose(ours, expected, atol=1e-8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = ReferencePCGrad()
        theirs = distinct([reference(conflicting).numpy() / 3 for _ in range(200)])
    np.testing.assert_allclose(ours, theirs, atol=1e-8)


def test_pcgrad_draws_all_orders_equally_often(conflicting):
    # Orders are uniform and rows independent, so each of the 8 directions has probability 1/8.
    expected = possible_directions(conflicting)
    smto, losses = create("pcgrad", 3, seed=1), torch.zeros(3, dtype=torch.float64)
    draws = np.array([smto.combine(conflicting, losses).numpy() for _ in range(2000)])
    error = np.abs(draws.mean(0) - expected.mean(0))
    assert (error <= 5 * expected.std(0) / np.sqrt(len(draws))).all()
    counts = np.unique(np.round(draws, 9), axis=0, return_counts=True)[1]
    assert (np.abs(counts - 250) < 5 * np.sqrt(2000 * 7 / 64)).all()


def test_pcgrad_seeds(conflicting):
    def sequence(seed):
        smto = create("pcgrad", 3, seed=seed)
        gramian = conflicting @ conflicting.T
        return torch.stack([smto.weights(gramian=gramian) for _ in range(10)])

    assert torch.equal(sequence(4), sequence(4))
    assert not torch.equal(sequence(4), sequence(5))


def test_pcgrad_leaves_the_global_random_stream_alone(conflicting):
    before = torch.get_rng_state()
    pcgrad_weights(conflicting)
    assert torch.equal(before, torch.get_rng_state())


def test_pcgrad_state_continues_the_random_stream(conflicting):
    gramian = conflicting @ conflicting.T
    original, restored = create("pcgrad", 3, seed=2), create("pcgrad", 3, seed=99)
    for _ in range(5):
        original.weights(gramian=gramian)
    state = copy.deepcopy(original.state_dict())
    uninterrupted = [original.weights(gramian=gramian) for _ in range(10)]
    restored.load_state_dict(state)
    resumed = [restored.weights(gramian=gramian) for _ in range(10)]
    assert torch.equal(torch.stack(uninterrupted), torch.stack(resumed))


def test_pcgrad_does_not_change_the_gramian(conflicting):
    gramian = conflicting @ conflicting.T
    before = gramian.clone()
    create("pcgrad", 3).weights(gramian=gramian)
    assert torch.equal(gramian, before)


@pytest.mark.parametrize("num_tasks", [1, 2, 5])
def test_pcgrad_without_conflict_is_the_plain_mean(num_tasks):
    jacobian = random_jacobian(num_tasks, dim=6).abs()  # all inner products positive
    ours = create("pcgrad", num_tasks).combine(jacobian, torch.zeros(num_tasks).double())
    np.testing.assert_allclose(ours.numpy(), jacobian.numpy().mean(0), rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_pcgrad_of_orthogonal_conflicts_does_not_depend_on_the_order(seed):
    # Opposite pairs in orthogonal planes: each gradient meets exactly one conflict.
    pair = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    jacobian = torch.block_diag(pair, 3.0 * pair)
    projected = np.array([[0.5, 0.5], [0.0, 1.0]]).sum(0) / 4
    expected = np.concatenate([projected, 3.0 * projected])
    ours = create("pcgrad", 4, seed=seed).combine(jacobian, torch.zeros(4).double())
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)


def test_pcgrad_relabelling_the_tasks_relabels_the_weights():
    jacobian, orders = random_jacobian(5, seed=8), random_orders(5, 8)
    labels = [3, 0, 4, 1, 2]  # new task i is old task labels[i]
    moved_orders = [[labels.index(j) for j in orders[old]] for old in labels]
    moved = jacobian[labels]
    smto = create("pcgrad", 5)
    before = smto.project(jacobian @ jacobian.T, torch.tensor(orders))
    after = smto.project(moved @ moved.T, torch.tensor(moved_orders))
    np.testing.assert_allclose(after.numpy(), before[labels].numpy(), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zero_rows", [[0], [1, 2], [0, 1, 2, 3]])
@pytest.mark.parametrize("name", ALL)
def test_zero_gradients_are_finite(name, zero_rows, dtype):
    jacobian = random_jacobian(4).to(dtype)
    jacobian[zero_rows] = 0.0
    direction = make(name, 4).combine(jacobian, torch.zeros(4, dtype=dtype))
    assert direction.dtype == dtype
    assert direction.isfinite().all()
    if len(zero_rows) == 4:
        assert (direction == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-15, 1e-10, 1e-3, 1e10, 1e15])
@pytest.mark.parametrize("name", ALL)
def test_direction_scales_with_the_gradients(name, scale, dtype):
    jacobian, losses = random_jacobian(6, seed=1).to(dtype), torch.zeros(6, dtype=dtype)
    plain = make(name, 6).combine(jacobian, losses)
    scaled = make(name, 6).combine(jacobian * scale, losses)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    assert scaled.isfinite().all()
    np.testing.assert_allclose((scaled / scale).numpy(), plain.numpy(), rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_pcgrad_with_gradients_of_very_different_lengths(seed):
    scales = torch.tensor([[1e-15], [1e-7], [1.0], [1e7], [1e15]], dtype=torch.float64)
    jacobian, orders = scales * random_jacobian(5, dim=4, seed=seed), random_orders(5, seed)
    expected = published_pcgrad(jacobian, orders)
    np.testing.assert_allclose(
        pcgrad_direction(jacobian, orders), expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", ALL)
def test_equal_gradients_come_back_unchanged(name):
    gradient = random_jacobian(1, dim=7, seed=5)
    direction = make(name, 6).combine(gradient.expand(6, 7), torch.zeros(6, dtype=torch.float64))
    np.testing.assert_allclose(direction.numpy(), gradient[0].numpy(), rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_combine_is_weights_times_jacobian(name):
    jacobian, losses = random_jacobian(5, seed=2), torch.arange(5, dtype=torch.float64) - 2.0
    weights = make(name, 5).weights(losses=losses, gramian=jacobian @ jacobian.T)
    expected = (weights[:, None] * jacobian).sum(0)
    direction = make(name, 5).combine(jacobian, losses)
    assert direction.shape == (3,)
    np.testing.assert_allclose(direction.numpy(), expected.numpy(), rtol=1e-12)


def test_combine_in_float32_follows_the_float64_direction():
    jacobian = random_jacobian(10, dim=40, seed=6)
    exact = create("pcgrad", 10).combine(jacobian, torch.zeros(10).double())
    single = create("pcgrad", 10).combine(jacobian.float(), torch.zeros(10))
    np.testing.assert_allclose(single.numpy(), exact.numpy(), rtol=1e-3, atol=1e-5)


def test_unitary_is_the_mean():
    jacobian = random_jacobian(4)
    direction = create("unitary", 4).combine(jacobian, torch.ones(4).double())
    np.testing.assert_allclose(direction.numpy(), jacobian.numpy().mean(0), rtol=1e-12)


@pytest.mark.parametrize("weights", [(2.0, 6.0, 0.0, 8.0), (1, 3, 0, 4)])
def test_fixed_is_the_weighted_mean(weights):
    jacobian = random_jacobian(4)
    direction = create("fixed", 4, weights=weights).combine(jacobian, torch.ones(4).double())
    expected = np.average(jacobian.numpy(), axis=0, weights=weights)
    np.testing.assert_allclose(direction.numpy(), expected, rtol=1e-12)


def test_fixed_with_uniform_weights_is_unitary():
    jacobian, losses = random_jacobian(3), torch.ones(3, dtype=torch.float64)
    fixed = create("fixed", 3, weights=(7.0, 7.0, 7.0)).combine(jacobian, losses)
    unitary = create("unitary", 3).combine(jacobian, losses)
    np.testing.assert_allclose(fixed.numpy(), unitary.numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    "weights",
    [
        (),
        (1.0, 1.0),
        (1.0, 1.0, 1.0, 1.0),
        (0.0, 0.0, 0.0),
        (1.0, -0.1, 1.0),
        (1.0, float("nan"), 1.0),
        (1.0, float("inf"), 1.0),
    ],
)
def test_fixed_refuses_impossible_weights(weights):
    with pytest.raises(ValueError, match="weights"):
        create("fixed", 3, weights=weights)


@pytest.mark.parametrize("name", ALL)
def test_no_tasks_is_an_error(name):
    with pytest.raises(ValueError, match=r"tasks|weights"):
        make(name, 0)


def test_unknown_method_lists_the_valid_ones():
    with pytest.raises(ValueError, match="pcgard") as caught:
        create("pcgard", 3)
    assert {"unitary", "fixed", "pcgrad"} <= set(available())
    assert all(name in str(caught.value) for name in available())


@pytest.mark.parametrize(
    ("name", "valid"), [("pcgrad", ["seed", "device"]), ("fixed", ["weights"]), ("unitary", [])]
)
def test_unknown_option_lists_the_valid_ones(name, valid):
    with pytest.raises(ValueError, match="speed") as caught:
        create(name, 3, speed=1)
    assert all(option in str(caught.value) for option in [name, *valid])


def test_a_stateless_method_refuses_foreign_state():
    create("unitary", 3).load_state_dict(create("unitary", 3).state_dict())
    with pytest.raises(ValueError, match="generator"):
        create("unitary", 3).load_state_dict(create("pcgrad", 3).state_dict())


@pytest.fixture
def clean_registry(monkeypatch):
    monkeypatch.setattr(smto_base, "_METHODS", dict(smto_base._METHODS))


@pytest.mark.usefixtures("clean_registry")
def test_a_users_method_becomes_available():
    @register("test_largest_loss")
    class LargestLoss(SMTO):
        """Only the task with the largest loss."""

        def __init__(self, num_tasks, *, power=1.0):
            super().__init__(num_tasks)
            self.power = power

        def weights(self, *, losses=None, gramian=None):
            return torch.nn.functional.one_hot(losses.argmax(), self.num_tasks) * self.power

    assert "test_largest_loss" in available()
    jacobian, losses = random_jacobian(3), torch.tensor([0.0, 5.0, 1.0], dtype=torch.float64)
    direction = create("test_largest_loss", 3, power=2.0).combine(jacobian, losses)
    assert torch.equal(direction, 2.0 * jacobian[1])
    with pytest.raises(ValueError, match="power"):
        create("test_largest_loss", 3, strength=2.0)


@pytest.mark.usefixtures("clean_registry")
def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="pcgrad"):
        register("pcgrad")(SMTO)
    assert create("pcgrad", 2).needs == "gramian"
