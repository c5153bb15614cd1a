"""CelebA: 40 binary attributes of faces (Liu et al. 2015; Kurin et al. 2022, C.1)."""

from __future__ import annotations

from collections import Counter
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.supervised.config import CELEBA_ATTRIBUTES
from mtrl.supervised.data import Split, Splits
from mtrl.supervised.decoders import Photos
from mtrl.supervised.files import DataError, decoded, names_in, need_folder, read_lines

SOURCE = "CelebA's files are at https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
MEAN = (72.39239876, 82.90891754, 73.15835921)
"""RGB, 0..255: subtracted in Sener & Koltun's code and its descendants (Cityscapes' mean)."""


def load(folder: Path | None) -> Splits:
    """The official partition of `img_align_celeba`, `list_attr_celeba.txt` and
    `list_eval_partition.txt`: 162,770 / 19,867 / 19,962 images, 64 x 64."""
    folder = need_folder(folder, "CelebA")
    if (folder / "celeba").is_dir():
        folder = folder / "celeba"
    names, attributes = _attributes(folder / "list_attr_celeba.txt")
    part = _partition(folder / "list_eval_partition.txt", names)
    images = folder / "img_align_celeba"
    if not images.is_dir():
        raise DataError(f"{images} is missing; {SOURCE}")
    there = names_in(images)
    if missing := [name for name in names if name not in there]:
        raise DataError(
            f"{images / missing[0]} is missing ({len(missing):,} of {len(names):,} images are); "
            f"{SOURCE}"
        )
    photos = Photos(64, metadata.version("pillow"))
    splits = []
    for number, what in enumerate(("training", "validation", "test")):
        chosen = np.flatnonzero(part == number)
        if not len(chosen):
            raise DataError(f"{folder / 'list_eval_partition.txt'} has no {what} images; {SOURCE}")
        paths = [images / names[i] for i in chosen]
        splits.append(Split(decoded(folder, paths, photos), (attributes[chosen],)))
    return Splits(*splits)


def _attributes(path: Path) -> tuple[list[str], NDArray[np.uint8]]:
    """Image names, attributes [image, 40] as 0 or 1."""
    lines = read_lines(path, SOURCE)
    if len(lines) < 3 or not lines[0].strip().isdecimal():
        raise DataError(f"{path} must begin with the number of images; {SOURCE}")
    if tuple(lines[1].split()) != CELEBA_ATTRIBUTES:
        raise DataError(f"{path}: line 2 must name the 40 attributes in their order; {SOURCE}")
    rows = [line.split() for line in lines[2:] if line.strip()]
    if len(rows) != int(lines[0]):
        raise DataError(f"{path} promises {lines[0].strip()} images, has {len(rows)}; {SOURCE}")
    for number, row in enumerate(rows, start=3):
        if len(row) != 41 or not set(row[1:]) <= {"1", "-1"}:
            raise DataError(f"{path}, line {number}: expected a name and 40 of 1 or -1; {SOURCE}")
    names = [row[0] for row in rows]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{path} has {twice[0]} more than once; {SOURCE}")
    values = np.array([[word == "1" for word in row[1:]] for row in rows], dtype=np.uint8)
    return names, values


def _partition(path: Path, names: list[str]) -> NDArray[np.int64]:
    """0 training, 1 validation, 2 test, for each image."""
    part: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, SOURCE), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise DataError(f"{path}, line {number}: expected a name and 0, 1 or 2; {SOURCE}")
        if words[0] in part:
            raise DataError(f"{path} has {words[0]} more than once; {SOURCE}")
        part[words[0]] = int(words[1])
    if missing := [name for name in names if name not in part]:
        raise DataError(f"{path} has no line for {missing[0]}; {SOURCE}")
    return np.array([part[name] for name in names])


def normalise(images: Tensor) -> Tensor:
    """uint8 [sample, 3, h, w] -> (x - mean) / 255, float32; no augmentation."""
    mean = torch.tensor(MEAN, device=images.device)[:, None, None]
    return (images.float() - mean) / 255.0
