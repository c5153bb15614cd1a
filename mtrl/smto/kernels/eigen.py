"""Eigenvalues and eigenvectors."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtrl.smto.kernels.tiles import double, tile_for, warps_for

SWEEPS = 30
"""At most; a Jacobi method needs about eight for 50 tasks."""


@triton.jit(do_not_specialize_on_alignment=["matrix", "values", "vectors"])
def _eigen(
    matrix, values, vectors,
    m: tl.constexpr, sweeps: tl.constexpr, N: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """One-sided Jacobi method (Hestenes 1958) on W = A / s + 2 I, s the largest entry of A.

    Rotations of pairs of columns make the columns of W orthogonal; then they are eigenvectors of
    A, and as long as its eigenvalues / s + 2. In a round every column takes part in one rotation:
    those of `upper` with those of `lower` [N, H], of which `used` columns each are in use. Rounds
    are a tournament (Brent & Luk 1985): the first column stays, the others go around.
    """
    index, slot = tl.arange(0, N), tl.arange(0, H)
    rows, columns = index[:, None], slot[None, :]
    used: tl.constexpr = (m + 1) // 2
    inside = (rows < m) & (columns < used)
    other = columns + used
    paired = (rows < m) & (other < m)
    upper = tl.load(matrix + rows * m + columns, mask=inside, other=0.0)
    lower = tl.load(matrix + rows * m + other, mask=paired, other=0.0)
    size = tl.max(tl.max(tl.maximum(tl.abs(upper), tl.abs(lower)), axis=1), axis=0)
    size = tl.where(size > 0.0, size, 1.0)
    upper = upper / size + tl.where(inside & (rows == columns), 2.0, 0.0)
    lower = lower / size + tl.where(paired & (rows == other), 2.0, 0.0)
    # Where the tournament takes the columns of the next round from.
    before = tl.where((columns > 0) & (columns < used), columns - 1, columns)
    after = tl.where(columns < used - 1, columns + 1, columns)
    before = tl.broadcast_to(before, (N, H))
    after = tl.broadcast_to(after, (N, H))
    sweep = 0
    angle = tl.full((), 1.0, tl.float64)
    while (sweep < sweeps) & (angle > 1e-14):
        largest = tl.where(slot < 0, angle, 0.0)
        for _ in range(2 * used - 1):
            gamma = tl.sum(upper * lower, axis=0)
            delta = tl.sum((lower - upper) * (lower + upper), axis=0)
            largest = tl.maximum(largest, tl.abs(gamma))
            # The rotation's angle has tan 2 phi = 2 gamma / delta, |phi| <= pi / 4.
            turns = tl.abs(gamma) > 1e-16
            radius = tl.rsqrt(tl.where(turns, delta * delta + 4.0 * gamma * gamma, 1.0))
            square = tl.where(turns, 0.5 + 0.5 * tl.abs(delta) * radius, 1.0)  # cos^2
            secant = tl.rsqrt(square)
            cosine = square * secant
            sine = tl.where(turns, gamma * radius * secant, 0.0)
            sine = tl.where(delta < 0.0, -sine, sine)
            one = upper * cosine[None, :] - lower * sine[None, :]
            two = upper * sine[None, :] + lower * cosine[None, :]
            leaving = tl.where(columns == 0, two, one)
            upper = tl.where(columns == 0, one, tl.gather(leaving, before, axis=1))
            lower = tl.where(columns == used - 1, leaving, tl.gather(two, after, axis=1))
        angle = tl.max(largest, axis=0)
        sweep += 1
    for_upper = tl.sqrt(tl.sum(upper * upper, axis=0))
    for_lower = tl.sqrt(tl.sum(lower * lower, axis=0))
    # Ascending order: how many columns come first. Unused ones have length 0 and come never.
    first, second = for_upper[:, None], for_upper[None, :]
    third, fourth = for_lower[:, None], for_lower[None, :]
    earlier = slot[:, None] < slot[None, :]
    counts = (first > 0.0) & ((first < second) | ((first == second) & earlier))
    rank_upper = tl.sum(counts.to(tl.int32), axis=0)
    rank_upper += tl.sum(((third > 0.0) & (third < second)).to(tl.int32), axis=0)
    counts = (third > 0.0) & ((third < fourth) | ((third == fourth) & earlier))
    rank_lower = tl.sum(counts.to(tl.int32), axis=0)
    rank_lower += tl.sum(((first > 0.0) & (first <= fourth)).to(tl.int32), axis=0)
    exists = for_upper > 0.0
    tl.store(values + rank_upper, (for_upper - 2.0) * size, mask=exists)
    unit = upper / tl.where(exists, for_upper, 1.0)[None, :]
    place = vectors + rows * m + rank_upper[None, :]
    tl.store(place, unit, mask=(rows < m) & exists[None, :])
    exists = for_lower > 0.0
    tl.store(values + rank_lower, (for_lower - 2.0) * size, mask=exists)
    unit = lower / tl.where(exists, for_lower, 1.0)[None, :]
    place = vectors + rows * m + rank_lower[None, :]
    tl.store(place, unit, mask=(rows < m) & exists[None, :])


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [m] ascending and eigenvectors [m, m] of a positive semidefinite matrix.

    Errors are relative to the largest eigenvalue; eigenvalues may be negative by rounding.
    """
    matrix, m = double(matrix), len(matrix)
    values, vectors = matrix.new_empty(m), torch.empty_like(matrix)
    tile = tile_for(m)
    with torch.cuda.device_of(matrix):
        _eigen[(1,)](
            matrix, values, vectors, m=m, sweeps=SWEEPS, N=tile, H=tile // 2,
            num_warps=min(4, warps_for(tile)),
        )  # fmt: skip
    return values, vectors
