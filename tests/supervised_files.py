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


def write_nyuv2(folder: Path, train: int = 10, test: int = 3, side: int = 32) -> Path:
    """Image i has the value i / 100 in its first pixel; a fifth of the pixels has no normal."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", test)):
        for what in ("image", "label", "depth", "normal"):
            (folder / part / what).mkdir(parents=True)
        for i in range(count):
            image = rng.random((side, side, 3))
            image[0, 0] = i / 100
            normal = rng.normal(size=(side, side, 3))
            normal /= np.linalg.norm(normal, axis=2, keepdims=True)
            normal *= rng.random((side, side, 1)) > 0.2
            arrays = {
                "image": image,
                "label": rng.integers(-1, 13, (side, side)).astype(np.float64),
                "depth": rng.random((side, side, 1)) * rng.integers(0, 2, (side, side, 1)),
                "normal": normal.astype(np.float32),
            }
            for what, array in arrays.items():
                np.save(folder / part / what / f"{i}.npy", array)
    return folder


MOLECULES = {
    "water": ("OHH", [(1, 2, 1), (1, 3, 1)]),
    "carbon dioxide": ("COO", [(1, 2, 2), (1, 3, 2)]),
    "hydrogen cyanide": ("NCH", [(1, 2, 3), (2, 3, 1)]),
    "methyl fluoride": ("CFHHH", [(1, 2, 1), (1, 3, 1), (1, 4, 1), (1, 5, 1)]),
}
"""Atoms, and bonds: two atoms, counted from 1, and their order."""


def write_qm9(folder: Path, count: int = 30, left_out: tuple[int, ...] = (3, 11)) -> Path:
    """gdb_1, gdb_2, ... are MOLECULES in turn, with random positions and properties; `left_out` are
    in uncharacterized.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    sdf, table = (
        [],
        [
            "mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv,"
            "u0_atom,u298_atom,h298_atom,g298_atom"
        ],
    )
    for i in range(count):
        atoms, bonds = list(MOLECULES.values())[i % len(MOLECULES)]
        sdf += [f"gdb_{i + 1}", "  written by a test", ""]
        sdf += [f"{len(atoms):3}{len(bonds):3}  0  0  0  0  0  0  0  0999 V2000"]
        for atom in atoms:
            x, y, z = rng.normal(size=3)
            sdf += [f"{x:10.4f}{y:10.4f}{z:10.4f} {atom:3} 0  0  0  0  0  0  0  0  0  0  0  0"]
        sdf += [f"{a:3}{b:3}{order:3}  0" for a, b, order in bonds]
        sdf += ["M  END", "$$$$"]
        table.append(f"gdb_{i + 1}," + ",".join(f"{value:.6f}" for value in rng.normal(size=19)))
    (folder / "gdb9.sdf").write_text("\n".join(sdf) + "\n")
    (folder / "gdb9.sdf.csv").write_text("\n".join(table) + "\n")
    lines = ["a line of text"] * 9 + [f"  {i} C C" for i in left_out] + [f"{len(left_out)} in all"]
    (folder / "uncharacterized.txt").write_text("\n".join(lines) + "\n")
    return folder
