"""Copies between the workers' arrays and the learner's device."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class Transfer:
    """On CUDA by way of pinned memory, one buffer per name; elsewhere plain copies.

    A buffer is used again at the next step. By then its copy has been made, because every step
    waits for its actions (`to_host`), which come after it on the same stream.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pinned: dict[str, Tensor] = {}

    def to_device(self, name: str, array: NDArray[Any]) -> Tensor:
        """A copy on the device; the array may change afterwards. Does not wait."""
        if self.device.type != "cuda":
            return torch.tensor(array, device=self.device)
        source = torch.from_numpy(array)
        pinned = self._buffer(name, source)
        pinned.copy_(source)
        return pinned.to(self.device, non_blocking=True)

    def to_host(self, name: str, tensor: Tensor) -> NDArray[Any]:
        """Waits until it is computed. On CUDA, valid until the next call with this name."""
        if self.device.type != "cuda":
            return tensor.numpy()
        pinned = self._buffer(name, tensor)
        pinned.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()
        return pinned.numpy()

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        if name not in self._pinned:
            self._pinned[name] = torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
        return self._pinned[name]
