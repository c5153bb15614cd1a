"""Memory for task gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.device.memory import free_memory

ALIGNED = 32
"""Rows begin at multiples of so many numbers: elsewhere cuBLAS has no fast kernels."""


class Buffer:
    """Kept from one update to the next: fresh pages cost as much time as the matrix
    products that fill them."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._outgrown: list[Tensor] = []
        """Captured updates continue to write to the memory that they were captured with."""

    def take(self, tasks: int, columns: int, like: Tensor) -> Tensor:
        """[tasks, columns], uninitialised; MemoryError, before allocating, if it will not fit."""
        held = self._memory
        row = -(-columns // ALIGNED) * ALIGNED
        if held is None or held.numel() < tasks * row or held.device != like.device:
            if held is not None and held.is_cuda:
                self._outgrown.append(held)
            self._memory = held = None
            need, free = like.element_size() * tasks * row, free_memory(like.device)
            if need > free:
                raise MemoryError(
                    f"the gradients of {tasks} tasks, {columns:,} parameters each, need "
                    f"{need / 2**30:.1f} GiB on {like.device}, where {free / 2**30:.1f} GiB are "
                    "free; agent.chunk_size bounds this for methods that need the Gramian"
                )
            self._memory = held = torch.empty(tasks * row, dtype=like.dtype, device=like.device)
        return held[: tasks * row].view(tasks, row)[:, :columns]
