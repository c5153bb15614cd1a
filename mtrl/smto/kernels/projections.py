"""Gradients that meet one another in turn: PCGrad, GradVac, CDTT."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtrl.smto.kernels.tiles import double, tile_for


@triton.jit
def entry(vector, index, k):
    """Entry k of a vector."""
    return tl.sum(tl.where(index == k, vector, 0.0), axis=0)


@triton.jit(do_not_specialize_on_alignment=["cosine", "order", "coefficients"])
def _project(cosine, order, coefficients, m: tl.constexpr, N: tl.constexpr):
    """`PCGrad.meet`, one program per task i."""
    i = tl.program_id(0)
    index = tl.arange(0, N)
    inside = index < m
    products = tl.load(cosine + i * m + index, mask=inside, other=0.0)  # g_i' . g_k / |g_k|
    exists = entry(products, index, i) > 0.0
    weights = tl.where(index == i, tl.full((), 1.0, tl.float64), 0.0)
    for k in range(m):
        j = tl.load(order + i * m + k)
        other = tl.load(cosine + j * m + index, mask=inside, other=0.0)
        product = entry(products, index, j)
        meets = exists & (j != i) & (entry(other, index, j) > 0.0)
        change = tl.where(meets & (product < 0.0), -product, 0.0)
        products += change * other
        weights += tl.where(index == j, change, 0.0)
    tl.store(coefficients + i * m + index, weights, mask=inside)


@triton.jit
def _real(square, ridge: tl.constexpr):
    fourth = (square * square) * (square * square)
    return fourth / (fourth + ridge * ridge * ridge * ridge)


@triton.jit(do_not_specialize_on_alignment=["cosine", "order", "targets", "coefficients"])
def _vaccinate(
    cosine, order, targets, coefficients,
    m: tl.constexpr, beta: tl.constexpr, nearest: tl.constexpr, ridge: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """`GradVac.meet`, one program per task i; moves row i of the targets."""
    i = tl.program_id(0)
    index = tl.arange(0, N)
    inside = index < m
    one = tl.full((), 1.0, tl.float64)
    limit = tl.full((), nearest, tl.float64)
    products = tl.load(cosine + i * m + index, mask=inside, other=0.0)
    target = tl.load(targets + i * m + index, mask=inside, other=0.0)
    wanted = tl.minimum(tl.maximum(target, -limit), limit)
    tangents = wanted / tl.sqrt(1.0 - wanted * wanted)
    square = entry(products, index, i)  # |g_i'|^2
    exists = square > 0.0
    weights = tl.where(index == i, one, 0.0)
    for k in range(m):
        j = tl.load(order + i * m + k)
        other = tl.load(cosine + j * m + index, mask=inside, other=0.0)
        product = entry(products, index, j)
        meets = exists & (j != i) & (entry(other, index, j) > 0.0)
        length = tl.maximum(square, tl.full((), 1e-24, tl.float64))
        whole = _real(length, ridge)
        phi = whole * tl.minimum(tl.maximum(product / tl.sqrt(length), -one), one)
        sine = 1.0 - phi * phi
        rest = length * whole * sine * _real(sine, ridge)
        change = tl.sqrt(rest) * entry(tangents, index, j) - product
        change = tl.where(meets & (phi < entry(wanted, index, j)), change, 0.0)
        products += change * other
        square += change * (2.0 * product + change)
        weights += tl.where(index == j, change, 0.0)
        moved = tl.where(meets, beta * (phi - target), 0.0)
        target += tl.where(index == j, moved, 0.0)
    tl.store(coefficients + i * m + index, weights, mask=inside)
    tl.store(targets + i * m + index, target, mask=inside)


def project(cosine: Tensor, order: Tensor) -> Tensor:
    """`PCGrad.meet`: coefficients [m, m]."""
    cosine, order, m = double(cosine), order.contiguous(), len(cosine)
    coefficients = torch.empty_like(cosine)
    with torch.cuda.device_of(cosine):
        _project[(m,)](cosine, order, coefficients, m=m, N=tile_for(m), num_warps=1)
    return coefficients


def vaccinate(
    cosine: Tensor, order: Tensor, targets: Tensor, beta: float, nearest: float, ridge: float
) -> Tensor:
    """`GradVac.meet`: coefficients [m, m]; changes the targets [m, m] in place."""
    cosine, order, m = double(cosine), order.contiguous(), len(cosine)
    coefficients = torch.empty_like(cosine)
    with torch.cuda.device_of(cosine):
        _vaccinate[(m,)](
            cosine, order, targets, coefficients, m=m, beta=float(beta), nearest=nearest,
            ridge=ridge, N=tile_for(m), num_warps=1,
        )  # fmt: skip
    return coefficients


@triton.jit(do_not_specialize_on_alignment=["gramian", "weights", "corrected"])
def _correct(gramian, weights, corrected, m: tl.constexpr, N: tl.constexpr):
    """`min_norm.corrected`."""
    index = tl.arange(0, N)
    inside = index < m
    w = tl.load(weights + index, mask=inside, other=0.0)
    for i in range(m):
        row = tl.load(gramian + i * m + index, mask=inside, other=0.0)
        product = tl.sum(row * w, axis=0)
        rest = tl.maximum(entry(row, index, i) - product, tl.full((), 1e-300, tl.float64))
        share = tl.where(product < 0.0, -product / rest, 0.0)
        w = w * (1.0 - share) + tl.where(index == i, share, 0.0)
    tl.store(corrected + index, w, mask=inside)


def correct(gramian: Tensor, weights: Tensor) -> Tensor:
    """`min_norm.corrected`: weights [m]."""
    gramian, weights, m = double(gramian), double(weights), len(gramian)
    corrected = torch.empty_like(weights)
    with torch.cuda.device_of(gramian):
        _correct[(1,)](gramian, weights, corrected, m=m, N=tile_for(m), num_warps=1)
    return corrected
