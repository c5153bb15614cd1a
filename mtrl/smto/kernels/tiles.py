"""What the kernels are made of: tiles in registers, their rows, and linear systems.

Matrices are padded to [N, N], N a power of two, and masked. A tile [N, 2, N / 2] holds the two
halves of every row beside one another: of a row of 64 entries a warp of 32 threads then has all,
and sums over it stay within the warp. Vectors [2, N / 2] are like a row. Literals next to float64
tensors are float64; a bare constant would be float32, so constants that are kept are made by
`tl.full`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


def tile_for(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def warps_for(tile: int) -> int:
    """1 for a tile of 16, 2 for 32, 4 for 64: measured on an H100, twice as many are slower."""
    return max(1, tile // 16)


def double(tensor: Tensor) -> Tensor:
    return tensor.double().contiguous()


@triton.jit
def numbers(N: tl.constexpr):
    """Of the entries of a vector [2, N / 2], and of a tile's rows [N, 1, 1]."""
    H: tl.constexpr = N // 2
    return tl.arange(0, 2)[:, None] * H + tl.arange(0, H)[None, :], tl.arange(0, N)[:, None, None]


@triton.jit
def down(vector, N: tl.constexpr):
    """A vector as a column [N, 1, 1] of a tile; `across`: as a row."""
    return tl.reshape(vector, (N,))[:, None, None]


@triton.jit
def across(vector):
    return vector[None, :, :]


@triton.jit
def sum_of(vector):
    return tl.sum(tl.sum(vector, axis=0), axis=0)


@triton.jit
def row_of(tile, rows, k):
    """Row k of a tile, as a vector."""
    return tl.sum(tl.where(rows == k, tile, 0.0), axis=0)


@triton.jit
def add_diagonal(tile, diagonal, index, rows):
    return tl.where(rows == across(index), tile + across(diagonal), tile)


@triton.jit
def bordered(tile, right, index, rows, at: tl.constexpr, N: tl.constexpr):
    """The tile with `right` as its row and its column `at`."""
    tile = tl.where(across(index) == at, down(right, N), tile)
    return tl.where(rows == at, across(right), tile)


@triton.jit
def sweep(tile, index, rows, pivots: tl.constexpr, N: tl.constexpr):
    """Solve A X = B with A [pivots, pivots] positive definite, from the tile [[A, B], [B^T, 0]].

    -> that tile with X^T in place of B^T, and the smallest pivot. The sweep operator (Goodnight
    1979), Gauss-Jordan elimination that keeps the tile symmetric: a pivot's column is its row. Rows
    of A are meaningless afterwards.
    """
    smallest = tl.full((), float("inf"), tl.float64)
    for k in range(pivots):
        row = row_of(tile, rows, k)
        pivot = sum_of(tl.where(index == k, row, 0.0))
        smallest = tl.where(pivot < smallest, pivot, smallest)
        reciprocal = 1.0 / pivot
        scaled = tl.where(index == k, -reciprocal, row * reciprocal)
        tile = tl.where(across(index) == k, 0.0, tile) - down(row, N) * across(scaled)
    return tile, smallest
