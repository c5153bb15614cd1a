"""Methods that keep a number for each task and parameter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchjd.aggregation as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from smto_cases import random_jacobian
from torch import Tensor

from mtrl.smto import create
from mtrl.smto.remembered import projected_on_simplex
from mtrl.smto.source import Rows

NAMES = ("db_mtl", "excess_mtl", "modo")


def stream(steps: int) -> list[tuple[Tensor, Tensor]]:
    """(Jacobian, losses) per step."""
    return [
        (
            random_jacobian(4, 6, seed=k),
            random_jacobian(4, 1, seed=k)[:, 0].abs() + 0.1,
        )
        for k in range(steps)
    ]


@pytest.mark.parametrize("options", [{}, {"beta": 0.0}, {"beta": 0.6, "sigma": 0.0}])
def test_db_mtl_follows_the_published_update(options):
    beta, sigma = options.get("beta", 0.9), options.get("sigma", 0.5)
    smto, average = create("db_mtl", 4, **options), np.zeros((4, 6))
    for step, (jacobian, losses) in enumerate(stream(10), start=1):
        fresh = jacobian.numpy() / losses.numpy()[:, None]
        average = fresh + beta / step**sigma * (average - fresh)
        lengths = np.linalg.norm(average, axis=1)
        expected = (lengths.max() / lengths) @ average / 4
        np.testing.assert_allclose(smto.combine(jacobian, losses), expected, rtol=1e-9)


def test_db_mtl_does_not_change_with_the_scale_of_a_loss():
    plain, scaled = create("db_mtl", 4), create("db_mtl", 4)
    factor = torch.tensor([1.0, 100.0, 1e-3, 7.0]).double()
    for jacobian, losses in stream(4):
        ours = scaled.combine(factor[:, None] * jacobian, factor * losses)
        np.testing.assert_allclose(ours, plain.combine(jacobian, losses), rtol=1e-9)


def test_excess_mtl_follows_torchjd_from_the_second_step_on():
    # torchjd's first step moves the weights too, by risks in their own units: with a tiny step size
    # that is nothing, and the logarithms of the weights are compared in units of the step size.
    eta = 1e-6
    ours, theirs = create("excess_mtl", 4, step_size=eta), reference.ExcessMTL(eta)
    first = None
    for jacobian, losses in stream(12):
        weights = ours.choose(Rows(jacobian, losses)).weights
        expected = theirs.weighting(jacobian)
        found = torch.stack([weights.log(), expected.log()]) / eta
        first = found if first is None else first
        change = (found - first) - (found - first).mean(1, keepdim=True)
        np.testing.assert_allclose(change[0], change[1], rtol=1e-4, atol=1e-4)
    assert float(change.abs().max()) > 0.1


def test_excess_mtl_gives_more_to_tasks_that_converge_slowly():
    smto = create("excess_mtl", 3)
    for step in range(200):
        shrink = torch.tensor([1.0, 0.99, 0.98]).double() ** step
        chosen = smto.choose(Rows(shrink[:, None] * random_jacobian(3, 6, seed=step), shrink))
    first, second, third = chosen.weights.tolist()
    assert first > second > third > 0
    assert first + second + third == pytest.approx(1.0)


def test_excess_mtl_waits_for_the_first_gradient_of_a_task():
    smto = create("excess_mtl", 2)
    for jacobian in ([[1.0], [0.0]], [[1.0], [1.0]], [[1.0], [1.0]]):
        weights = smto.choose(Rows(torch.tensor(jacobian), torch.ones(2))).weights
        assert weights.isfinite().all()
        assert float(weights.min()) > 0.49  # a ratio of anything to nothing would be all there is


def test_modo_follows_torchjd_with_the_step_before_as_the_second_sample():
    ours, theirs = create("modo", 4, gamma=0.05, rho=0.2), reference.MoDoWeighting(0.05, 0.2)
    before = None
    for jacobian, losses in stream(15):
        chosen = ours.choose(Rows(jacobian, losses))
        if before is None:
            expected = torch.full((4,), 0.25, dtype=torch.float64)
        else:
            expected = theirs(jacobian @ before.T)
        np.testing.assert_allclose(chosen.weights, expected, atol=1e-12)
        np.testing.assert_allclose(chosen.direction, expected @ jacobian, atol=1e-12)
        before = jacobian
    assert float(expected.max()) > 0.3


def test_modo_goes_to_the_weights_of_mgda():
    jacobian = random_jacobian(3, 5, seed=2)
    smto = create("modo", 3, gamma=0.02, rho=0.0)
    for _ in range(2000):
        weights = smto.choose(Rows(jacobian, torch.ones(3))).weights
    expected = create("mgda", 3).weights(gramian=jacobian @ jacobian.T)
    np.testing.assert_allclose(weights, expected, atol=1e-4)


@given(point=st.lists(st.floats(-3, 3), min_size=1, max_size=20), scale=st.sampled_from((1, 1e30)))
@settings(max_examples=50)
def test_projection_on_the_simplex(point, scale):
    point = scale * torch.tensor(point, dtype=torch.float64)
    found = projected_on_simplex(point)
    assert float(found.sum()) == pytest.approx(1.0)
    assert float(found.min()) >= 0
    # Optimal: the residual is the same where w > 0, and no larger elsewhere.
    residual = (point - point.max()) - found
    assert (residual[found == 0] <= residual[found > 0].min() + 1e-9).all()
    np.testing.assert_allclose(residual[found > 0], residual[found > 0].mean(), atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_remembered_has_the_precision_of_the_jacobian(name):
    smto, shared = create(name, 3), torch.empty(3, 5)
    assert not smto.capturable
    for seed in range(3):  # a run's Jacobians share one memory
        shared.copy_(random_jacobian(3, 5, seed))
        smto.direction(shared, torch.ones(3))
    assert smto.capturable
    assert smto.memory.shape == ((5,) if name == "modo" else (3, 5))
    assert smto.memory.dtype == torch.float32
    assert smto.memory.data_ptr() != shared.data_ptr()


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_state_can_be_restored_too(name):
    used, fresh = create(name, 4), create(name, 4)
    used.combine(*stream(1)[0])
    used.load_state_dict(create(name, 4).state_dict())
    for jacobian, losses in stream(3):
        assert torch.equal(used.combine(jacobian, losses), fresh.combine(jacobian, losses))


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("db_mtl", {"beta": 1.0}, r"beta must be in \[0, 1\), not 1.0"),
        ("db_mtl", {"sigma": -1.0}, "sigma must not be negative"),
        ("excess_mtl", {"step_size": 0.0}, "step_size must be positive"),
        ("modo", {"gamma": 0.0}, "gamma must be positive"),
        ("modo", {"rho": -0.1}, "rho must not be negative"),
    ],
)
def test_impossible_options_are_refused(name, options, match):
    with pytest.raises(ValueError, match=match):
        create(name, 2, **options)
