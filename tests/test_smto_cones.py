"""ConFIG and DualProj against their definitions, torchjd and least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torchjd.aggregation as reference
from hypothesis import given, settings
from scipy.optimize import nnls
from smto_cases import cases, direction, random_jacobian

from mtrl.smto import create

GENERAL = ("random", "low rank", "conflicting", "agreeing", "collinear", "opposite", "uneven")


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10])
def test_conflict_free_is_a_mth_of_torchjds_config(num_tasks):
    jacobian = random_jacobian(num_tasks, 15, seed=num_tasks)
    expected = reference.ConFIG()(jacobian) / num_tasks
    np.testing.assert_allclose(direction("conflict_free", jacobian), expected, rtol=1e-6)


def test_conflict_free_of_dependent_gradients_is_torchjds_config():
    jacobian = random_jacobian(6, 3)
    expected = reference.ConFIG()(jacobian) / 6
    np.testing.assert_allclose(direction("conflict_free", jacobian), expected, rtol=1e-6)


@given(case=cases(("random", "agreeing", "uneven", "equal")))
@settings(max_examples=25)
def test_conflict_free_has_the_same_cosine_with_all_and_the_mean_projection_as_length(case):
    ours = direction("conflict_free", case.jacobian)
    lengths = case.jacobian.norm(dim=1)
    projections = case.jacobian @ ours / ours.norm()
    cosines = projections / lengths
    np.testing.assert_allclose(cosines, cosines.mean().expand_as(lengths), rtol=1e-6)
    assert float(cosines.min()) > 0
    assert float(ours.norm()) == pytest.approx(float(projections.mean()), rel=1e-6)


@given(case=cases(("opposite",), num_tasks=(2, 10, 50)))
@settings(max_examples=10)
def test_conflict_free_is_zero_where_gradients_cancel(case):
    lengths = case.jacobian.norm(dim=1)
    assert float(direction("conflict_free", case.jacobian).norm() / lengths.max()) <= 1e-9


def test_conflict_free_points_where_imtl_g_does():
    jacobian = random_jacobian(5, 12, seed=4)
    one, other = direction("conflict_free", jacobian), direction("imtl_g", jacobian)
    assert float(one @ other / (one.norm() * other.norm())) == pytest.approx(1.0)


@pytest.mark.parametrize(("num_tasks", "dim"), [(1, 12), (2, 12), (5, 12), (10, 12), (10, 4)])
def test_dual_proj_is_the_projection_by_nonnegative_least_squares(num_tasks, dim):
    jacobian = random_jacobian(num_tasks, dim, seed=num_tasks)
    rows = jacobian.numpy()
    # The projection of g onto {d: J d >= 0} is g + J^T v, v >= 0 the least squares of -g.
    expected = rows.mean(0) + nnls(rows.T, -rows.mean(0))[0] @ rows
    np.testing.assert_allclose(direction("dual_proj", jacobian), expected, atol=1e-4)


@given(case=cases(GENERAL, num_tasks=(1, 2, 3, 10, 50)))
@settings(max_examples=40)
def test_dual_proj_harms_no_task_and_keeps_a_mean_that_harms_none(case):
    smto = create("dual_proj", case.num_tasks)
    ours = smto.combine(case.jacobian, case.losses)
    lengths = case.jacobian.norm(dim=1)
    slopes = case.jacobian @ ours / lengths
    largest = float(lengths.max())
    assert float(slopes.min()) >= -1e-4 * largest
    assert float(smto.certificates()["conflict"]) == pytest.approx(
        max(0.0, -float(slopes.min()) / largest), abs=1e-9
    )
    mean = case.jacobian.mean(0)
    if float((case.jacobian @ mean / lengths).min()) >= 0:
        np.testing.assert_allclose(ours, mean, atol=1e-4 * largest)
    # A projection is no longer than what is projected.
    assert float(ours.norm()) <= float(mean.norm()) + 1e-4 * largest
