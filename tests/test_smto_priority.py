"""PCD against its definition, its closed form, torchjd and the conditions of its optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchjd.aggregation as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from smto_cases import GOLDEN, cases, direction, random_jacobian

from mtrl.smto import create

UNIQUE = ("random", "conflicting", "agreeing", "uneven")
"""Constraints never contradict one another."""


def test_golden_values_are_those_of_the_closed_form():
    # c = -22 / (18 * 38)^(1/2) = -0.8412: x = tau - c = 0.8612, |d|^2 = 1 - c^2 + tau^2 = 0.2928,
    # and the weights are 1 / |d| and x (18 / 38)^(1/2) / |d|.
    weights = create("pcd", 2).weights(gramian=GOLDEN @ GOLDEN.T)
    np.testing.assert_allclose(weights, (1.8481, 1.0954), atol=5e-5)


@pytest.mark.parametrize("tau", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 5, 10])
def test_pcd_follows_torchjd_over_steps(num_tasks, tau):
    ours = create("pcd", num_tasks, tau=tau, beta=0.9)
    theirs = reference.PCD(tau=tau, beta=0.9, eps=0.0)
    growth = torch.linspace(1.0, 30.0, num_tasks).double()[:, None]
    for step in range(8):
        jacobian = growth**step * random_jacobian(num_tasks, 15, seed=step)
        expected = theirs(jacobian)
        found = ours.combine(jacobian, torch.ones(num_tasks))
        assert float((found - expected).norm()) <= 1e-4 * float(expected.norm())


def test_the_primary_task_can_be_any():
    jacobian = random_jacobian(4, 9)
    moved = [2, 0, 1, 3]
    first = direction("pcd", jacobian[moved])
    np.testing.assert_allclose(direction("pcd", jacobian, primary=2), first, rtol=1e-9)


@given(case=cases(UNIQUE, num_tasks=(2, 3, 10, 50)), tau=st.sampled_from((0.0, 0.02, 0.3, 1.0)))
@settings(max_examples=40)
def test_every_task_gets_its_share_and_only_a_binding_one_gets_more_weight(case, tau):
    smto = create("pcd", case.num_tasks, tau=tau)
    weights = smto.weights(gramian=case.jacobian @ case.jacobian.T)
    lengths = case.jacobian.norm(dim=1)
    units = case.jacobian / lengths[:, None]
    # In units of d, the weight of the primary's unit gradient is 1 at the first step.
    parts = weights * lengths / (weights[0] * lengths[0])
    progress = units @ (parts @ units)
    assert float(parts.min()) >= 0
    scale = float(parts.sum())
    assert float(progress[1:].min()) >= tau - 1e-5 * scale
    slack = (progress[1:] - tau) * parts[1:]
    assert float(slack.abs().max()) <= 1e-5 * scale**2
    assert float(smto.certificates()["shortfall"]) <= 1e-5 * scale
    found = weights @ case.jacobian
    assert float(found.norm()) == pytest.approx(float(lengths[0]), rel=1e-6)


@given(case=cases(("agreeing", "equal"), num_tasks=(2, 10, 50)))
@settings(max_examples=15)
def test_a_primary_gradient_that_helps_all_is_kept(case):
    np.testing.assert_allclose(direction("pcd", case.jacobian), case.jacobian[0], rtol=1e-6)


def test_constraints_that_contradict_one_another_are_missed_by_as_little_as_possible():
    jacobian = torch.tensor([[1.0, 2.0], [1.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_allclose(direction("pcd", jacobian.double()), [0.0, 5**0.5], atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_primary_gradient_is_what_contradictions_in_its_own_line_leave(dtype):
    jacobian = torch.tensor([[3.0, 3.0], [1.0, 1.0], [-1.0, -1.0]], dtype=dtype)
    np.testing.assert_allclose(direction("pcd", jacobian), jacobian[0], rtol=1e-5)


def test_no_step_is_possible_against_a_task_that_may_not_get_worse():
    jacobian = torch.tensor([[1.0, 2.0], [-2.0, -4.0]])
    np.testing.assert_allclose(direction("pcd", jacobian, tau=0.0), [0.0, 0.0], atol=1e-5)
    harmed = direction("pcd", jacobian, tau=0.02)  # progress for it is worth a step backwards
    np.testing.assert_allclose(harmed, -jacobian[0], rtol=1e-3)


def test_a_primary_task_without_a_gradient_takes_no_step():
    jacobian = random_jacobian(3, 5)
    jacobian[0] = 0.0
    assert (direction("pcd", jacobian) == 0).all()


def test_the_scale_of_a_tasks_loss_does_not_matter():
    plain, scaled = create("pcd", 3, tau=0.3), create("pcd", 3, tau=0.3)
    factor = torch.tensor([1.0, 1e-12, 1e9]).double()[:, None]
    for seed in range(4):
        jacobian = random_jacobian(3, 5, seed=seed)
        ours = scaled.combine(factor * jacobian, torch.ones(3))
        np.testing.assert_allclose(ours, plain.combine(jacobian, torch.ones(3)), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"primary": 3}, r"primary must be a task in 0..2, not 3"),
        ({"primary": -1}, r"primary must be a task in 0..2, not -1"),
        ({"tau": 1.5}, r"tau must be in \[0, 1\], not 1.5"),
        ({"beta": 1.0}, r"beta must be in \[0, 1\), not 1.0"),
    ],
)
def test_impossible_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        create("pcd", 3, **options)
