"""Copies between the workers' arrays and the learner's device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 64  # bytes


class Transfer:
    """One copy each way per vector step; on CUDA by way of pinned memory.

    The memory is used again at the next step. By then its copy has been made, because every step
    waits for its actions (`to_host`), which come after it on the same stream.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._block = self._copy = torch.empty(0)
        """Bytes on the host, and on the device: the same where that is the CPU."""
        self._arrays: list[NDArray[Any]] = []
        self._tensors: list[Tensor] = []
        self._returned: Tensor | None = None

    def to_device(self, *arrays: NDArray[Any]) -> list[Tensor]:
        """Copies of all arrays on the device; the arrays may change afterwards. Does not wait.

        They are the same tensors at every call, of arrays that keep their shapes.
        """
        if not self._tensors:
            self._allocate(arrays)
        for mine, array in zip(self._arrays, arrays, strict=True):
            mine[...] = array
        if self._copy is not self._block:
            self._copy.copy_(self._block, non_blocking=True)
        return self._tensors

    def _allocate(self, arrays: tuple[NDArray[Any], ...]) -> None:
        ends = np.cumsum([-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays]).tolist()
        self._block = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=self._pins)
        self._copy = self._block.to(self.device)
        for first, array in zip([0, *ends], arrays, strict=False):
            here, dtype = slice(first, first + array.nbytes), torch.from_numpy(array).dtype
            mine, copy = (
                block[here].view(dtype).view(array.shape) for block in (self._block, self._copy)
            )
            self._arrays.append(mine.numpy())
            self._tensors.append(copy)

    def to_host(self, tensor: Tensor) -> NDArray[Any]:
        """Waits until it is computed. Valid until the next call, which has the same shape."""
        if not self._pins:
            return tensor.numpy()
        if self._returned is None:
            self._returned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._returned.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()
        return self._returned.numpy()

    @property
    def _pins(self) -> bool:
        return self.device.type == "cuda"
