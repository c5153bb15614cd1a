"""Methods that solve a problem on the Gramian, against their invariants, SciPy and torchjd."""

import numpy as np
import pytest
import torch
import torchjd.aggregation as reference
from hypothesis import example, given, settings
from scipy.optimize import LinearConstraint, minimize, nnls
from smto_cases import GOLDEN, build, cases, direction, random_jacobian

from mtrl.smto import create

GENERAL = ("random", "low rank", "conflicting", "agreeing", "collinear", "opposite", "uneven")
INDEPENDENT = ("random", "agreeing", "uneven")


def solved(name, jacobian, losses=None, **options):
    """Weights and the certificates of the solve, as numbers."""
    smto = create(name, len(jacobian), **options)
    weights = smto.weights(losses=losses, gramian=jacobian @ jacobian.T)
    return weights, {key: float(value) for key, value in smto.certificates().items()}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("mgda", {}, (0.6, 0.4)),
        ("imtl_g", {}, (0.5923, 0.4077)),
        ("aligned_mtl", {}, (0.5591, 0.4083)),
        ("cagrad", {"c": 0.5}, (0.7041, 0.5)),
        ("nash_mtl", {"max_norm": 0.0}, (0.5915, 0.4071)),
        ("upgrad", {}, (10 / 9, 15 / 19)),
    ],
)
def test_golden_values(name, options, expected):
    np.testing.assert_allclose(solved(name, GOLDEN, **options)[0], expected, atol=5e-5)


def simplex_minimum(objective, m):
    """The slow obvious way: SciPy's SLSQP from several starts."""
    starts = np.random.default_rng(0).dirichlet(np.ones(m), size=4)
    constraint = LinearConstraint(np.ones((1, m)), 1.0, 1.0)
    results = [
        minimize(
            objective, start, method="SLSQP", bounds=[(0, 1)] * m, constraints=[constraint],
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        for start in starts
    ]  # fmt: skip
    return min(result.fun for result in results)


# -- MGDA ---------------------------------------------------------------------------------------


@given(case=cases(GENERAL))
@example(case=build("agreeing", 50, 1.0, 844180))  # the slowest known to converge
@settings(max_examples=40)
def test_mgda_satisfies_the_optimality_conditions(case):
    weights, certificates = solved("mgda", case.jacobian)
    products = (case.jacobian @ case.jacobian.T) @ weights
    largest = float(case.jacobian.norm(dim=1).max())
    # (G a)_i >= a^T G a, and equal where a_i > 0.
    assert float(products.min() - weights @ products) >= -1e-8 * largest**2
    excess = weights * (products - weights @ products)  # each at most the duality gap
    assert float(excess.max()) <= 1e-8 * largest**2
    assert float(weights.min()) >= 0
    assert float(weights.sum()) == pytest.approx(1.0)
    assert certificates["duality_gap"] <= 1e-8


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("num_tasks", "dim"), [(3, 2), (3, 6), (10, 4), (10, 40)])
def test_mgda_reaches_scipys_minimum(num_tasks, dim, seed):
    jacobian = random_jacobian(num_tasks, dim, seed)
    gramian = (jacobian @ jacobian.T).numpy()
    weights = solved("mgda", jacobian)[0].numpy()
    best = simplex_minimum(lambda w: w @ gramian @ w, num_tasks)
    assert weights @ gramian @ weights <= best + 1e-9


@given(case=cases(("random", "conflicting", "uneven"), num_tasks=(2,)))
@settings(max_examples=20)
def test_mgda_of_two_tasks_is_the_closed_form(case):
    one, two = case.jacobian
    share = float(((two - one) @ two) / (one - two).square().sum())
    weights = solved("mgda", case.jacobian)[0]
    np.testing.assert_allclose(weights[0], np.clip(share, 0, 1), atol=1e-6)


def test_mgda_equals_torchjds_converged_frank_wolfe():
    jacobian = random_jacobian(3, 20)
    expected = reference.MGDA(epsilon=1e-6, max_iters=2000)(jacobian)
    np.testing.assert_allclose(direction("mgda", jacobian), expected, atol=5e-3)


@pytest.mark.parametrize("normalisation", ["none", "l2", "loss", "loss+"])
def test_mgda_solves_for_the_normalised_gradients(normalisation):
    jacobian = random_jacobian(4, 8) * torch.tensor([[1.0], [10.0], [0.1], [3.0]])
    losses = torch.tensor([0.5, 4.0, 1.0, 2.0]).double()
    lengths = jacobian.norm(dim=1)
    ones = torch.ones(4).double()
    scales = {"none": ones, "l2": lengths, "loss": losses, "loss+": losses * lengths}
    scaled = jacobian / scales[normalisation][:, None]
    expected = solved("mgda", scaled)[0] @ scaled
    ours = direction("mgda", jacobian, losses, normalisation=normalisation)
    np.testing.assert_allclose(ours / ours.norm(), expected / expected.norm(), rtol=1e-6)
    assert (jacobian @ ours > 0).all()  # a common descent direction


@pytest.mark.parametrize(
    ("losses", "lengths", "expected"),
    [((2, 1), (1, 1), (0.8, 0.2)), ((1, 1), (10, 1), (0.5, 0.5)), ((2, 1), (10, 1), (0.8, 0.2))],
)
def test_mgda_can_weigh_the_gradients_as_its_authors_code(losses, lengths, expected):
    """Orthogonal gradients of length 1 / l_i once divided by l_i |g_i|: a_i ~ l_i^2."""
    smto = create("mgda", 2, normalisation="loss+", raw=True)
    gramian = torch.tensor(lengths, dtype=torch.float64).square().diag()
    weights = smto.weights(losses=torch.tensor(losses, dtype=torch.float64), gramian=gramian)
    torch.testing.assert_close(
        weights, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_mgda_refuses_an_unknown_normalisation():
    with pytest.raises(ValueError, match="none, l2, loss or loss\\+, not 'l1'"):
        create("mgda", 2, normalisation="l1")


# -- EDM and its tensioner ----------------------------------------------------------------------


@given(case=cases(GENERAL))
@settings(max_examples=25)
def test_edm_has_equal_cosines_on_its_support_and_weights_of_sum_one(case):
    weights, certificates = solved("edm", case.jacobian)
    lengths = case.jacobian.norm(dim=1)
    assert float(weights.sum()) == pytest.approx(1.0)
    assert certificates["duality_gap"] <= 1e-8
    share = weights * lengths / (weights @ lengths)
    unit = case.jacobian / lengths[:, None]
    cosines = unit @ (share @ unit)
    # All the duality gap promises: no cosine is smaller, and where the share is large none larger.
    excess = cosines - share @ cosines
    assert float(excess.min()) >= -1e-8
    assert float((share * excess).max()) <= 1e-8
    np.testing.assert_allclose(
        weights, solved("mgda", case.jacobian, normalisation="l2")[0], rtol=1e-9
    )


def published_tension(history, jacobian, losses, alpha):
    """Nakamura et al. 2022 on the gradient vectors; history [window + 1, m]: gradient lengths."""
    lengths = np.linalg.norm(jacobian, axis=1)
    central = direction("edm", torch.from_numpy(jacobian)).numpy()
    strain = history[1:].sum(0) / history[:-1].sum(0) + np.log10(losses)
    tension = alpha / (1 + np.exp(-strain * np.e + np.e)) + 1 - alpha
    pulled = central.copy()
    for g, t in zip(jacobian, tension, strict=True):
        pulled += t * (g - central) / np.linalg.norm(g - central)
    for g, length in zip(jacobian, lengths, strict=True):
        if g @ pulled < 0:  # turned towards g until orthogonal to it
            orthogonal = pulled - (g @ pulled) * g / length**2
            back = g - pulled
            angle = np.arccos(g @ back / (length * np.linalg.norm(back)))
            pulled = np.tan(angle) * length * orthogonal / np.linalg.norm(orthogonal)
    return pulled


@pytest.mark.parametrize("seed", range(4))
def test_cdtt_equals_the_published_vectors(seed):
    smto, lengths = create("cdtt", 4, alpha=0.7, window=3), []
    corrected = 0
    for step in range(8):
        jacobian = random_jacobian(4, 5, seed=20 * seed + step)
        losses = torch.tensor([0.1, 1.0, 30.0, 2.0]).double() * (step + 1)
        lengths.append(jacobian.norm(dim=1).numpy())
        ours = smto.combine(jacobian, losses).numpy()
        if step < 3:  # the window is not full
            np.testing.assert_allclose(ours, direction("edm", jacobian), rtol=1e-9)
            continue
        history = np.array(lengths[-4:])
        expected = published_tension(history, jacobian.numpy(), losses.numpy(), 0.7)
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-8)
        corrected += not np.allclose(ours, direction("edm", jacobian))
    assert corrected == 5


# -- CAGrad -------------------------------------------------------------------------------------


@given(case=cases(("random", "conflicting", "agreeing"), scales=(1e-15, 1.0, 1e15)))
@settings(max_examples=25)
def test_cagrad_stays_at_its_distance_from_the_mean_gradient(case):
    weights, certificates = solved("cagrad", case.jacobian, c=0.6)
    assert certificates["duality_gap"] <= 1e-7
    mean = case.jacobian.mean(0)
    if float(mean.norm()) > 1e-3 * case.scale and float((weights @ case.jacobian).norm()) > 0:
        distance = (weights @ case.jacobian - mean).norm() / mean.norm()
        assert float(distance) == pytest.approx(0.6, rel=1e-5)


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
@given(case=cases(("low rank", "collinear", "opposite"), num_tasks=(3, 10, 50), scales=(1.0,)))
@example(case=build("low rank", 10, 1.0, 1670))
@example(case=build("low rank", 10, 1.0, 81075))
@settings(max_examples=40)
def test_cagrad_converges_where_gradients_can_cancel(c, case):
    # g_w = 0 is within reach, where |g_w| has its kink.
    assert solved("cagrad", case.jacobian, c=c)[1]["duality_gap"] <= 1e-6


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("num_tasks", "dim"), [(2, 5), (3, 6), (10, 40)])
def test_cagrad_reaches_scipys_minimum(num_tasks, dim, c):
    jacobian = random_jacobian(num_tasks, dim, seed=5)
    gramian = (jacobian @ jacobian.T).numpy()
    radius = c * np.sqrt(gramian.mean())
    best = simplex_minimum(
        lambda w: (gramian @ w).mean() + radius * np.sqrt(max(w @ gramian @ w, 0)), num_tasks
    )
    ours = direction("cagrad", jacobian, c=c)
    # Strong duality: the minimum is the worst descent of the best direction.
    assert float((jacobian @ ours).min()) == pytest.approx(best, abs=1e-5)


def test_cagrad_without_radius_is_the_mean_and_rescales_as_numbered():
    jacobian = random_jacobian(4, 6)
    np.testing.assert_allclose(direction("cagrad", jacobian, c=0.0), jacobian.mean(0))
    plain = direction("cagrad", jacobian, c=0.5)
    for rescale, factor in [(0, 1.0), (1, 1.25), (2, 1.5)]:
        ours = direction("cagrad", jacobian, c=0.5, rescale=rescale)
        np.testing.assert_allclose(ours * factor, plain, rtol=1e-12)
    equal = jacobian[:1].expand(4, 6)
    np.testing.assert_allclose(direction("cagrad", equal, rescale=2), equal[0], rtol=1e-9)


def test_cagrad_leaves_zero_gradients_out_of_the_minimum():
    jacobian = random_jacobian(3, 6, seed=1)
    padded = torch.cat([jacobian, torch.zeros(1, 6).double()])
    ours = direction("cagrad", padded, c=0.5)
    radius = 0.5 * padded.mean(0).norm()
    assert float((ours - padded.mean(0)).norm()) == pytest.approx(float(radius), rel=1e-6)


# -- Nash-MTL and FairGrad ----------------------------------------------------------------------


@given(case=cases(("random", "low rank", "conflicting", "agreeing", "uneven", "one zero")))
@settings(max_examples=30)
def test_nash_solves_the_bargaining_problem(case):
    weights, certificates = solved("nash_mtl", case.jacobian, max_norm=0.0)
    assert certificates["residual"] <= 1e-3
    if case.kind in INDEPENDENT:
        products = (case.jacobian @ case.jacobian.T) @ weights
        np.testing.assert_allclose(products * weights, np.ones(case.num_tasks), rtol=1e-5)
        length = float((weights @ case.jacobian).norm())
        assert length**2 == pytest.approx(case.num_tasks, rel=1e-5)


@given(case=cases(INDEPENDENT))
@settings(max_examples=15)
def test_nash_directions_are_no_longer_than_the_bound(case):
    for bound in (0.5, 100.0):
        length = float(direction("nash_mtl", case.jacobian, max_norm=bound).norm())
        assert length == pytest.approx(min(bound, case.num_tasks**0.5), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 4.0])
@given(case=cases(("random", "agreeing"), scales=(1e-6, 1.0, 1e6)))
@settings(max_examples=10)
def test_fairgrad_solves_its_equations(alpha, case):
    weights, certificates = solved("fairgrad", case.jacobian, alpha=alpha, max_norm=0.0)
    products = (case.jacobian @ case.jacobian.T) @ weights
    np.testing.assert_allclose(products, weights ** (-1 / alpha), rtol=1e-5)
    assert certificates["residual"] <= 1e-6


def test_fairgrad_equals_nash_for_alpha_one_and_torchjd():
    jacobian = random_jacobian(5, 20)
    nash = direction("nash_mtl", jacobian)
    np.testing.assert_allclose(direction("fairgrad", jacobian, alpha=1.0), nash, rtol=1e-9)
    ours = direction("fairgrad", jacobian, alpha=2.0, max_norm=0.0)
    np.testing.assert_allclose(ours, reference.FairGrad(alpha=2.0)(jacobian), rtol=1e-3)


# -- IMTL-G, Aligned-MTL ------------------------------------------------------------------------


@given(case=cases(("random", "agreeing", "uneven", "equal")))
@settings(max_examples=25)
def test_imtl_g_has_equal_projections_and_weights_of_sum_one(case):
    weights, _ = solved("imtl_g", case.jacobian)
    assert float(weights.sum()) == pytest.approx(1.0)
    lengths = case.jacobian.norm(dim=1)
    projections = (case.jacobian @ (weights @ case.jacobian)) / lengths
    np.testing.assert_allclose(projections, projections.mean().expand_as(lengths), rtol=1e-6)


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10])
def test_imtl_g_and_aligned_mtl_equal_torchjd(num_tasks):
    jacobian = random_jacobian(num_tasks, 15, seed=num_tasks)
    np.testing.assert_allclose(
        direction("imtl_g", jacobian), reference.IMTLG()(jacobian), rtol=1e-6
    )
    np.testing.assert_allclose(
        direction("aligned_mtl", jacobian), reference.AlignedMTL()(jacobian), rtol=1e-6
    )


def test_imtl_g_of_dependent_gradients_differs_from_torchjd():
    # Ours does not change with the gradients' lengths where the pseudo-inverse of G does.
    jacobian = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0**-0.5, 2.0**-0.5]]).double()
    lengths = torch.tensor([[1.0], [5.0], [0.2]]).double()
    plain, scaled = (solved("imtl_g", j)[0] for j in (jacobian, lengths * jacobian))
    shares = scaled * lengths[:, 0]
    np.testing.assert_allclose(shares / shares.sum(), plain, rtol=1e-9)
    theirs = reference.IMTLG()(lengths * jacobian)
    assert not np.allclose(scaled @ (lengths * jacobian), theirs)


def test_imtl_scales_the_direction_of_imtl_g_by_the_losses():
    jacobian, losses = random_jacobian(3, 8), torch.tensor([0.1, 1.0, 20.0]).double()
    smto = create("imtl", 3, lr=0.05)
    for _ in range(800):
        ours = smto.combine(jacobian, losses)
    plain = direction("imtl_g", jacobian)
    assert float(abs(ours @ plain) / (ours.norm() * plain.norm())) == pytest.approx(1.0)
    np.testing.assert_allclose(smto.parameter.exp() * losses, np.ones(3), rtol=0.05)


@given(case=cases(("random", "agreeing")))
@settings(max_examples=15)
def test_aligned_mtl_has_a_perfectly_conditioned_gradient_matrix(case):
    # w = B 1/m; J^T B has equal singular values, the smallest of J.
    smto, m = create("aligned_mtl", case.num_tasks), case.num_tasks
    gramian = case.jacobian @ case.jacobian.T
    weights = smto.weights(gramian=gramian)
    values, vectors = torch.linalg.eigh(gramian)
    aligned = vectors @ torch.diag((values[0] / values).sqrt()) @ vectors.T
    np.testing.assert_allclose(weights, aligned.mean(1), rtol=1e-6, atol=1e-9)
    length = float((weights @ case.jacobian).norm())
    assert length == pytest.approx(float(values[0].sqrt()) / m**0.5, rel=1e-6)


# -- SDMGrad, UPGrad ----------------------------------------------------------------------------


@given(case=cases(GENERAL, num_tasks=(1, 2, 3, 10)))
@settings(max_examples=20)
def test_sdmgrad_lies_between_mgda_and_the_mean(case):
    weights, certificates = solved("sdmgrad", case.jacobian)
    assert certificates["duality_gap"] <= 1e-6
    assert float(weights.sum()) == pytest.approx(1.0)
    plain = solved("sdmgrad", case.jacobian, strength=0.0)[0] @ case.jacobian
    largest = float(case.jacobian.norm(dim=1).max())
    np.testing.assert_allclose(
        plain, solved("mgda", case.jacobian)[0] @ case.jacobian, atol=1e-3 * largest
    )
    far = solved("sdmgrad", case.jacobian, strength=1e6)[0]
    np.testing.assert_allclose(far, np.full(case.num_tasks, 1 / case.num_tasks), atol=2e-6)


@pytest.mark.parametrize("strength", [0.3, 2.0])
def test_sdmgrad_reaches_scipys_minimum(strength):
    jacobian = random_jacobian(6, 4, seed=2)
    ours = direction("sdmgrad", jacobian, strength=strength) * (1 + strength)
    mean, matrix = jacobian.mean(0).numpy(), jacobian.numpy()
    best = simplex_minimum(lambda w: np.sum((w @ matrix + strength * mean) ** 2), 6)
    assert float(ours.square().sum()) == pytest.approx(best, abs=1e-6)


@given(case=cases(GENERAL, num_tasks=(1, 2, 3, 10)))
@settings(max_examples=25)
def test_upgrad_harms_no_task(case):
    weights, certificates = solved("upgrad", case.jacobian)
    assert certificates["conflict"] <= 1e-4
    lengths = case.jacobian.norm(dim=1)
    slopes = case.jacobian @ (weights @ case.jacobian) / lengths
    assert float(slopes.min()) >= -1e-4 * float(lengths.mean())
    if case.kind == "agreeing":
        np.testing.assert_allclose(weights, np.full(case.num_tasks, 1 / case.num_tasks), rtol=1e-4)


@pytest.mark.parametrize("num_tasks", [2, 5, 10])
def test_upgrad_equals_the_projections_by_nonnegative_least_squares(num_tasks):
    jacobian = random_jacobian(num_tasks, 12, seed=num_tasks)
    rows = jacobian.numpy()
    # The projection of g onto {d: J d >= 0} is g + J^T v, v >= 0 the least squares of -g.
    expected = np.mean([g + nnls(rows.T, -g)[0] @ rows for g in rows], axis=0)
    np.testing.assert_allclose(direction("upgrad", jacobian), expected, atol=1e-3)


# -- GradNorm -----------------------------------------------------------------------------------


def test_gradnorm_balances_the_norms_when_all_losses_fall_alike():
    jacobian = random_jacobian(4, 9) * torch.tensor([[1.0], [3.0], [0.4], [2.0]])
    smto, last = create("gradnorm", 4), []
    for step in range(400):
        losses = torch.full((4,), 0.99**step).double()
        last.append(smto.weights(losses=losses, gramian=jacobian @ jacobian.T))
    np.testing.assert_allclose(torch.stack(last).sum(1), np.ones(400))
    norms = torch.stack(last[-100:]).mean(0) * jacobian.norm(dim=1)  # they jitter with Adam's step
    np.testing.assert_allclose(norms, norms.mean().expand(4), rtol=0.2)


def test_gradnorm_gives_more_to_the_task_that_learns_slowly_below_zero_too():
    smto = create("gradnorm", 2, lr=0.1)
    for step in range(30):
        losses = torch.tensor([1.0 - 10.0 * step, 1.0])
        weights = smto.weights(losses=losses, gramian=torch.eye(2))
    assert weights[1] > weights[0] + 0.1


def test_gradnorm_gives_more_to_tasks_that_learn_slowly():
    gramian = torch.eye(3).double()
    smto = create("gradnorm", 3, alpha=1.0)
    for step in range(200):
        losses = torch.tensor([1.0, 0.99**step, 0.98**step]).double()
        weights = smto.weights(losses=losses, gramian=gramian)
    assert weights[0] > weights[1] > weights[2] > 0
