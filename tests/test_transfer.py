"""Copies between the workers' shared memory and the learner's device."""

import numpy as np
import pytest
import torch

from mtrl.transfer import Transfer

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.bool_])
def test_steps_do_not_overwrite_each_other(device: str, dtype: type) -> None:
    """The workers write the same memory at every step; what was copied before stays."""
    transfer, shared = Transfer(torch.device(device)), np.zeros((3, 2, 4), dtype)
    kept, expected = [], []
    for step in range(4):
        shared[:] = np.arange(24).reshape(shared.shape) % (step + 2)
        tensor = transfer.to_device("values", shared)
        assert tensor.device.type == device
        kept.append(tensor)
        expected.append(shared.copy())
        actions = transfer.to_host("actions", tensor[..., 0].flatten(0, 1))
        assert np.array_equal(actions, shared[..., 0].reshape(6))
    for tensor, array in zip(kept, expected, strict=True):
        assert np.array_equal(tensor.cpu().numpy(), array)
        assert tensor.cpu().numpy().dtype == dtype
