"""Small convex problems on the m x m Gramian: float64 tensors, fixed iteration counts.

Everything works on cosines, so that gradients of any length are treated alike: with the lengths
n_i = |g_i| the Gramian is G = D C D, D = diag(n), and C has a unit diagonal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

RIDGE = 1e-13
"""Added to the diagonal of C: far below float64 cosines' own use, enough for rank-deficient C."""
NOISE = 1e-6
"""Added instead when C is indefinite, which rounding in float32 Gramians makes it."""
CENTRE = 1e-14
"""Where interior-point iterations stop moving: complementarity x_i z_i, in units of x z ~ 1."""


def cosines(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """G [m, m] -> C [m, m], n [m]; rows and columns of zero gradients are zero in C."""
    lengths = gramian.diagonal().clamp(min=0.0).sqrt()
    inverse = torch.where(lengths > 0, 1.0 / lengths, 0.0)
    return gramian * inverse * inverse[:, None], lengths


def floored(lengths: Tensor) -> Tensor:
    """Lengths that may be divided by: a zero gradient counts as one of negligible length."""
    return torch.maximum(lengths, 1e-30 * lengths.max()).clamp(min=1e-150)


def convex(matrix: Tensor, ridge: float = RIDGE) -> Tensor:
    """C plus the smallest ridge that makes it positive definite."""
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    failed = torch.linalg.cholesky_ex(matrix + ridge * eye).info > 0
    return matrix + torch.where(failed, max(NOISE, ridge), ridge) * eye


def spectrum(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues [m] ascending, eigenvectors [m, m], which eigenvalues are not zero [m].

    Up to l_max m eps they count as zero, with the eps of float32, in which Gramians are usually
    computed. On CUDA torch's eigh waits for the device, which nothing else here does.
    """
    # LAPACK raises for NaN; a training loop finds the loss behind it by itself.
    values, vectors = torch.linalg.eigh(matrix.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
    kept = values > values[-1] * len(matrix) * torch.finfo(torch.float32).eps
    return values, vectors, kept


Model = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x, complementarity) -> gradient, Hessian of the objective."""


def interior_point(model: Model, x: Tensor, plane: Tensor | None, iterations: int) -> Tensor:
    """Minimise a convex function over x >= 0, and plane . x = const (that of the start) if given.

    x [..., m]: a positive start. A primal-dual path-following method (Nocedal & Wright 2006,
    Section 16.6, without predictor): Newton on gradient - nu plane = z, x z = sigma mu, one step
    length for both. On well-scaled problems every iteration gains 1 to 2 digits.
    """
    m = x.shape[-1]
    eye = torch.eye(m, dtype=x.dtype, device=x.device)
    gradient, _ = model(x, x.new_ones(()))
    z = gradient.abs().amax(-1, keepdim=True).clamp(min=1e-3).expand_as(x)
    # plane plane^T changes no step inside the plane, and makes the system definite.
    square = None if plane is None else torch.outer(plane, plane)
    sigma = x.new_full((), 0.2)
    for _ in range(iterations):
        product = x * z
        target = (sigma / m * product.sum(-1, keepdim=True)).clamp(min=CENTRE)
        gradient, hessian = model(x, target)
        right = target / x - gradient
        system = torch.addcmul(hessian, eye, (z / x).unsqueeze(-2))
        if plane is None or square is None:
            step = _solve(system, right.unsqueeze(-1)).squeeze(-1)
        else:
            free, normal = _solve(system + square, torch.stack([right, plane], 1)).unbind(1)
            step = free - (plane @ free) / (plane @ normal) * normal
        primal = step / x
        dual = target / product - 1.0 - primal  # the step of z, divided by z
        worst = torch.minimum(primal, dual).amin(-1, keepdim=True).neg()
        length = 0.99 / worst.clamp(min=0.99)  # at most a full step, and x, z stay positive
        x, z = torch.addcmul(x, length, step), torch.addcmul(z, length, z * dual)
        sigma = (1.0 - length).square().clamp(0.02, 0.5)  # aim lower when the last step was long
    return x


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    factor = torch.linalg.cholesky_ex(matrix).L
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def quadratic(hessian: Tensor, linear: Tensor | float = 0.0) -> Model:
    """x^T H x / 2 + linear . x, for one x [m] or many [k, m]."""
    return lambda x, _: (x @ hessian + linear, hessian)


def min_norm(matrix: Tensor, plane: Tensor, iterations: int = 13) -> Tensor:
    """argmin y^T C y over y >= 0, plane . y = 1 (plane [m] positive, largest entry 1)."""
    start = torch.ones_like(plane) / plane.sum()
    return interior_point(quadratic(convex(matrix)), start, plane, iterations)


def simplex_quadratic(hessian: Tensor, linear: Tensor, iterations: int = 13) -> Tensor:
    """argmin w^T H w / 2 + linear . w over the simplex; entries of H and linear of order 1."""
    plane = torch.ones_like(linear)
    return interior_point(quadratic(convex(hessian), linear), plane / len(plane), plane, iterations)


def dual_cone_projections(matrix: Tensor, iterations: int = 13) -> Tensor:
    """U [m, m]: row i is argmin u^T C u over u >= e_i, the projection of gradient i, expressed in
    the gradients, onto {d: C d >= 0}."""
    start = torch.ones_like(matrix)
    extra = interior_point(quadratic(matrix, matrix), start, None, iterations)
    return extra + torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def balance(matrix: Tensor, kappa: Tensor, alpha: float, iterations: int) -> Tensor:
    """x > 0 with C x = kappa x^(-1/alpha), elementwise.

    Primal-dual Newton in x and y = C x on log y + log x / alpha = log kappa, from the solution
    for orthogonal gradients; the steps stop short of the boundary.
    """
    x = y = kappa ** (alpha / (1.0 + alpha))
    target = kappa.log()
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    for _ in range(iterations):
        error = target - y.log() - x.log() / alpha
        right = y + y * error - matrix @ x
        step = _solve(torch.addcmul(matrix, eye, y / (alpha * x)), right[:, None])[:, 0]
        primal = step / x
        dual = error - primal / alpha  # the step of y, divided by y
        length = 0.95 / torch.minimum(primal, dual).amin().neg().clamp(min=0.95)
        x, y = torch.addcmul(x, length, step), torch.addcmul(y, length, y * dual)
    return x
