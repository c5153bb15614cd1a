"""One data file -> its checked array.

A value that does not belong is an error that names the file, the place and the value, before any
conversion could hide it. Light imports: the decoding processes import this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mtrl.supervised.files import DataError

RECIPE = 1
"""Version of the decoders: to be raised when one of them gives other values."""
SINGLE = 1000
"""Cityscapes' instance images hold class * 1000 + number where a pixel is of one instance; below
stand classes without instances, and groups."""
LARGEST = 34 * SINGLE - 1
"""33, the bicycles, is the last class."""
ROUNDING = 1e-3
"""How far an image may leave 0..1: resizing rounds."""


@dataclass(frozen=True)
class Photos:
    """A photo file -> RGB [3, side, side], bilinear from the whole image."""

    side: int
    pillow: str
    """Pillow's version: another may round otherwise."""
    recipe: int = RECIPE
    dtype: ClassVar = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        return 3, self.side, self.side

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        from PIL import Image

        try:
            with Image.open(path) as image:
                small = image.convert("RGB").resize((self.side,) * 2, Image.Resampling.BILINEAR)
        except Exception as error:  # Pillow's formats raise errors of many kinds
            raise unreadable(path, error) from None
        return np.asarray(small).transpose(2, 0, 1)


@dataclass(frozen=True)
class Images:
    """[h, w, 3] in 0..1."""

    size: tuple[int, int]
    recipe: int = RECIPE
    dtype: ClassVar = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return *self.size, 3

    def __call__(self, path: Path) -> NDArray[np.float32]:
        values = read_npy(path, self.shape)
        good = (values >= -ROUNDING) & (values <= 1 + ROUNDING)
        need(path, values, good, "images must be in 0..1 (divide 0..255 by 255)")
        return values.astype(np.float32)


@dataclass(frozen=True)
class Labels:
    """Classes [h, w] or [h, w, 1]; -1 = none."""

    size: tuple[int, int]
    classes: int
    recipe: int = RECIPE
    dtype: ClassVar = np.dtype(np.int8)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    def __call__(self, path: Path) -> NDArray[np.int8]:
        values = read_npy(path, self.size, (*self.size, 1))
        good = (values >= -1) & (values < self.classes) & (values == np.floor(values))
        need(path, values, good, f"labels must be -1..{self.classes - 1}, whole; -1 = none")
        return values.astype(np.int8).reshape(self.size)


@dataclass(frozen=True)
class Depths:
    """[h, w] or [h, w, 1]; 0 = none."""

    size: tuple[int, int]
    recipe: int = RECIPE
    dtype: ClassVar = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    def __call__(self, path: Path) -> NDArray[np.float32]:
        values = read_npy(path, self.size, (*self.size, 1))
        need(path, values, abs(values) <= np.finfo(np.float32).max, "depths must be finite")
        return values.astype(np.float32).reshape(self.size)


@dataclass(frozen=True)
class Normals:
    """[h, w, 3] in -1..1 -> [3, h, w] of length 1; 0 = none."""

    size: tuple[int, int]
    recipe: int = RECIPE
    dtype: ClassVar = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return 3, *self.size

    def __call__(self, path: Path) -> NDArray[np.float32]:
        values = read_npy(path, (*self.size, 3))
        need(path, values, abs(values) <= 1 + ROUNDING, "normals must be in -1..1")
        length = np.linalg.norm(values.astype(np.float64), axis=2, keepdims=True)
        unit = values / np.where(length == 0, 1.0, length)
        return unit.astype(np.float32).transpose(2, 0, 1)


@dataclass(frozen=True)
class Centres:
    """An instance image [h, w] -> each pixel's (y, x) minus its instance's mean, [2, h, w], pixels;
    NaN where there is no instance."""

    size: tuple[int, int]
    recipe: int = RECIPE
    dtype: ClassVar = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return 2, *self.size

    def __call__(self, path: Path) -> NDArray[np.float32]:
        instances = read_npy(path, self.size)
        whole = instances == np.floor(instances)
        need(
            path,
            instances,
            whole & (instances >= -1) & (instances <= LARGEST),
            f"Cityscapes' instance numbers must be -1..{LARGEST}, whole; int16 is too small",
        )
        offsets = np.full(self.shape, np.nan, dtype=np.float32)
        for number in np.unique(instances[instances >= SINGLE]):
            places = np.nonzero(instances == number)
            for axis, place in enumerate(places):
                offsets[axis][places] = place - place.mean()
        return offsets


def read_npy(path: Path, *shapes: tuple[int, ...]) -> NDArray[Any]:
    """Real numbers in one of these shapes (none: in any); DataError for everything else."""
    try:
        with open(path, "rb") as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # a damaged header makes NumPy raise errors of many kinds
        raise unreadable(path, error) from None
    if array.dtype.kind not in "iuf" or (shapes and array.shape not in shapes):
        wanted = f"expected shape {shapes[0]} of numbers" if shapes else "expected numbers"
        raise DataError(f"{path}: {wanted}, found {array.shape} of {array.dtype}")
    return array


def need(path: Path, values: NDArray[Any], good: NDArray[np.bool_], wanted: str) -> None:
    """DataError for the first value that is not good; wanted: "labels must be ..."."""
    if not good.all():
        place = tuple(np.argwhere(~good)[0].tolist())
        raise DataError(f"{path}: {list(place)} is {values[place]}; {wanted}")


def unreadable(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path} cannot be read: {reason}")
