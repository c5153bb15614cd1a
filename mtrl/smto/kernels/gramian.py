"""The Gramian of task gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtrl.smto.kernels.tiles import tile_for, warps_for

COLUMNS = 128
"""Of J in one product."""
TILES = 8
"""Products that one program sums in float32."""


@triton.jit
def _gramian(
    jacobian, partial, stride, m: tl.constexpr, columns,
    N: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    index = tl.arange(0, N)
    rows = index[:, None]
    starts = jacobian + rows.to(tl.int64) * stride
    total = tl.zeros((N, N), tl.float32)
    program = tl.program_id(0)
    for tile in range(TILES):
        column = (program * TILES + tile) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        some = tl.load(starts + column, mask=(rows < m) & (column < columns), other=0.0)
        # Three TF32 products, of the leading and the trailing digits: as exact as float32.
        total += tl.dot(some, tl.trans(some), input_precision="tf32x3")
    tl.store(partial + program * N * N + rows * N + index[None, :], total)


def gramian(jacobian: Tensor) -> Tensor:
    """J J^T [m, m] of J [m, P], float32; summed in float64 over blocks of columns."""
    m, columns = jacobian.shape
    if jacobian.stride(1) != 1:
        jacobian = jacobian.contiguous()
    tile = tile_for(m)
    programs = triton.cdiv(columns, COLUMNS * TILES)
    partial = jacobian.new_empty(programs, tile, tile)
    with torch.cuda.device_of(jacobian):
        _gramian[(programs,)](
            jacobian, partial, jacobian.stride(0), m=m, columns=columns, N=tile,
            COLUMNS=COLUMNS, TILES=TILES, num_warps=warps_for(tile),
        )  # fmt: skip
    return partial[:, :m, :m].sum(0, dtype=torch.float64).to(jacobian.dtype)
