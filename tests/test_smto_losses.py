"""Methods that need nothing but the losses."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from smto_cases import make, random_jacobian
from torchjd.scalarization import PBI, GeometricMean

from mtrl.smto import create
from mtrl.smto.grouping import clustered


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


positive = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=10).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def draws(name, count, num_tasks=4, **options):
    smto, losses = make(name, num_tasks, **options), torch.ones(num_tasks)
    return torch.stack([smto.weights(losses=losses) for _ in range(count)]).numpy()


# -- random weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rlw_normal", "rlw_dirichlet"])
def test_rlw_weights_are_positive_with_sum_one_and_uniform_mean(name):
    weights = draws(name, 3000)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights.sum(1), 1.0)
    error = np.abs(weights.mean(0) - 0.25)
    assert (error < 5 * weights.std(0) / np.sqrt(3000)).all()


def test_rlw_distributions():
    # Dirichlet(1) of m = 4: variance (1/m)(1 - 1/m) / (m + 1). Tolerances: five standard errors,
    # 1.33% for this variance (SciPy's draws), 1 / sqrt(2 n) for a standard deviation.
    assert draws("rlw_dirichlet", 3000).var() == pytest.approx(0.0375, rel=5 * 0.0133)
    logs = np.log(draws("rlw_normal", 3000))
    differences = logs[:, 0] - logs[:, 1]  # of two standard normal numbers
    assert differences.std() == pytest.approx(2**0.5, rel=5 / 6000**0.5)
    share, error = 0.6827, (0.6827 * 0.3173 / 3000) ** 0.5
    assert np.mean(np.abs(differences) < 2**0.5) == pytest.approx(share, abs=5 * error)


@pytest.mark.parametrize("p", [0.2, 0.5, 1.0])
def test_rgd_keeps_each_task_with_probability_p(p):
    weights = draws("rgd", 3000, p=p)
    error = (p * (1 - p) / weights.size) ** 0.5
    assert (weights == 0).mean() == pytest.approx(1 - p, abs=5 * error)
    assert set(np.unique(np.round(weights * p * 4, 9))) <= {0.0, 1.0}
    np.testing.assert_allclose(
        weights.mean(0), 0.25, atol=5 * 0.25 * ((1 / p - 1) / len(weights)) ** 0.5
    )


@pytest.mark.parametrize("p", [0.0, 1.1, -0.5])
def test_rgd_refuses_impossible_probabilities(p):
    with pytest.raises(ValueError, match=r"p must be in \(0, 1\]"):
        create("rgd", 2, p=p)


# -- learned scales -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uw", "imtl_l"])
def test_learned_scales_converge_to_one_over_the_loss(name):
    losses = torch.tensor([0.1, 1.0, 40.0]).double()
    smto = make(name, 3, lr=0.05)
    first = smto.weights(losses=losses)
    np.testing.assert_allclose(first, np.full(3, 1 / 3))
    for _ in range(2000):
        weights = smto.weights(losses=losses)
    np.testing.assert_allclose(3 * weights * losses, np.ones(3), rtol=0.02)


@pytest.mark.parametrize(("name", "sign"), [("uw", -1.0), ("imtl_l", 1.0)])
def test_learned_scales_follow_torchs_adam_on_the_published_loss(name, sign):
    def published(s, losses):
        if name == "uw":
            return (0.5 * torch.exp(-s) * losses + 0.5 * s).sum()
        return (torch.exp(s) * losses - s).sum()

    s = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([s], lr=0.02)
    smto = make(name, 3, lr=0.02)
    for step in range(30):
        losses = random_jacobian(3, 1, seed=step)[:, 0].square() + 0.1
        weights = smto.weights(losses=losses)
        np.testing.assert_allclose(3 * weights, torch.exp(sign * s.detach()), rtol=1e-9)
        adam.zero_grad()
        published(s, losses).backward()
        adam.step()


@given(losses=positive)
@settings(max_examples=20)
def test_scale_invariant_weights_are_the_gradient_of_the_mean_logarithm(losses):
    leaf = losses.clone().requires_grad_()
    (expected,) = torch.autograd.grad(leaf.log().mean(), [leaf])
    np.testing.assert_allclose(create("si", len(losses)).weights(losses=losses), expected)


# -- ratios of losses ---------------------------------------------------------------------------


def test_dwa_follows_the_ratio_of_the_last_two_windows():
    smto = create("dwa", 2, window=3, temperature=2.0)
    means = [(4.0, 10.0), (2.0, 9.0), (2.0, 3.0)]
    expected = [(0.5, 0.5)] * 2
    for older, newer in itertools.pairwise(means):
        ratio = np.divide(newer, older)
        expected.append(np.exp(ratio / 2) / np.exp(ratio / 2).sum())
    for mean, weights in zip([*means, (1.0, 1.0)], expected, strict=True):
        for offset in (-0.5, 0.0, 0.5):
            ours = smto.weights(losses=torch.tensor(mean).double() + offset)
            np.testing.assert_allclose(ours, weights, rtol=1e-12)


@given(losses=positive)
@settings(max_examples=10)
def test_dwa_of_losses_that_fall_alike_is_uniform(losses):
    smto = create("dwa", len(losses), window=2)
    for step in range(9):
        weights = smto.weights(losses=losses * 0.9**step)
    np.testing.assert_allclose(weights, np.full(len(losses), 1 / len(losses)))


def test_dwa_gives_more_to_the_loss_that_falls_slowly_below_zero_too():
    smto = create("dwa", 2, window=1)
    for falling in (1.0, -2.0, -4.0, -8.0, -16.0, -32.0):
        weights = smto.weights(losses=torch.tensor([falling, -10.0]))
    assert weights[1] > weights[0] + 0.1


def test_famo_follows_the_published_update():
    xi = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([xi], lr=0.025, weight_decay=1e-3)
    smto = create("famo", 3)
    for step in range(20):
        before, after = random_jacobian(3, 2, seed=step).square().T + 0.1
        expected = xi.detach().softmax(0) / before
        ours = smto.weights(losses=before)
        np.testing.assert_allclose(ours, expected / expected.sum(), rtol=1e-9)
        gain = before.log() - after.log()
        (xi.grad,) = torch.autograd.grad(xi.softmax(0), [xi], grad_outputs=gain)
        adam.step()
        smto.after_step(after)


@given(losses=positive)
@settings(max_examples=10)
def test_famo_leaves_its_logits_when_all_losses_fall_alike(losses):
    smto = create("famo", len(losses), decay=0.0)  # Adam would enlarge rounding errors by decay
    for _ in range(5):
        smto.weights(losses=losses)
        smto.after_step(losses * 0.9)
    assert float(smto.parameter.abs().max()) < 1e-7


def test_famo_moves_weight_from_fast_tasks_to_slow_ones():
    """Whatever lies between two batches."""
    smto = create("famo", 2)
    for step in range(50):
        losses = torch.rand(2, generator=torch.Generator().manual_seed(step)).double() + 0.1
        smto.weights(losses=losses)
        smto.after_step(losses * torch.tensor([0.9, 1.0]))
    assert float(smto.parameter[0]) < -0.5 < 0.5 < float(smto.parameter[1])


def test_famo_shifts_the_losses_of_one_step_alike():
    """A new lower bound between the two is no progress of the other losses."""
    smto = create("famo", 3, decay=0.0)
    smto.weights(losses=torch.tensor([1.0, 2.0, -1.0]).double())
    smto.after_step(torch.tensor([1.0, 2.0, -5.0]).double())
    assert float(smto.parameter[2]) < float(smto.parameter[0]) == float(smto.parameter[1])


def test_famo_without_the_losses_after_a_step_is_refused():
    smto, losses = create("famo", 2), torch.ones(2)
    smto.weights(losses=losses)
    with pytest.raises(RuntimeError, match=r"call after_step\(losses\)"):
        smto.weights(losses=losses)
    with pytest.raises(NotImplementedError, match="UncertaintyWeighting has no after_step"):
        create("uw", 2).after_step(losses)


# -- smooth Tchebycheff -------------------------------------------------------------------------


@given(losses=positive, mu=st.floats(0.5, 100.0))
@settings(max_examples=20)
def test_stch_weights_are_the_gradient_of_the_smooth_maximum(losses, mu):
    preference = [1.0 + i for i in range(len(losses))]
    mean_one = torch.tensor(preference).double() / np.mean(preference)
    leaf = losses.clone().requires_grad_()
    smooth = mu * torch.logsumexp(mean_one * (leaf - 0.5) / mu, 0)
    (expected,) = torch.autograd.grad(smooth, [leaf])
    smto = create("stch", len(losses), mu=mu, preference=preference, ideal=[0.5] * len(losses))
    np.testing.assert_allclose(smto.weights(losses=losses), expected, atol=1e-9)


def test_stch_goes_from_the_maximum_to_the_mean():
    losses = torch.tensor([1.0, -3.0, 2.0, 1.9]).double()
    sharp = create("stch", 4, mu=1e-3).weights(losses=losses)
    np.testing.assert_allclose(sharp, [0, 0, 1, 0], atol=1e-9)
    flat = create("stch", 4, mu=1e6).weights(losses=losses)
    # A spread of 5 in the losses is one of 5e-6 in the logits, and so in the weights' ratios.
    np.testing.assert_allclose(flat, np.full(4, 0.25), rtol=5e-6)


# -- boundary intersection ----------------------------------------------------------------------


@given(losses=positive, theta=st.floats(0.0, 5.0))
@settings(max_examples=20)
def test_pbi_weights_are_the_gradient_of_torchjds_pbi(losses, theta):
    m = len(losses)
    preference, ideal = torch.arange(1.0, m + 1).double(), torch.full((m,), 0.5).double()
    leaf = losses.clone().requires_grad_()
    value = PBI(theta, preference, ideal)(leaf)
    (expected,) = torch.autograd.grad(value, [leaf])
    smto = create("pbi", m, theta=theta, preference=preference.tolist(), ideal=ideal.tolist())
    expected = expected * preference.norm() / preference.sum()
    np.testing.assert_allclose(smto.weights(losses=losses), expected, atol=1e-6)


def test_pbi_with_equal_preferences_is_mean_and_deviation():
    losses = torch.tensor([1.0, -2.0, 3.0, 6.0]).double()
    weights = create("pbi", 4, theta=0.5).weights(losses=losses)
    expected = (1.0 + 0.5 * (losses - losses.mean()) / losses.std(correction=0)) / 4
    np.testing.assert_allclose(weights, expected, rtol=1e-9)
    assert float(weights.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_pbi_of_equal_losses_does_not_show_their_rounding(size):
    rounding = 1.0 + 6e-8 * torch.tensor([1.0, -1.0, 0.0, 1.0]).double()
    weights = create("pbi", 4).weights(losses=size * rounding)
    np.testing.assert_allclose(weights, np.full(4, 0.25), rtol=1e-3)


def test_pbi_keeps_all_weights_positive_by_default():
    losses = torch.zeros(100).double()
    losses[7] = 1e3
    assert float(create("pbi", 100).weights(losses=losses).min()) > 0


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("stch", {"mu": 0.0}, "mu must be positive"),
        ("stch", {"preference": [1.0]}, "preference must be 2 positive numbers"),
        ("stch", {"ideal": [1.0, float("nan")]}, "ideal must be 2 finite numbers"),
        ("pbi", {"theta": -1.0}, "theta must not be negative"),
        ("pbi", {"preference": [1.0, 0.0]}, "preference must be 2 positive numbers"),
        ("dwa", {"temperature": -1.0}, "temperature must be positive"),
        ("dwa", {"window": 0}, "window must be at least 1"),
        ("famo", {"lr": 0.0}, "lr must be positive"),
        ("famo", {"decay": -1.0}, "decay must not be negative"),
    ],
)
def test_impossible_options_are_refused(name, options, match):
    with pytest.raises(ValueError, match=match):
        create(name, 2, **options)


# -- geometric mean, discrepancies, groups ------------------------------------------------------


@given(losses=positive)
@settings(max_examples=20)
def test_gls_weights_are_the_gradient_of_the_geometric_mean(losses):
    leaf = losses.clone().requires_grad_()
    (expected,) = torch.autograd.grad(GeometricMean()(leaf), [leaf])
    np.testing.assert_allclose(create("gls", len(losses)).weights(losses=losses), expected)


@pytest.mark.parametrize("strength", [0.0, 0.01, 0.5])
def test_ldc_mtl_follows_torchs_adam_on_the_published_loss(strength):
    z = torch.ones(4, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([z], lr=0.02)
    smto = create("ldc_mtl", 4, lr=0.02, strength=strength)
    for step in range(30):
        losses = random_jacobian(4, 1, seed=step)[:, 0].square() + 0.1
        leaf, share = losses.clone().requires_grad_(), z.sigmoid()
        weighted = share * leaf
        gaps = (weighted[:-1] - weighted[1:]).abs().sum()
        adam.zero_grad()
        (weighted.sum() / share.sum().detach() + strength * gaps).backward()
        np.testing.assert_allclose(smto.weights(losses=losses), leaf.grad, rtol=1e-9)
        adam.step()


def test_ldc_mtl_brings_weighted_losses_closer():
    losses = torch.tensor([1.0, 4.0]).double()
    smto = create("ldc_mtl", 2, lr=0.02, strength=1.0)
    for _ in range(200):
        smto.weights(losses=losses)
    small, large = (smto.parameter.sigmoid() * losses).tolist()
    assert large / small < 1.5


@pytest.mark.parametrize("groups", [1, 2, 3, 5])
@given(values=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=8))
@settings(max_examples=25)
def test_clusters_are_the_best_of_all_partitions_into_intervals(groups, values):
    values = torch.tensor(values, dtype=torch.float64)
    groups = min(groups, len(values))
    ordered = np.sort(values.numpy())
    best = min(
        sum(((part - part.mean()) ** 2).sum() for part in np.split(ordered, cuts))
        for cuts in map(list, itertools.combinations(range(1, len(values)), groups - 1))
    )
    found = clustered(values, groups)
    assert float((values - found).square().sum()) == pytest.approx(best, abs=1e-9)
    assert float(found.sum()) == pytest.approx(float(values.sum()))
    assert len(found.unique()) <= groups


def test_go4align_follows_the_authors_indicators_in_groups():
    smto, share = create("go4align", 4, groups=2, step_size=0.05), np.full(4, 0.25)
    for step in range(10):
        losses = np.array([1.0, 1.1, 5.0, 5.5]) * 0.95**step
        share = share * np.exp(-0.05 * losses)
        share /= share.sum()
        indicators = losses.sum() / losses * share / 4
        expected = np.repeat([indicators[:2].mean(), indicators[2:].mean()], 2)
        np.testing.assert_allclose(smto.weights(losses=torch.from_numpy(losses)), expected)


def test_go4align_with_as_many_groups_as_tasks_groups_nothing():
    losses = torch.tensor([1.0, 2.0, 4.0]).double()
    ours = create("go4align", 3, groups=9, step_size=0.0).weights(losses=losses)
    np.testing.assert_allclose(ours, losses.mean() / (3 * losses))
    (weight,) = create("go4align", 3, groups=1).weights(losses=losses).unique()
    assert float(weight) > 0


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("ldc_mtl", {"strength": -1.0}, "strength must not be negative"),
        ("go4align", {"groups": 0}, "groups must be at least 1"),
        ("go4align", {"step_size": -1.0}, "step_size must not be negative"),
    ],
)
def test_impossible_options_of_groups_are_refused(name, options, match):
    with pytest.raises(ValueError, match=match):
        create(name, 2, **options)
