"""NumPy, reward and rotation functions for one vector or one number, bitwise identical.

Each does the floating-point operations of the function it replaces, in the same order, and
hands everything but the plain case back to it.
"""

from __future__ import annotations

import functools
import math
import types
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ARRAY, _double, _FLOAT64 = np.ndarray, np.float64, np.dtype(np.float64)
_DOUBLES = frozenset((float, int, np.float64))


def norm(x: Any, ord: Any = None, **options: Any) -> Any:
    """np.linalg.norm; the same sqrt(dot(x, x)) without its preparations for a plain vector."""
    if (
        type(x) is _ARRAY
        and x.strides == (8,)  # one dimension, no gaps: BLAS may add strided numbers differently
        and x.dtype is _FLOAT64
        and (ord is None or ord == 2)
        and not options
    ):
        return _double(math.sqrt(x.dot(x)))
    return np.linalg.norm(x, ord, **options)


def clip(x: Any, low: Any, high: Any, **options: Any) -> Any:
    """np.clip; of one scalar between plain numbers by comparisons, keeping the scalar's type."""
    kind = type(x)
    if (
        (kind is np.float64 or kind is np.float32)
        and type(low) in _DOUBLES
        and type(high) in _DOUBLES
        and not options
    ):
        return kind(low) if x < low else kind(high) if x > high else x
    return np.clip(x, low, high, **options)


def hstack(arrays: Any) -> Any:
    """np.hstack; vectors need no promotion to one dimension."""
    try:
        return np.concatenate(arrays)
    except ValueError:  # scalars among them
        return np.hstack(arrays)


def tolerance(
    x: Any,
    bounds: tuple[Any, Any] = (0.0, 0.0),
    margin: Any = 0.0,
    sigmoid: str = "gaussian",
    value_at_margin: float = 0.1,
) -> Any:
    """reward_utils.tolerance of one double, in plain floats; anything else is upstream's."""
    lower, upper = bounds
    if (
        type(x) in _DOUBLES
        and type(margin) in _DOUBLES
        and type(lower) in _DOUBLES
        and type(upper) in _DOUBLES
        and lower <= upper
        and margin >= 0
    ):
        x = float(x)
        if lower <= x <= upper:
            return 1.0
        if margin == 0:
            return 0.0
        if value_at_margin == 0.1 and x == x:
            distance = float(lower - x if x < lower else x - upper) / float(margin)
            if sigmoid == "long_tail":
                return 1 / ((distance * _LONG_TAIL) ** 2 + 1)
            if sigmoid == "gaussian":
                return float(np.exp(-0.5 * (distance * _GAUSSIAN) ** 2))
    from metaworld.utils import reward_utils

    return reward_utils.tolerance(x, bounds, margin, sigmoid, value_at_margin)


def hamacher_product(a: Any, b: Any) -> Any:
    """reward_utils.hamacher_product; keeps its arguments' precision, as upstream does."""
    if not (0.0 <= a <= 1.0 and 0.0 <= b <= 1.0):
        raise ValueError(f"a ({a}) and b ({b}) must range between 0 and 1")
    product = a * b
    denominator = a + b - product
    result = product / denominator if denominator > 0 else 0
    assert 0.0 <= result <= 1.0
    return result


def norm_xz(vector: NDArray[np.float64]) -> float:
    # Moved side by side first: BLAS may add strided elements in another way.
    vector = vector.copy()
    vector[1] = vector[2]
    vector = vector[:2]
    return math.sqrt(vector.dot(vector))


_LONG_TAIL = math.sqrt(1 / 0.1 - 1)
_GAUSSIAN = float(np.sqrt(-2 * np.log(0.1)))


def matrix_to_quaternion(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """A rotation matrix [3, 3] -> its quaternion [4] (x, y, z, w), SciPy's arithmetic in order.

    The largest of (m00, m11, m22, trace) decides the branch (Markley, "Unit quaternion from
    rotation matrix", 2008). SciPy's check that the matrix is orthogonal is left out: MuJoCo makes
    these matrices from normalised quaternions.
    """
    (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()
    trace = a + e + i
    if trace > a and trace > e and trace > i:
        x, y, z, w = h - f, c - g, d - b, 1 + trace
    elif a >= e and a >= i:
        x, y, z, w = 1 - trace + 2 * a, d + b, g + c, h - f
    elif e >= i:
        x, y, z, w = b + d, 1 - trace + 2 * e, h + f, c - g
    else:
        x, y, z, w = c + g, f + h, 1 - trace + 2 * i, d - b
    length = math.sqrt(x * x + y * y + z * z + w * w)
    return np.array((x / length, y / length, z / length, w / length))


class _Quaternion:
    def __init__(self, matrix: NDArray[np.float64]) -> None:
        self.matrix = matrix

    def as_quat(self) -> NDArray[np.float64]:
        return matrix_to_quaternion(self.matrix)


class _FastRotation:
    """The one use upstream's step code makes of SciPy: `Rotation.from_matrix(m).as_quat()`."""

    from_matrix = _Quaternion


@functools.cache
def rotation() -> Any:
    """SciPy's own class where its arithmetic differs from ours by a bit (another version)."""
    from scipy.spatial.transform import Rotation

    quaternions = np.random.default_rng(0).normal(size=(64, 4))
    for matrix in Rotation.from_quat(quaternions).as_matrix():
        if not np.array_equal(Rotation.from_matrix(matrix).as_quat(), matrix_to_quaternion(matrix)):
            return Rotation
    return _FastRotation


@functools.cache
def numpy() -> Any:
    linalg = types.SimpleNamespace(**vars(np.linalg) | {"norm": norm})
    return types.SimpleNamespace(**vars(np) | {"linalg": linalg, "clip": clip, "hstack": hstack})


@functools.cache
def reward_utils() -> Any:
    from metaworld.utils import reward_utils

    return types.SimpleNamespace(
        **vars(reward_utils) | {"tolerance": tolerance, "hamacher_product": hamacher_product}
    )
