"""The solvers on the m x m Gramian as Triton kernels: one launch makes a whole solve.

On a GPU an operation on an [m, m] tensor takes 2 us whatever it computes, and a solve has hundreds
of them. Here one program holds the matrix in registers, in float64, from the first iteration to the
last. The iterations are those of the tensor code in `solvers.py` and `projection.py`, which is the
reference; results differ by rounding only.

Matrices are padded to a tile [N, N], N a power of two, and masked. `rows` [N, 1] and `columns`
[1, N] number a tile's entries, `index` [N] a vector's. Literals next to float64 tensors are
float64; a bare constant would be float32, so constants that are kept are made by `tl.full`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SWEEPS = 30
"""At most; a Jacobi method needs about eight for 50 tasks."""


def _tile(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _warps(tile: int) -> int:
    """About 16 entries per thread: 1 warp for a tile of 16, 2 for 32, 8 for 64 and more."""
    return min(8, max(1, tile * tile // 512))


def _double(tensor: Tensor) -> Tensor:
    return tensor.double().contiguous()


# -- linear systems -------------------------------------------------------------------------------


@triton.jit
def _row(matrix, rows, k):
    """Row k [N] of a tile."""
    return tl.sum(tl.where(rows == k, matrix, 0.0), axis=0)


@triton.jit
def _entry(vector, index, k):
    return tl.sum(tl.where(index == k, vector, 0.0), axis=0)


@triton.jit
def _sweep(system, rows, columns, index, pivots: tl.constexpr):
    """Solve A X = B with A [pivots, pivots] positive definite, from the tile [[A, B], [B^T, 0]].

    -> that tile with X^T in place of B^T. The sweep operator (Goodnight 1979), Gauss-Jordan
    elimination that keeps the tile symmetric: a pivot's column is its row. Rows of A are
    meaningless afterwards.
    """
    for k in range(pivots):
        row = _row(system, rows, k)
        reciprocal = 1.0 / _entry(row, index, k)
        scaled = tl.where(index == k, -reciprocal, row * reciprocal)
        system = tl.where(columns == k, 0.0, system) - row[:, None] * scaled[None, :]
    return system


@triton.jit
def _bordered(matrix, right, rows, columns, at: tl.constexpr):
    """The matrix with `right` [N] as its row and its column `at`."""
    matrix = tl.where(columns == at, right[:, None], matrix)
    return tl.where(rows == at, right[None, :], matrix)


# -- interior point -------------------------------------------------------------------------------


@triton.jit(do_not_specialize_on_alignment=["hessian", "linear", "plane", "share", "solution"])
def _interior_point(
    hessian, linear, plane, share, solution,
    m: tl.constexpr, iterations: tl.constexpr, constrained: tl.constexpr, rooted: tl.constexpr,
    centre: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`solvers.interior_point`, one program per row of linear and solution [k, m].

    rooted: the model of `solvers.smallest_with_norm`, whose last variable is t.
    """
    row = tl.program_id(0)
    index = tl.arange(0, N)
    rows, columns = index[:, None], index[None, :]
    inside = (rows < m) & (columns < m)
    h = tl.load(hessian + rows * m + columns, mask=inside, other=0.0)
    b = tl.load(linear + row * m + index, mask=index < m, other=0.0)
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
        x = tl.where(index < m, one / tl.sum(a, axis=0), one)
    z = x
    reach = tl.where(is_t, tl.full((), 0.7, tl.float64), tl.full((), 0.99, tl.float64))
    sigma = tl.full((), 0.2, tl.float64)
    for iteration in range(iterations):
        product = tl.sum(h * x[:, None], axis=0)
        system = h
        if rooted:
            t = _entry(x, index, m)
            product = product / t
            square = tl.sum(x * product, axis=0) / t
            gradient = b + c * product + tl.where(is_t, 0.5 * c * (1.0 - square), 0.0)
            slope = product - tl.where(is_t, 0.5 * square, 0.0)
            system = tl.where(columns == m, h - slope[:, None], h)
            system = (c / t) * tl.where(rows == m, system - slope[None, :], system)
        else:
            gradient = product + b
        if iteration == 0:
            largest = tl.max(tl.where(variable, tl.abs(gradient), 0.0), axis=0)
            z = tl.where(variable, tl.maximum(largest, tl.full((), 1e-3, tl.float64)), one)
        pair = x * z
        total = tl.sum(tl.where(variable, pair, 0.0), axis=0)
        target = tl.maximum(sigma / n * total, tl.full((), centre, tl.float64))
        right = tl.where(variable, target / x - gradient, 0.0)
        system = tl.where(rows == columns, system + (z / x)[None, :], system)
        if constrained:
            system = system + a[:, None] * a[None, :]
            system = _bordered(system, a, rows, columns, n + 1)
        system = _bordered(system, right, rows, columns, n)
        system = _sweep(system, rows, columns, index, n)
        step = tl.where(variable, _row(system, rows, n), 0.0)
        if constrained:
            normal = tl.where(variable, _row(system, rows, n + 1), 0.0)
            step = step - tl.sum(a * step, axis=0) / tl.sum(a * normal, axis=0) * normal
        primal = step / x
        dual = target / pair - 1.0 - primal
        share_of_fall = tl.minimum(primal / reach, dual / 0.99)
        fall = -tl.min(tl.where(variable, share_of_fall, 0.0), axis=0)
        length = one / tl.maximum(fall, one)
        x = tl.where(variable, x + length * step, one)
        z = tl.where(variable, z + length * (z * dual), one)
        left = (one - length) * (one - length)
        low, high = tl.full((), 0.02, tl.float64), tl.full((), 0.5, tl.float64)
        sigma = tl.minimum(tl.maximum(left, low), high)
    tl.store(solution + row * m + index, x, mask=index < m)


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
    linear = _double(linear)
    solution = torch.empty_like(linear)
    tile = _tile(m + (share is not None) + 1 + (plane is not None))
    with torch.cuda.device_of(hessian):
        _interior_point[(linear.numel() // m,)](
            _double(hessian), linear, linear if plane is None else _double(plane),
            linear if share is None else _double(share), solution,
            m=m, iterations=iterations, constrained=plane is not None, rooted=share is not None,
            centre=centre, N=tile, num_warps=_warps(tile),
        )  # fmt: skip
    return solution


# -- balance --------------------------------------------------------------------------------------


@triton.jit(do_not_specialize_on_alignment=["matrix", "kappa", "solution"])
def _balance(
    matrix, kappa, solution,
    m: tl.constexpr, alpha: tl.constexpr, iterations: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`solvers.balance`."""
    index = tl.arange(0, N)
    rows, columns = index[:, None], index[None, :]
    variable = index < m
    inside = (rows < m) & (columns < m)
    a = tl.load(matrix + rows * m + columns, mask=inside, other=0.0)
    target = tl.log(tl.load(kappa + index, mask=variable, other=1.0))
    x = tl.exp(target * (alpha / (1.0 + alpha)))
    y = x
    for _ in range(iterations):
        error = target - tl.log(y) - tl.log(x) / alpha
        right = y + y * error - tl.sum(a * x[:, None], axis=0)
        system = tl.where(rows == columns, a + (y / (alpha * x))[None, :], a)
        system = _bordered(system, tl.where(variable, right, 0.0), rows, columns, m)
        step = _row(_sweep(system, rows, columns, index, m), rows, m)
        step = tl.where(variable, step, 0.0)
        primal = step / x
        dual = error - primal / alpha
        fall = -tl.min(tl.where(variable, tl.minimum(primal, dual), 0.0), axis=0)
        most = tl.full((), 0.95, tl.float64)
        length = most / tl.maximum(fall, most)
        x = tl.where(variable, x + length * step, 1.0)
        y = tl.where(variable, y + length * (y * dual), 1.0)
    tl.store(solution + index, x, mask=variable)


def balance(matrix: Tensor, kappa: Tensor, alpha: float, iterations: int) -> Tensor:
    """x [m] > 0 with C x = kappa x^(-1/alpha)."""
    solution = torch.empty_like(kappa)
    tile = _tile(len(matrix) + 1)
    with torch.cuda.device_of(matrix):
        _balance[(1,)](
            _double(matrix), _double(kappa), solution, m=len(matrix), alpha=float(alpha),
            iterations=iterations, N=tile, num_warps=_warps(tile),
        )  # fmt: skip
    return solution


# -- cosines and their ridge ----------------------------------------------------------------------


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
    gramian, m = _double(gramian), len(gramian)
    cosine, lengths = torch.empty_like(gramian), gramian.new_empty(m)
    tile = _tile(m)
    with torch.cuda.device_of(gramian):
        _cosines[(1,)](gramian, cosine, lengths, m=m, N=tile, num_warps=_warps(tile))
    return cosine, lengths


@triton.jit(do_not_specialize_on_alignment=["matrix", "added", "result"])
def _convex(
    matrix, added, result,
    m: tl.constexpr, least: tl.constexpr, constant: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    index = tl.arange(0, N)
    rows, columns = index[:, None], index[None, :]
    inside = (rows < m) & (columns < m)
    a = tl.load(matrix + rows * m + columns, mask=inside, other=0.0)
    if constant is None:
        ridge = tl.load(added + index, mask=index < m, other=0.0)
    else:
        ridge = tl.full((N,), constant, tl.float64)
    system = tl.where(rows == columns, a + ridge[None, :], a)
    smallest = tl.full((), 1.0, tl.float64)
    for k in range(m):
        row = _row(system, rows, k)
        pivot = _entry(row, index, k)
        smallest = tl.where(pivot > 0.0, smallest, -1.0)
        system = system - row[:, None] * (row / pivot)[None, :]
    raised = tl.where(ridge < least, least, ridge)
    ridge = tl.where(smallest > 0.0, ridge, raised)
    tl.store(
        result + rows * m + columns,
        tl.where(rows == columns, a + ridge[None, :], a),
        mask=inside,
    )


def convex(matrix: Tensor, added: Tensor | float, least: float) -> Tensor:
    """C plus a diagonal: `added`, and at least `least` where C is still indefinite."""
    matrix, m = _double(matrix), len(matrix)
    result, tile = torch.empty_like(matrix), _tile(m)
    varies = isinstance(added, Tensor)
    with torch.cuda.device_of(matrix):
        _convex[(1,)](
            matrix, _double(added) if isinstance(added, Tensor) else matrix, result, m=m,
            least=least, constant=None if varies else float(added), N=tile, num_warps=_warps(tile),
        )  # fmt: skip
    return result


# -- eigenvalues ----------------------------------------------------------------------------------


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
    matrix, m = _double(matrix), len(matrix)
    values, vectors = matrix.new_empty(m), torch.empty_like(matrix)
    tile = _tile(m)
    with torch.cuda.device_of(matrix):
        _eigen[(1,)](
            matrix, values, vectors, m=m, sweeps=SWEEPS, N=tile, H=tile // 2,
            num_warps=min(4, _warps(tile)),
        )  # fmt: skip
    return values, vectors


# -- projections ----------------------------------------------------------------------------------


@triton.jit(do_not_specialize_on_alignment=["cosine", "order", "coefficients"])
def _project(cosine, order, coefficients, m: tl.constexpr, N: tl.constexpr):
    """`PCGrad.meet`, one program per task i."""
    i = tl.program_id(0)
    index = tl.arange(0, N)
    inside = index < m
    products = tl.load(cosine + i * m + index, mask=inside, other=0.0)  # g_i' . g_k / |g_k|
    exists = _entry(products, index, i) > 0.0
    weights = tl.where(index == i, tl.full((), 1.0, tl.float64), 0.0)
    for k in range(m):
        j = tl.load(order + i * m + k)
        other = tl.load(cosine + j * m + index, mask=inside, other=0.0)
        product = _entry(products, index, j)
        meets = exists & (j != i) & (_entry(other, index, j) > 0.0)
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
    square = _entry(products, index, i)  # |g_i'|^2
    exists = square > 0.0
    weights = tl.where(index == i, one, 0.0)
    for k in range(m):
        j = tl.load(order + i * m + k)
        other = tl.load(cosine + j * m + index, mask=inside, other=0.0)
        product = _entry(products, index, j)
        meets = exists & (j != i) & (_entry(other, index, j) > 0.0)
        length = tl.maximum(square, tl.full((), 1e-24, tl.float64))
        whole = _real(length, ridge)
        phi = whole * tl.minimum(tl.maximum(product / tl.sqrt(length), -one), one)
        sine = 1.0 - phi * phi
        rest = length * whole * sine * _real(sine, ridge)
        change = tl.sqrt(rest) * _entry(tangents, index, j) - product
        change = tl.where(meets & (phi < _entry(wanted, index, j)), change, 0.0)
        products += change * other
        square += change * (2.0 * product + change)
        weights += tl.where(index == j, change, 0.0)
        moved = tl.where(meets, beta * (phi - target), 0.0)
        target += tl.where(index == j, moved, 0.0)
    tl.store(coefficients + i * m + index, weights, mask=inside)
    tl.store(targets + i * m + index, target, mask=inside)


def project(cosine: Tensor, order: Tensor) -> Tensor:
    """`PCGrad.meet`: coefficients [m, m]."""
    cosine, order, m = _double(cosine), order.contiguous(), len(cosine)
    coefficients = torch.empty_like(cosine)
    with torch.cuda.device_of(cosine):
        _project[(m,)](cosine, order, coefficients, m=m, N=_tile(m), num_warps=1)
    return coefficients


def vaccinate(
    cosine: Tensor, order: Tensor, targets: Tensor, beta: float, nearest: float, ridge: float
) -> Tensor:
    """`GradVac.meet`: coefficients [m, m]; changes the targets [m, m] in place."""
    cosine, order, m = _double(cosine), order.contiguous(), len(cosine)
    coefficients = torch.empty_like(cosine)
    with torch.cuda.device_of(cosine):
        _vaccinate[(m,)](
            cosine, order, targets, coefficients, m=m, beta=float(beta), nearest=nearest,
            ridge=ridge, N=_tile(m), num_warps=1,
        )  # fmt: skip
    return coefficients
