"""Exploration noise that an environment keeps for some steps."""

from __future__ import annotations

import copy

import numpy as np
import torch

from mtrl.networks.exploration import Exploration

CPU = torch.device("cpu")
SHAPE = (2, 50, 3)


def test_noise_is_kept_for_zeta_distributed_times() -> None:
    longest = 5
    exploration = Exploration(SHAPE, 1, longest, CPU)
    steps = torch.stack([exploration.noise(SHAPE).clone() for _ in range(400)])
    assert abs(float(steps.mean())) < 0.03
    assert abs(float(steps.std()) - 1.0) < 0.03
    lengths = []
    for lane in steps.flatten(1, 2).unbind(1):
        changed = (lane[1:] != lane[:-1]).all(-1)
        assert torch.equal(changed, (lane[1:] != lane[:-1]).any(-1)), "all dimensions together"
        ends = changed.nonzero().flatten().numpy()
        lengths += np.diff(ends).tolist()
    counts = np.bincount(lengths, minlength=longest + 1)[1:]
    assert len(counts) == longest
    expected = 1.0 / np.arange(1, longest + 1) ** 2
    expected /= expected.sum()
    # About 28,000 noises: the standard deviation of a share is at most 0.003.
    np.testing.assert_allclose(counts / counts.sum(), expected, atol=0.015)


def test_fresh_noise_is_the_plain_stream() -> None:
    generator = torch.Generator().manual_seed(1)
    exploration = Exploration(SHAPE, 1, 1, CPU)
    for _ in range(3):
        assert torch.equal(exploration.noise(SHAPE), torch.randn(SHAPE, generator=generator))
    assert exploration.state_dict() == {}


def test_kept_noise_continues_from_a_state() -> None:
    one, two = (Exploration(SHAPE, seed, 16, CPU) for seed in (1, 2))
    for _ in range(5):
        one.noise(SHAPE)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    two.generator.set_state(one.generator.get_state())
    for _ in range(30):
        assert torch.equal(one.noise(SHAPE), two.noise(SHAPE))
