"""Multi-MNIST: two overlapping digits per image (Sabour et al. 2017; Kurin et al. 2022, C.1).

Left = every image of a split in order, right = uniform with replacement from the same split, from
a seed of its own: the pairs are the same for every run and on every machine. They are kept in the
cache folder.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.schema import ConfigError
from mtrl.supervised.data import Split, Splits
from mtrl.supervised.decoders import need
from mtrl.supervised.files import DataError, cached_arrays, need_folder

PAIRING_SEED = 0
RECIPE = 1
"""Version of `overlay` and `uniform_integers`: to be raised when pairs come out otherwise."""
SIDE, SHIFT = 28, 6
CANVAS = 36
MEAN, STD = 0.1307, 0.3081
"""Of MNIST's pixels in [0, 1]."""
SOURCE = "MNIST's files are at https://ossci-datasets.s3.amazonaws.com/mnist/"
COPIES = 5
"""Pairs per training image of `digits`, which has few."""


class Pairs(NamedTuple):
    """Images uint8 [sample, 28, 28], classes uint8 [sample]."""

    images: NDArray[np.uint8]
    left: NDArray[np.uint8]
    right: NDArray[np.uint8]
    left_class: NDArray[np.uint8]
    right_class: NDArray[np.uint8]

    def targets_of(self, tasks: tuple[str, ...]) -> Split:
        """Classes of what `classify_left` ... ask for, images of what `reconstruct_right` ... do,
        normalised as the inputs are (Gama & Grassi's code)."""
        targets = []
        for task in tasks:
            kind, side = task.split("_")
            if kind == "classify":
                targets.append(getattr(self, f"{side}_class"))
            else:
                pixels = getattr(self, side).astype(np.float32) / 255.0
                targets.append((pixels - MEAN) / STD)
        return Split(self.images[:, None], tuple(targets))


class PairSplits(NamedTuple):
    train: Pairs
    validation: Pairs
    test: Pairs

    def targets_of(self, tasks: tuple[str, ...]) -> Splits:
        return Splits(*(pairs.targets_of(tasks) for pairs in self))


def uniform_integers(seed: int, count: int, below: int) -> NDArray[np.int64]:
    """The same numbers with every NumPy: from the generator's raw bits, which are guaranteed."""
    raw = np.atleast_1d(np.random.PCG64(seed).random_raw(count))
    return ((raw >> np.uint64(32)) * np.uint64(below) >> np.uint64(32)).astype(np.int64)


def overlay(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[sample, 28, 28] twice -> [sample, 28, 28]: left and, 6 pixels lower and further right, right
    on a 36 x 36 canvas, the larger value winning; nearest neighbour back to 28 x 28."""
    canvas = np.zeros((len(left), CANVAS, CANVAS), dtype=np.uint8)
    canvas[:, :SIDE, :SIDE] = left
    place = canvas[:, SHIFT : SHIFT + SIDE, SHIFT : SHIFT + SIDE]
    np.maximum(place, right, out=place)
    nearest = ((np.arange(SIDE) + 0.5) * CANVAS / SIDE).astype(np.int64)
    return np.ascontiguousarray(canvas[:, nearest[:, None], nearest])


def make_pairs(
    images: NDArray[np.uint8], classes: NDArray[np.uint8], seed: int, copies: int = 1
) -> Pairs:
    """Every image as left digit, `copies` times."""
    count = len(images)
    first = np.tile(np.arange(count), copies)

    def make() -> dict[str, NDArray[Any]]:
        second = uniform_integers(seed, count * copies, count)
        return {"right": second, "images": overlay(images[first], images[second])}

    source = hashlib.sha256(images.tobytes()).hexdigest()
    made = cached_arrays("multi_mnist", (RECIPE, seed, copies, images.shape, source), make)
    second = made["right"]
    return Pairs(
        made["images"],
        images[first],
        images[second],
        classes[first],
        classes[second],
    )


def _split(parts: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]], copies: int = 1) -> PairSplits:
    train, validation, test = parts
    return PairSplits(
        make_pairs(*train, PAIRING_SEED, copies),
        make_pairs(*validation, PAIRING_SEED + 1),
        make_pairs(*test, PAIRING_SEED + 2),
    )


def multi_mnist(folder: Path | None) -> PairSplits:
    """50,000 / 10,000 / 10,000 pairs from MNIST's four files: the training file's last sixth is for
    validation."""
    folder = need_folder(folder, "Multi-MNIST")
    train, test = (_labelled(folder, name) for name in ("train", "t10k"))
    cut = len(train[0]) * 5 // 6
    return _split([(train[0][:cut], train[1][:cut]), (train[0][cut:], train[1][cut:]), test])


def _labelled(folder: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images [sample, 28, 28] and classes 0..9."""
    image_file = find_idx(folder, f"{name}-images-idx3-ubyte")
    class_file = find_idx(folder, f"{name}-labels-idx1-ubyte")
    images, classes = read_idx(image_file, 3), read_idx(class_file, 1)
    if images.shape[1:] != (SIDE, SIDE) or len(images) < 6:
        raise DataError(
            f"{image_file}: expected at least 6 images of 28 x 28, found {list(images.shape)}; "
            f"{SOURCE}"
        )
    if len(classes) != len(images):
        raise DataError(
            f"{class_file}: expected as many labels as images, {len(images):,}, found "
            f"{len(classes):,}; {SOURCE}"
        )
    need(class_file, classes, classes <= 9, f"expected labels 0..9; {SOURCE}")
    return images, classes


def digits() -> PairSplits:
    """The same from scikit-learn's 1,797 digits of 8 x 8 pixels, enlarged to 28 x 28; no files.

    In the set's own order: 1,197 images for training, 300 for validation, 300 for test, by writers
    of their own but at the borders.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError(
            "problem", "digits", "needs scikit-learn: pip install scikit-learn"
        ) from None
    bunch = load_digits()
    small = np.minimum(bunch.images * 16, 255).astype(np.uint8)
    images = np.pad(small.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
    classes = bunch.target.astype(np.uint8)
    parts = [slice(0, 1197), slice(1197, 1497), slice(1497, 1797)]
    return _split([(images[part], classes[part]) for part in parts], COPIES)


def find_idx(folder: Path, name: str) -> Path:
    """The file, plain or .gz, in the folder or in its MNIST/raw."""
    places = [folder, folder / "MNIST" / "raw"]
    candidates = [place / (name + end) for place in places for end in ("", ".gz")]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise DataError(f"{folder / name} (or .gz) is missing; {SOURCE}")
    return path


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes in so many dimensions."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; {SOURCE}") from None
    head = 4 + 4 * dimensions
    magic = bytes([0, 0, 8, dimensions])
    if content[:4] != magic or len(content) < head:
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes in {dimensions} dimensions: it begins "
            f"with {content[:4].hex(' ') or 'nothing'}, not {magic.hex(' ')}; {SOURCE}"
        )
    shape = [int(n) for n in np.frombuffer(content, ">u4", dimensions, offset=4)]
    if len(content) != head + math.prod(shape):
        raise DataError(
            f"{path} is damaged: its header promises {math.prod(shape):,} bytes, it has "
            f"{len(content) - head:,}; {SOURCE}"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def normalise(images: Tensor) -> Tensor:
    """uint8 -> float32 by MNIST's mean and standard deviation."""
    return images.to(torch.float32).div_(255.0).sub_(MEAN).div_(STD)
