"""The Gramian and the solvers on it as Triton kernels: one launch makes a whole solve.

On a GPU an operation on an [m, m] tensor takes 2 us whatever it computes, and a solve has hundreds
of them. Here one program holds the matrix in registers, in float64, from the first iteration to the
last. The iterations are those of the tensor code in `solvers.py` and `projection.py`, which is the
reference, but `balance` stops when Newton's steps are rounding. Results differ by rounding only.
"""

from mtrl.smto.kernels.eigen import eigen
from mtrl.smto.kernels.gramian import gramian
from mtrl.smto.kernels.programs import balance, convex, cosines, interior_point
from mtrl.smto.kernels.projections import correct, project, vaccinate

__all__ = [
    "balance",
    "convex",
    "correct",
    "cosines",
    "eigen",
    "gramian",
    "interior_point",
    "project",
    "vaccinate",
]
