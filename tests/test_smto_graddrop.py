"""GradDrop and its sign-agnostic version."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from smto_cases import cases, direction, random_jacobian

from mtrl.smto import create


@given(case=cases(("random", "agreeing", "low rank", "one zero")))
@settings(max_examples=25)
def test_every_coordinate_has_the_sum_of_its_positive_or_of_its_negative_entries(case):
    ours = direction("graddrop", case.jacobian) * case.num_tasks
    sums = [case.jacobian.clamp(min=0.0).sum(0), case.jacobian.clamp(max=0.0).sum(0)]
    near = torch.stack([(ours - s).abs() for s in sums]).amin(0)
    assert float(near.max()) <= 1e-12 * float(case.jacobian.abs().sum(0).max())
    if case.kind == "agreeing":
        np.testing.assert_allclose(ours, case.jacobian.sum(0), rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "options"),
    [("graddrop", {}), ("graddrop", {"leak": 0.3}), ("graddrop_random", {"p": 0.3})],
)
def test_the_expected_direction_is_the_mean_gradient(name, options):
    jacobian, losses = random_jacobian(4, 20, seed=3), torch.ones(4).double()
    smto = create(name, 4, **options)
    draws = torch.stack([smto.combine(jacobian, losses) for _ in range(2000)])
    error = (draws.mean(0) - jacobian.mean(0)).abs()
    assert (error <= 5 * draws.std(0) / 2000**0.5 + 1e-12).all()


def test_positive_entries_are_kept_with_the_probability_of_their_purity():
    column = torch.tensor([[3.0], [-1.0]]).double()  # purity (1 + 2 / 4) / 2
    smto, losses = create("graddrop", 2, seed=4), torch.ones(2).double()
    kept = smto.combine(column.expand(2, 4000), losses) > 0
    error = (0.75 * 0.25 / 4000) ** 0.5  # the standard error
    assert float(kept.double().mean()) == pytest.approx(0.75, abs=5 * error)


def test_a_full_leak_is_the_mean():
    jacobian = random_jacobian(3, 8)
    np.testing.assert_allclose(direction("graddrop", jacobian, leak=1.0), jacobian.mean(0))


def test_entries_are_dropped_independently():
    ours = direction("graddrop_random", torch.ones(2, 4000).double(), p=0.25)
    counts = (ours * 2 * 0.75).round()
    for kept, probability in enumerate([0.0625, 0.375, 0.5625]):
        error = (probability * (1 - probability) / 4000) ** 0.5
        share = float((counts == kept).double().mean())
        assert share == pytest.approx(probability, abs=5 * error)


def test_dropping_nothing_is_the_mean():
    jacobian = random_jacobian(3, 8)
    np.testing.assert_allclose(direction("graddrop_random", jacobian, p=0.0), jacobian.mean(0))


@pytest.mark.parametrize(
    ("name", "options"), [("graddrop", {"leak": 1.5}), ("graddrop_random", {"p": 1.0})]
)
def test_impossible_options_are_refused(name, options):
    with pytest.raises(ValueError, match=r"must be in \[0, 1"):
        create(name, 2, **options)
