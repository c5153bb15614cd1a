"""PCGrad and GradVac."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from smto_cases import GOLDEN, cases, random_jacobian
from torchjd.aggregation import GradVac as ReferenceGradVac
from torchjd.aggregation import PCGrad as ReferencePCGrad

from mtrl.smto import create


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
    # As published: half a unit of the last digit.
    np.testing.assert_allclose(2 * weights, [2.2222, 1.5789], rtol=0, atol=5e-5)


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
    smto, gramian = create("pcgrad", 3, seed=1), conflicting @ conflicting.T
    weights = torch.stack([smto.weights(gramian=gramian) for _ in range(2000)])
    draws = (weights @ conflicting).numpy()
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


@pytest.mark.parametrize("seed", range(3))
def test_pcgrad_with_gradients_of_very_different_lengths(seed):
    scales = torch.tensor([[1e-15], [1e-7], [1.0], [1e7], [1e15]], dtype=torch.float64)
    jacobian, orders = scales * random_jacobian(5, dim=4, seed=seed), random_orders(5, seed)
    expected = published_pcgrad(jacobian, orders)
    np.testing.assert_allclose(
        pcgrad_direction(jacobian, orders), expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max()
    )


def test_combine_in_float32_follows_the_float64_direction():
    jacobian = random_jacobian(10, dim=40, seed=6)
    exact = create("pcgrad", 10).combine(jacobian, torch.zeros(10).double())
    single = create("pcgrad", 10).combine(jacobian.float(), torch.zeros(10))
    # Inputs rounded to 2^-24, ten projections with factors near one: 1e-6 of the longest entries.
    np.testing.assert_allclose(single.numpy(), exact.numpy(), rtol=0, atol=1e-5)


@given(case=cases(("random", "conflicting", "low rank"), scales=(1.0,)))
@settings(max_examples=20)
def test_pcgrad_is_the_published_loop_on_any_jacobian(case):
    orders = random_orders(case.num_tasks, seed=1)
    expected = published_pcgrad(case.jacobian, orders)
    np.testing.assert_allclose(pcgrad_direction(case.jacobian, orders), expected, atol=1e-9)


def published_gradvac(jacobian, orders, targets, beta):
    """Wang et al. 2021, Algorithm 1, on the gradient vectors; changes the targets in place."""
    original = [row.numpy() for row in jacobian]
    altered = []
    for i, own_order in enumerate(orders):
        g = original[i].copy()
        for j in own_order:
            if j == i:
                continue
            length, other = np.linalg.norm(g), np.linalg.norm(original[j])
            phi, target = g @ original[j] / (length * other), targets[i, j]
            if phi < target:
                part = target * np.sqrt(1 - phi**2) - phi * np.sqrt(1 - target**2)
                g = g + length * part / (other * np.sqrt(1 - target**2)) * original[j]
            targets[i, j] = (1 - beta) * target + beta * phi
        altered.append(g)
    return np.mean(altered, axis=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10])
def test_gradvac_equals_the_published_loop_over_many_steps(num_tasks, seed):
    smto, targets = create("gradvac", num_tasks, beta=0.3), np.zeros((num_tasks, num_tasks))
    for step in range(6):
        jacobian = random_jacobian(num_tasks, dim=num_tasks + 5, seed=10 * seed + step)
        orders = random_orders(num_tasks, seed + step)
        expected = published_gradvac(jacobian, orders, targets, 0.3)
        ours = smto.project(jacobian @ jacobian.T, torch.tensor(orders)) @ jacobian
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(smto.targets.numpy(), targets, rtol=1e-8, atol=1e-10)


def test_gradvac_starts_as_pcgrad_with_the_same_orders(conflicting):
    gramian, orders = conflicting @ conflicting.T, torch.tensor(random_orders(3, 4))
    expected = create("pcgrad", 3).project(gramian, orders)
    np.testing.assert_allclose(create("gradvac", 3).project(gramian, orders), expected, rtol=1e-12)


@given(case=cases(("random", "conflicting"), num_tasks=(2,), scales=(1e-15, 1.0, 1e15)))
@settings(max_examples=15)
def test_gradvac_raises_the_cosine_of_two_tasks_to_the_target(case):
    jacobian, target = case.jacobian, 0.9
    smto = create("gradvac", 2)
    smto.targets.fill_(target)
    cosine, order = jacobian @ jacobian.T, torch.tensor([[0, 1], [1, 0]])
    lengths = cosine.diagonal().sqrt()
    cosine = cosine / lengths / lengths[:, None]
    unit = jacobian / lengths[:, None]
    altered = smto.meet(cosine, order) @ unit
    reached = (altered * unit.flip(0)).sum(1) / altered.norm(dim=1)
    np.testing.assert_allclose(reached, max(target, float(cosine[0, 1])), rtol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_gradvac_of_two_tasks_equals_torchjd_over_many_steps(seed):
    smto, reference = create("gradvac", 2, beta=0.5), ReferenceGradVac(beta=0.5)
    for step in range(5):
        jacobian = random_jacobian(2, dim=6, seed=10 * seed + step)
        ours = 2 * smto.combine(jacobian, torch.ones(2).double())  # theirs is the sum
        np.testing.assert_allclose(ours, reference(jacobian), rtol=1e-6)
