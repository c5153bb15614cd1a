"""Cosines, their ridge, and the convex problems on them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtrl.smto.kernels.tiles import (
    across,
    add_diagonal,
    bordered,
    double,
    down,
    numbers,
    row_of,
    sum_of,
    sweep,
    tile_for,
    warps_for,
)  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["gramian", "cosine", "lengths"])
def _cosines(gramian, cosine, lengths, m: tl.constexpr, N: tl.constexpr):
    index = tl.arange(0, N)
    rows, columns = index[:, None], index[None, :]
    inside = (rows < m) & (columns < m)
    g = tl.load(gramian + rows * m + columns, mask=inside, other=0.0)
    squares = tl.load(gramian + index * m + index, mask=index < m, other=0.0)
    length = tl.sqrt(tl.where(squares < 0.0, 0.0, squares))  # NaN stays
    inverse = tl.where(length > 0.0, 1.0 / tl.where(length > 0.0, length, 1.0), 0.0)
    c = g * inverse[None, :] * inverse[:, None]
    tl.store(cosine + rows * m + columns, c, mask=inside)
    tl.store(lengths + index, length, mask=index < m)


def cosines(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """G [m, m] -> C [m, m], n [m]."""
    gramian, m = double(gramian), len(gramian)
    cosine, lengths = torch.empty_like(gramian), gramian.new_empty(m)
    tile = tile_for(m)
    with torch.cuda.device_of(gramian):
        _cosines[(1,)](gramian, cosine, lengths, m=m, N=tile, num_warps=warps_for(tile))
    return cosine, lengths


@triton.jit(do_not_specialize_on_alignment=["matrix", "added", "result"])
def _convex(
    matrix, added, result,
    m: tl.constexpr, least: tl.constexpr, constant: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    index, rows = numbers(N)
    columns = across(index)
    inside = (rows < m) & (columns < m)
    a = tl.load(matrix + rows * m + columns, mask=inside, other=0.0)
    if constant is None:
        ridge = tl.load(added + index, mask=index < m, other=0.0)
    else:
        ridge = tl.where(index < m, tl.full((), constant, tl.float64), 0.0)
    _, smallest = sweep(add_diagonal(a, ridge, index, rows), index, rows, m, N)
    raised = tl.where(ridge < least, least, ridge)
    ridge = tl.where(smallest > 0.0, ridge, raised)
    a = add_diagonal(a, ridge, index, rows)
    tl.store(result + rows * m + columns, a, mask=inside)


def convex(matrix: Tensor, added: Tensor | float, least: float) -> Tensor:
    """C plus a diagonal: `added`, and at least `least` where C is still indefinite."""
    matrix, m = double(matrix), len(matrix)
    result, tile = torch.empty_like(matrix), tile_for(m)
    varies = isinstance(added, Tensor)
    with torch.cuda.device_of(matrix):
        _convex[(1,)](
            matrix, double(added) if isinstance(added, Tensor) else matrix, result,
            m=m, least=least, constant=None if varies else float(added), N=tile,
            num_warps=warps_for(tile),
        )  # fmt: skip
    return result


@triton.jit(do_not_specialize_on_alignment=["hessian", "linear", "plane", "share", "solution"])
def _interior_point(
    hessian, linear, plane, share, solution,
    m: tl.constexpr, iterations: tl.constexpr, constrained: tl.constexpr, rooted: tl.constexpr,
    centre: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`solvers.interior_point`, one program per row of linear and solution [k, m].

    rooted: the model of `solvers.simplex_with_norm`, whose last variable is t.
    """
    problem = tl.program_id(0)
    index, rows = numbers(N)
    columns = across(index)
    h = tl.load(hessian + rows * m + columns, mask=(rows < m) & (columns < m), other=0.0)
    b = tl.load(linear + problem * m + index, mask=index < m, other=0.0)
    n: tl.constexpr = m + rooted
    variable = index < n
    is_t = (index == m) & rooted
    one, zero = tl.full((), 1.0, tl.float64), tl.full((), 0.0, tl.float64)
    c = one
    if rooted:
        c = tl.load(share)
    a = tl.where(variable, zero, zero)
    x = tl.where(variable, one, one)
    if constrained:
        a = tl.load(plane + index, mask=index < m, other=0.0)
        x = tl.where(index < m, one / sum_of(a), one)
    z = x
    reach = tl.where(is_t, tl.full((), 0.7, tl.float64), tl.full((), 0.99, tl.float64))
    sigma = tl.full((), 0.2, tl.float64)
    for iteration in range(iterations):
        product = tl.sum(h * down(x, N), axis=0)
        system = h
        if rooted:
            t = sum_of(tl.where(index == m, x, 0.0))
            product = product / t
            square = sum_of(x * product) / t
            gradient = b + c * product + tl.where(is_t, 0.5 * c * (1.0 - square), 0.0)
            slope = product - tl.where(is_t, 0.5 * square, 0.0)
            system = tl.where(columns == m, h - down(slope, N), h)
            system = (c / t) * tl.where(rows == m, system - across(slope), system)
        else:
            gradient = product + b
        if iteration == 0:
            largest = tl.max(tl.max(tl.where(variable, tl.abs(gradient), 0.0), axis=0), axis=0)
            z = tl.where(variable, tl.maximum(largest, tl.full((), 1e-3, tl.float64)), one)
        pair = x * z
        total = sum_of(tl.where(variable, pair, 0.0))
        target = tl.maximum(sigma / n * total, tl.full((), centre, tl.float64))
        right = tl.where(variable, target / x - gradient, 0.0)
        system = add_diagonal(system, z / x, index, rows)
        if constrained:
            system = system + down(a, N) * across(a)
            system = bordered(system, a, index, rows, n + 1, N)
        system = bordered(system, right, index, rows, n, N)
        system, _ = sweep(system, index, rows, n, N)
        step = tl.where(variable, row_of(system, rows, n), 0.0)
        if constrained:
            normal = tl.where(variable, row_of(system, rows, n + 1), 0.0)
            step = step - sum_of(a * step) / sum_of(a * normal) * normal
        primal = step / x
        dual = target / pair - 1.0 - primal
        lowest = tl.where(variable, tl.minimum(primal / reach, dual / 0.99), 0.0)
        fall = -tl.min(tl.min(lowest, axis=0), axis=0)
        length = one / tl.maximum(fall, one)
        x = tl.where(variable, x + length * step, one)
        z = tl.where(variable, z + length * (z * dual), one)
        left = (one - length) * (one - length)
        low, high = tl.full((), 0.02, tl.float64), tl.full((), 0.5, tl.float64)
        sigma = tl.minimum(tl.maximum(left, low), high)
    tl.store(solution + problem * m + index, x, mask=index < m)


def interior_point(
    hessian: Tensor,
    linear: Tensor,
    plane: Tensor | None,
    iterations: int,
    centre: float,
    share: Tensor | None = None,
) -> Tensor:
    """argmin over x >= 0 of x^T H x / 2 + linear . x, for one linear [m] or for each of [k, m].

    plane: x keeps plane . x = 1. share (a scalar): argmin linear . x + share (x^T H x)^(1/2).
    """
    m = len(hessian)
    linear = double(linear)
    solution = torch.empty_like(linear)
    tile = tile_for(m + (share is not None) + 1 + (plane is not None))
    with torch.cuda.device_of(hessian):
        _interior_point[(linear.numel() // m,)](
            double(hessian), linear, linear if plane is None else double(plane),
            linear if share is None else double(share), solution,
            m=m, iterations=iterations, constrained=plane is not None, rooted=share is not None,
            centre=centre, N=tile, num_warps=warps_for(tile),
        )  # fmt: skip
    return solution


@triton.jit(do_not_specialize_on_alignment=["matrix", "kappa", "solution"])
def _balance(
    matrix, kappa, solution,
    m: tl.constexpr, alpha: tl.constexpr, iterations: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`solvers.balance`."""
    index, rows = numbers(N)
    columns = across(index)
    variable = index < m
    a = tl.load(matrix + rows * m + columns, mask=(rows < m) & (columns < m), other=0.0)
    target = tl.log(tl.load(kappa + index, mask=variable, other=1.0))
    x = tl.exp(target * (alpha / (1.0 + alpha)))
    y = x
    iteration = 0
    moved = tl.full((), 1.0, tl.float64)
    while (iteration < iterations) & (moved > 1e-8):  # Newton: the next step would be its square
        error = target - tl.log(y) - tl.log(x) / alpha
        right = y + y * error - tl.sum(a * down(x, N), axis=0)
        system = add_diagonal(a, y / (alpha * x), index, rows)
        system = bordered(system, tl.where(variable, right, 0.0), index, rows, m, N)
        system, _ = sweep(system, index, rows, m, N)
        step = tl.where(variable, row_of(system, rows, m), 0.0)
        primal = step / x
        dual = error - primal / alpha
        lowest = tl.where(variable, tl.minimum(primal, dual), 0.0)
        fall = -tl.min(tl.min(lowest, axis=0), axis=0)
        most = tl.full((), 0.95, tl.float64)
        length = most / tl.maximum(fall, most)
        x = tl.where(variable, x + length * step, 1.0)
        y = tl.where(variable, y + length * (y * dual), 1.0)
        change = tl.where(variable, tl.maximum(tl.abs(primal), tl.abs(dual)), 0.0)
        moved = tl.max(tl.max(change, axis=0), axis=0)
        iteration += 1
    tl.store(solution + index, x, mask=variable)


def balance(matrix: Tensor, kappa: Tensor, alpha: float, iterations: int) -> Tensor:
    """x [m] > 0 with C x = kappa x^(-1/alpha)."""
    solution = torch.empty_like(kappa)
    tile = tile_for(len(matrix) + 1)
    with torch.cuda.device_of(matrix):
        _balance[(1,)](
            double(matrix), double(kappa), solution, m=len(matrix), alpha=float(alpha),
            iterations=iterations, N=tile, num_warps=warps_for(tile),
        )  # fmt: skip
    return solution
