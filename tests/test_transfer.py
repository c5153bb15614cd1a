"""Copies between the workers' shared memory and the learner's device."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mtrl.device.pinned import Transfer

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
CPU = torch.device("cpu")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_steps_do_not_overwrite_each_other(device: str) -> None:
    """The workers write the same memory at every step; what was copied before stays."""
    transfer = Transfer(torch.device(device))
    shared = [np.zeros((3, 2, 5), kind) for kind in (np.float64, np.float32, np.bool_)]
    kept, expected, before = [], [], None
    for step in range(4):
        for array in shared:
            array[:] = np.arange(30).reshape(array.shape) % (step + 2)
        tensors = transfer.to_device(*shared)
        assert {tensor.device.type for tensor in tensors} == {device}
        addresses = [tensor.data_ptr() for tensor in tensors]
        assert addresses == (before or addresses), "a graph reads the same memory at every step"
        before = addresses
        kept.append([tensor.clone() for tensor in tensors])
        expected.append([array.copy() for array in shared])
        for array in shared:
            array[:] = 0
        actions = transfer.to_host(tensors[1][..., 0].flatten(0, 1))
        assert np.array_equal(actions, expected[-1][1][..., 0].reshape(6))
    for tensors, copies in zip(kept, expected, strict=True):
        for tensor, array in zip(tensors, copies, strict=True):
            assert np.array_equal(tensor.cpu().numpy(), array)
            assert tensor.cpu().numpy().dtype == array.dtype


fields = st.sampled_from([np.float64, np.float32, np.bool_, np.int64]).flatmap(
    lambda kind: arrays.arrays(kind, arrays.array_shapes(max_dims=3, max_side=9))
)


@given(st.lists(fields, min_size=1, max_size=6))
def test_any_fields_come_out_as_they_went_in(sent: list[np.ndarray]) -> None:
    for tensor, array in zip(Transfer(CPU).to_device(*sent), sent, strict=True):
        assert tensor.numpy().dtype == array.dtype
        assert tensor.numpy().tobytes() == array.tobytes()
