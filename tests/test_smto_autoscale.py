"""AutoScale: exploration with changing weights, then constant ones."""

import copy

import numpy as np
import pytest
import torch
from smto_cases import random_jacobian

from mtrl.agent import create_smto
from mtrl.config import AgentConfig, Config, SmtoConfig
from mtrl.smto import create
from mtrl.smto.autoscale import best_conditioned


def explore(smto, lengths):
    """One call per row of `lengths` [steps, m]: orthogonal gradients of these lengths."""
    rows = torch.as_tensor(np.asarray(lengths, dtype=np.float64))
    return [smto.weights(losses=row, gramian=torch.diag(row.square())).numpy() for row in rows]


def test_windows_give_equal_magnitudes_and_the_second_phase_needs_only_losses():
    smto = create("autoscale", 2, total_steps=20, windows=2, combination="last")
    weights = explore(smto, [(1, 2), (3, 2), (1, 9), (1, 9)])
    np.testing.assert_allclose(weights[:2], 0.5)  # the first window: uniform
    np.testing.assert_allclose(weights[2:], [(0.5, 0.5)] * 2)  # mean lengths 2, 2
    assert smto.needs == "losses"
    for _ in range(16):
        np.testing.assert_allclose(smto.weights(losses=torch.ones(2)), (0.9, 0.1))


def test_a_longer_run_does_not_explore_again():
    short, longer = (create("autoscale", 2, total_steps=n, windows=2) for n in (20, 2000))
    explore(short, [(1, 9)] * 4)
    longer.load_state_dict(copy.deepcopy(short.state_dict()))
    assert not longer.exploring
    assert longer.needs == "losses"
    ones = torch.ones(2)
    assert torch.equal(longer.weights(losses=ones), short.weights(losses=ones))


@pytest.mark.parametrize("every", [1, 3, 7])
def test_on_the_actor_it_explores_for_the_same_share_of_a_run(every):
    config = Config(agent=AgentConfig(actor_every=every, smto=SmtoConfig("autoscale")))
    for loss, rests in (("critic", 1), ("actor", every)):
        smto = create_smto(config, loss, torch.device("cpu"))
        share = smto.length * smto.windows * rests / config.total_updates
        assert share == pytest.approx(0.2, rel=1e-3)


def found(combination, windows=3):
    smto = create(
        "autoscale", 2, total_steps=windows, exploration=1.0, windows=windows,
        combination=combination,
    )  # fmt: skip
    explore(smto, [(4, 1), (3, 2), (2, 3)][:windows])  # weights .2, .4, .6 of the first task
    return smto.weights(losses=torch.ones(2)).numpy()


@pytest.mark.parametrize(("combination", "first"), [("last", 0.6), ("mean", 0.4), ("linear", 0.8)])
def test_windows_are_combined(combination, first):
    np.testing.assert_allclose(found(combination), (first, 1 - first))


def test_one_window_needs_no_combination():
    np.testing.assert_allclose(found("linear", windows=1), (0.2, 0.8))


def test_extrapolated_weights_stay_positive():
    smto = create("autoscale", 2, total_steps=3, exploration=1.0, windows=3)
    explore(smto, [(1, 9), (1, 1), (99, 1)])
    weights = smto.weights(losses=torch.ones(2))
    assert (weights > 0).all()
    assert float(weights.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("cost", ["equal_magnitude", "condition_number"])
@pytest.mark.parametrize("lengths", [(1.0, 4.0, 0.0), (0.0, 0.0, 0.0)])
def test_a_task_without_a_gradient_gets_the_mean_weight(cost, lengths):
    smto = create("autoscale", 3, total_steps=10, windows=1, exploration=0.2, cost=cost)
    gramian = torch.tensor(lengths).square().diag()
    for _ in range(3):
        weights = smto.weights(losses=torch.ones(3), gramian=gramian)
    assert weights.sum().item() == pytest.approx(1.0)
    if any(lengths):
        assert weights[2].item() == pytest.approx(weights[:2].mean().item())
        assert weights[0] / weights[1] == pytest.approx(4.0, rel=1e-3)
    else:
        assert weights.tolist() == pytest.approx([1 / 3] * 3)


def test_loss_scale_never_needs_the_gramian():
    smto = create("autoscale", 2, total_steps=10, windows=1, cost="loss_scale")
    for _ in range(4):
        assert smto.needs == "losses"
        weights = smto.weights(losses=torch.tensor([1.0, 4.0]))
    np.testing.assert_allclose(weights, (0.8, 0.2))


@pytest.mark.parametrize("seed", range(3))
def test_the_best_conditioning_of_two_tasks_is_equal_magnitude(seed):
    jacobian = random_jacobian(2, 5, seed) * torch.tensor([[1.0], [30.0]])
    weights = best_conditioned(jacobian @ jacobian.T)
    lengths = weights * jacobian.norm(dim=1)
    np.testing.assert_allclose(lengths[0], lengths[1], rtol=0.02)


def condition(weights, jacobian):
    values = torch.linalg.svdvals(weights[:, None] * jacobian)
    return float(values[0] / values[-1])


@pytest.mark.parametrize("seed", range(3))
def test_the_condition_number_is_nearly_the_smallest_of_a_random_search(seed):
    jacobian = random_jacobian(4, 6, seed) * torch.tensor([[1.0], [5.0], [0.2], [3.0]])
    ours = best_conditioned(jacobian @ jacobian.T)
    equal = 1.0 / jacobian.norm(dim=1)
    tried = equal * torch.exp(random_jacobian(2000, 4, seed=9))
    best = min(condition(weights, jacobian) for weights in tried)
    assert condition(ours, jacobian) <= 1.02 * best
    assert condition(ours, jacobian) <= condition(equal, jacobian) * 1.000001


def test_the_condition_number_cost_sets_these_weights():
    jacobian = random_jacobian(3, 6)
    gramian = jacobian @ jacobian.T
    smto = create("autoscale", 3, total_steps=10, windows=1, cost="condition_number")
    for _ in range(3):
        weights = smto.weights(losses=torch.ones(3), gramian=gramian)
    expected = best_conditioned(gramian)
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"cost": "cosine"}, "cost must be equal_magnitude"),
        ({"combination": "best"}, "combination must be last"),
        ({"exploration": 0.0}, r"exploration must be in \(0, 1\]"),
        ({"windows": 0}, "windows must be at least 1"),
        ({"total_steps": 40}, "total_steps must give each of the 10 windows"),
    ],
)
def test_impossible_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        create("autoscale", 2, **options)
