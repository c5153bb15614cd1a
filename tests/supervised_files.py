"""Small data sets in the official formats."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtrl.supervised.config import CELEBA_ATTRIBUTES


def idx(array: NDArray[np.uint8]) -> bytes:
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write_mnist(folder: Path, train: int = 120, test: int = 20) -> Path:
    """Random images; the training images as .gz."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        classes = rng.integers(0, 10, count, dtype=np.uint8)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(classes))
        packed = gzip.compress(idx(images), compresslevel=1)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(packed)
    return folder


def write_celeba(folder: Path, parts: str = "00001122") -> Path:
    """One grey image per character of `parts`, as bright as 20 times its number."""
    from PIL import Image

    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{i + 1:06}.jpg" for i in range(len(parts))]
    rng = np.random.default_rng(0)
    rows = []
    for i, name in enumerate(names):
        Image.new("RGB", (178, 218), (20 * i,) * 3).save(folder / "img_align_celeba" / name)
        rows.append(f"{name} " + " ".join(map(str, rng.choice([-1, 1], 40))))
    lines = [str(len(names)), " ".join(CELEBA_ATTRIBUTES), *rows]
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    partition = [f"{name} {part}" for name, part in zip(names, parts, strict=True)]
    (folder / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
    return folder


def write_cityscapes(
    folder: Path, train: int = 10, test: int = 3, side: int = 16, *, instances: bool = False
) -> Path:
    """Image i has the value i / 100 in its first pixel; instances: 19 classes, and instances."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", test)):
        for what in ("image", "label", "depth", *(("label_19", "instance") * instances)):
            (folder / part / what).mkdir(parents=True)
        for i in range(count):
            image = rng.random((side, 2 * side, 3))
            image[0, 0] = i / 100
            np.save(folder / part / "image" / f"{i}.npy", image)
            label = rng.integers(-1, 7, (side, 2 * side)).astype(np.float64)
            np.save(folder / part / "label" / f"{i}.npy", label)
            depth = rng.random((side, 2 * side, 1)) * rng.integers(0, 2, (side, 2 * side, 1))
            np.save(folder / part / "depth" / f"{i}.npy", depth)
            if instances:
                label = rng.integers(-1, 19, (side, 2 * side)).astype(np.float64)
                np.save(folder / part / "label_19" / f"{i}.npy", label)
                # A road, a group of cars, two cars and a bicycle, in rectangles.
                numbers = np.array([7, 26, 26_000, 26_001, 33_000, 0, 7, 7], dtype=np.int32)
                grid = rng.permutation(numbers).reshape(2, 4)
                grid = grid.repeat(side // 2, axis=0).repeat(side // 2, axis=1)
                np.save(folder / part / "instance" / f"{i}.npy", grid)
    return folder
