"""The option `ema`: weights averaged over steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchjd.aggregation as reference
from smto_cases import ALL, make, options_of, random_jacobian

from mtrl.smto import RandomSMTO, create, describe

WEIGHTED = [name for name in ALL if "ema" in options_of(name)]


def given(step: int) -> dict[str, torch.Tensor]:
    jacobian = random_jacobian(3, 6, seed=step)
    return {
        "losses": random_jacobian(3, 1, seed=step)[:, 0].abs() + 0.1,
        "gramian": jacobian @ jacobian.T,
    }


def test_all_methods_with_varying_weights_have_it():
    constant = {"unitary", "fixed"}
    assert set(WEIGHTED) == {n for n in ALL if describe(n).needs != "jacobian"} - constant
    with pytest.raises(ValueError, match="method 'graddrop' has no option 'ema'"):
        create("graddrop", 3, ema=0.5)


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_are_an_average_of_the_methods_own(name):
    plain, averaged, expected = make(name, 3), make(name, 3, ema=0.7), None
    for step in range(5):
        fresh = plain.weights(**given(step)).double()
        expected = fresh if expected is None else 0.7 * expected + 0.3 * fresh
        ours = averaged.weights(**given(step))
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-15)
        if plain.wants_losses_after:
            for smto in (plain, averaged):
                smto.after_step(given(step + 1)["losses"])
        ours.zero_()  # the caller's own
    assert isinstance(averaged, type(plain))
    assert isinstance(averaged, RandomSMTO) == isinstance(plain, RandomSMTO)
    assert (averaged.needs, averaged.capturable) == (plain.needs, plain.capturable)
    assert averaged.certificates().keys() == plain.certificates().keys()


def test_it_is_torchjds_cr_mogm():
    theirs = reference.CRMOGMWeighting(reference.AlignedMTLWeighting(), alpha=0.6)
    ours = create("aligned_mtl", 3, ema=0.6)
    for step in range(6):
        gramian = given(step)["gramian"]
        np.testing.assert_allclose(ours.weights(gramian=gramian), theirs(gramian), rtol=1e-6)


def test_held_weights_count_at_every_step():
    smto = create("cagrad", 3, ema=0.5, update_every=2)
    plain = create("cagrad", 3)
    first = plain.weights(gramian=given(0)["gramian"])
    third = plain.weights(gramian=given(2)["gramian"])
    expected = [first, first, 0.5 * (first + third), 0.25 * first + 0.75 * third]
    for step, weights in enumerate(expected):
        needed = given(step)
        if smto.needs == "losses":
            needed.pop("gramian")
        np.testing.assert_allclose(smto.weights(**needed), weights, rtol=1e-12)


@pytest.mark.parametrize("ema", [-0.1, 1.0, 2.0, float("nan")])
def test_impossible_averages_are_refused(ema):
    with pytest.raises(ValueError, match=r"ema must be in \[0, 1\)"):
        create("pcgrad", 3, ema=ema)


def test_an_option_of_that_name_stays_the_methods_own():
    class Own(type(create("si", 2))):
        def __init__(self, num_tasks, *, ema=3.0):
            super().__init__(num_tasks)
            self.ema = ema

    assert create(Own, 2, ema=5.0).ema == 5.0
    assert describe(Own).options["ema"] == 3.0
