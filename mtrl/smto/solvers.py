"""Small convex problems on the m x m Gramian: float64 tensors, fixed iteration counts.

On a GPU the functions that ask for `kernels` hand a whole solve to one kernel of `kernels/`; the
tensor code here is for everything else, and says what the kernels compute.

Everything works on cosines, so that gradients of any length are treated alike: with the lengths
n_i = |g_i| the Gramian is G = D C D, D = diag(n), and C has a unit diagonal.

Where gradients are equal or linearly dependent, many weights are optimal, and the rounding of G
would choose among them. `ridge` and `cut_off` choose instead: the weights nearest to equal, as
far as the `precision` of G (its relative rounding error) leaves them open.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from mtrl.files.errors import first_line

SINGLE, DOUBLE = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
CENTRE = 1e-14
"""Where interior-point iterations stop moving: complementarity x_i z_i, in units of x z ~ 1."""
LARGEST = 64
"""Tasks up to which a kernel's matrix fits into the registers of one program."""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton runs kernels on the CPU, one NumPy operation after the other: for tests."""


def kernels(matrix: Tensor) -> ModuleType | None:
    """The module of kernels, if they can take this matrix [m, m]."""
    possible = (matrix.is_cuda or INTERPRETED) and len(matrix) <= LARGEST
    return _triton_kernels() if possible else None


@functools.cache
def _triton_kernels() -> ModuleType | None:
    try:  # not at the top: PyTorch for CPUs comes without Triton
        from triton.runtime import driver

        from mtrl.smto import kernels
    except ImportError:
        return None
    if not INTERPRETED:
        try:  # a first launch compiles a part of Triton's driver
            driver.active.get_current_target()
        except Exception as error:  # whatever the search for a compiler raises
            reason = first_line(error)
            warnings.warn(
                f"multi-task optimisers without their kernels, slower: {reason} (Triton needs a C "
                "compiler and Python's headers, such as Debian's gcc, libc6-dev and python3-dev)",
                stacklevel=2,
            )
            return None
    return kernels


def cosines(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """G [m, m] -> C [m, m], n [m]; rows and columns of zero gradients are zero in C."""
    if kernel := kernels(gramian):
        return kernel.cosines(gramian)
    lengths = gramian.diagonal().clamp(min=0.0).sqrt()
    inverse = torch.where(lengths > 0, 1.0 / lengths, 0.0)
    return gramian * inverse * inverse[:, None], lengths


def floored(lengths: Tensor) -> Tensor:
    """Lengths that may be divided by: a zero gradient counts as one of negligible length."""
    return torch.maximum(lengths, 1e-30 * lengths.max()).clamp(min=1e-150)


def ridge(precision: float, m: int = 1) -> float:
    """What is added to the diagonal of C: 3e-5 m for float32, 6e-14 m for float64.

    An error e of the cosines moves weights by up to e / ridge. Rounding alone makes e one or two
    eps, so 256 m eps keep weights of 1/m within 1 % of it; the objective gets worse by no more
    than the ridge.
    """
    return 256.0 * precision * m


def convex(matrix: Tensor, added: Tensor | float) -> Tensor:
    """C plus a diagonal, [m] or a number: at least float32's ridge where C is still indefinite."""
    least = ridge(SINGLE, len(matrix))
    if kernel := kernels(matrix):
        return kernel.convex(matrix, added, least)
    diagonal = torch.zeros_like(matrix[0]) + added
    failed = torch.linalg.cholesky_ex(matrix + diagonal.diag_embed()).info > 0
    diagonal = torch.where(failed, diagonal.clamp(min=least), diagonal)
    return matrix + diagonal.diag_embed()


def for_lengths(scaled: Tensor, precision: float) -> Tensor:
    """A ridge [m] for G with a largest diagonal entry of 1, where products with the mean gradient
    or another long one matter: their error, and so the ridge, is proportional to |g_i|."""
    lengths = scaled.diagonal().clamp(min=0.0).sqrt()
    return ridge(precision, len(scaled)) * lengths + ridge(DOUBLE, len(scaled))


def cut_off(precision: float) -> float:
    """Below it eigenvalues of C count as zero: 1e-3 for float32, 4e-8 for float64."""
    return 3.0 * precision**0.5


def spectrum(matrix: Tensor, precision: float) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues l [m] ascending, eigenvectors [m, m], and 1 / l [m], for zero eigenvalues 0.

    A jump between the two would let rounding decide. Instead with t = cut_off, 1 / l becomes
    l^5 / (l^6 + t^6): right to 1e-6 from 10 t on, and negligible for what rounding makes of zero.
    l counts in units of v^T diag(G) v, since errors of G are relative to gradient lengths.
    """
    # LAPACK raises for NaN; a training loop finds the loss behind it by itself.
    matrix = matrix.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    kernel = kernels(matrix)
    values, vectors = kernel.eigen(matrix) if kernel else torch.linalg.eigh(matrix)
    squares = matrix.diagonal().clamp(min=0.0)
    # eigh's own error is relative to the largest eigenvalue.
    unit = torch.maximum(squares @ vectors.square(), 1e-6 * squares.max()).clamp(min=1e-300)
    relative = (values / unit).clamp(min=0.0)
    inverse = relative**5 / (relative**6 + cut_off(precision) ** 6) / unit
    return values, vectors, inverse


Model = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x -> gradient, Hessian of the objective."""


def interior_point(
    model: Model,
    x: Tensor,
    plane: Tensor | None,
    iterations: int,
    reach: Tensor | float = 0.99,
) -> Tensor:
    """Minimise a convex function over x >= 0, and plane . x = const (that of the start) if given.

    x [..., m]: a positive start. A primal-dual path-following method (Nocedal & Wright 2006,
    Section 16.6, without predictor): Newton on gradient - nu plane = z, x z = sigma mu, one step
    length for both. On well-scaled problems every iteration gains 1 to 2 digits. reach: by which
    share of itself a variable may fall in one iteration.
    """
    m = x.shape[-1]
    eye = torch.eye(m, dtype=x.dtype, device=x.device)
    gradient, _ = model(x)
    z = gradient.abs().amax(-1, keepdim=True).clamp(min=1e-3).expand_as(x)
    # plane plane^T changes no step inside the plane, and makes the system definite.
    square = None if plane is None else torch.outer(plane, plane)
    sigma = x.new_full((), 0.2)
    for _ in range(iterations):
        product = x * z
        target = (sigma / m * product.sum(-1, keepdim=True)).clamp(min=CENTRE)
        gradient, hessian = model(x)
        right = target / x - gradient
        system = torch.addcmul(hessian, eye, (z / x).unsqueeze(-2))
        if plane is None or square is None:
            step = _solve(system, right.unsqueeze(-1)).squeeze(-1)
        else:
            free, normal = _solve(system + square, torch.stack([right, plane], 1)).unbind(1)
            step = free - (plane @ free) / (plane @ normal) * normal
        primal = step / x
        dual = target / product - 1.0 - primal  # the step of z, divided by z
        fall = torch.minimum(primal / reach, dual / 0.99).amin(-1, keepdim=True).neg()
        length = 1.0 / fall.clamp(min=1.0)  # at most a full step, and x, z stay positive
        x, z = torch.addcmul(x, length, step), torch.addcmul(z, length, z * dual)
        sigma = (1.0 - length).square().clamp(0.02, 0.5)  # aim lower when the last step was long
    return x


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    factor = torch.linalg.cholesky_ex(matrix).L
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def quadratic_program(
    hessian: Tensor, linear: Tensor, plane: Tensor | None, iterations: int
) -> Tensor:
    """argmin x^T H x / 2 + linear . x over x >= 0, and plane . x = 1 if given (plane [m] >= 0).

    linear and x: [m], or [k, m] for k problems at once.
    """
    if kernel := kernels(hessian):
        return kernel.interior_point(hessian, linear, plane, iterations, CENTRE)
    start = torch.ones_like(linear) if plane is None else torch.ones_like(plane) / plane.sum()
    return interior_point(lambda x: (x @ hessian + linear, hessian), start, plane, iterations)


def min_norm(matrix: Tensor, plane: Tensor, iterations: int = 16) -> Tensor:
    """argmin y^T C y over y >= 0, plane . y = 1 (plane [m] positive, largest entry 1)."""
    return quadratic_program(matrix, torch.zeros_like(plane), plane, iterations)


def simplex_quadratic(hessian: Tensor, linear: Tensor, iterations: int = 13) -> Tensor:
    """argmin w^T H w / 2 + linear . w over the simplex; entries of H and linear of order 1."""
    return quadratic_program(hessian, linear, torch.ones_like(linear), iterations)


def simplex_with_norm(matrix: Tensor, linear: Tensor, share: Tensor, iterations: int) -> Tensor:
    """argmin linear . w + share (w^T G w)^(1/2) over the simplex, share a scalar.

    The root has a kink, so it is a variable too: the smallest (w^T G w / t + t) / 2. The curvature
    grows with 1 / t: t falls by no more than 70 % in an iteration, or the steps become tiny.
    """
    if kernel := kernels(matrix):
        ones = torch.ones_like(linear)
        w = kernel.interior_point(matrix, linear, ones, iterations, CENTRE, share)
        return w / w.sum()
    last = functional.pad(torch.zeros_like(linear), (0, 1), value=1.0)
    plane = 1.0 - last
    linear, matrix = functional.pad(linear, (0, 1)), functional.pad(matrix, (0, 1, 0, 1))

    def model(x: Tensor) -> tuple[Tensor, Tensor]:
        t = x[-1]
        product = matrix @ x / t
        square = x @ product / t
        gradient = linear + share * product + 0.5 * share * (1.0 - square) * last
        cross = torch.outer(product - 0.5 * square * last, last)
        return gradient, share / t * (matrix - cross - cross.mT)

    start = plane / plane.sum() + last
    w = interior_point(model, start, plane, iterations, reach=0.99 * plane + 0.7 * last)[:-1]
    return w / w.sum()


def dual_cone_projections(matrix: Tensor, iterations: int = 13) -> Tensor:
    """U [m, m]: row i is argmin u^T C u over u >= e_i, the projection of gradient i, expressed in
    the gradients, onto {d: C d >= 0}."""
    extra = quadratic_program(matrix, matrix, None, iterations)
    return extra + torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def balance(matrix: Tensor, kappa: Tensor, alpha: float, iterations: int) -> Tensor:
    """x > 0 with C x = kappa x^(-1/alpha), elementwise.

    Primal-dual Newton in x and y = C x on log y + log x / alpha = log kappa, from the solution
    for orthogonal gradients; the steps stop short of the boundary.
    """
    if kernel := kernels(matrix):
        return kernel.balance(matrix, kappa, alpha, iterations)
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
