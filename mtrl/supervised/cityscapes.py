"""Cityscapes' segmentation, depth and instance centres, from MTAN's arrays (Liu et al. 2019)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mtrl.supervised.data import Split, Splits
from mtrl.supervised.files import DataError, decode_centres, decode_npy, decoded, need_folder

SOURCE = "MTAN's Cityscapes arrays are linked at https://github.com/lorenmt/mtan"
SPLIT_SEED = 0
FOLDERS = {7: ("label", "label_7"), 19: ("label_19",)}
"""Where the labels of so many classes may be."""
INSTANCES = "Cityscapes' gtFine_instanceIds.png, nearest neighbour to the images' size, as .npy"


def load(folder: Path | None, classes: int, *, centres: bool = False) -> Splits:
    """train/ and val/ with image/, label/ and depth/ (centres: and instance/), each 0.npy, ...

    A fifth of the training files, drawn once for all, is for validation; val/ is the test split:
    2,380 / 595 / 500. Images [h, w, 3] in [0, 1], labels [h, w] with -1 = none, depths [h, w, 1]
    with 0 = none, instances [h, w] in Cityscapes' numbers; h = 128, w = 256.
    """
    folder = need_folder(folder, "Cityscapes")
    if (folder / "cityscapes").is_dir():
        folder = folder / "cityscapes"
    train, test = (_count(folder / part, classes, centres) for part in ("train", "val"))
    order = np.random.PCG64(SPLIT_SEED).random_raw(train).argsort(kind="stable")
    held = train // 5
    if not held:
        raise DataError(f"{folder / 'train'} has {train} samples, at least 5 are needed")
    return Splits(
        _split(folder / "train", classes, np.sort(order[held:]), centres),
        _split(folder / "train", classes, np.sort(order[:held]), centres),
        _split(folder / "val", classes, np.arange(test), centres),
    )


def _labels(part: Path, classes: int) -> Path:
    for name in FOLDERS[classes]:
        if (part / name).is_dir():
            return part / name
    raise DataError(f"{part / FOLDERS[classes][0]} is missing; {SOURCE}")


def _count(part: Path, classes: int, centres: bool) -> int:
    """Samples of a part, whose folders must agree."""
    count = 0
    folders = [part / "image", _labels(part, classes), part / "depth"]
    for folder in [*folders, part / "instance"] if centres else folders:
        if not folder.is_dir():
            source = INSTANCES if folder.name == "instance" else SOURCE
            raise DataError(f"{folder} is missing; {source}")
        numbers = {path.name for path in folder.iterdir() if path.suffix == ".npy"}
        count = count or len(numbers)
        wanted = [f"{i}.npy" for i in range(max(count, 1))]
        if missing := [name for name in wanted if name not in numbers]:
            raise DataError(f"{folder / missing[0]} is missing; {SOURCE}")
        if len(numbers) != count:
            raise DataError(f"{folder} has {len(numbers)} arrays, the images are {count}; {SOURCE}")
    return count


def _split(part: Path, classes: int, numbers: NDArray[np.int64], centres: bool) -> Split:
    def paths(folder: Path) -> list[Path]:
        return [folder / f"{i}.npy" for i in numbers]

    first = decode_npy(paths(part / "image")[0])
    if first.ndim != 3 or first.shape[2] != 3 or first.shape[0] % 8 or first.shape[1] % 8:
        raise DataError(
            f"{paths(part / 'image')[0]}: wanted [h, w, 3] with h and w divisible by 8, found "
            f"{first.shape}; {SOURCE}"
        )
    size = first.shape[:2]
    labels = decoded(paths(_labels(part, classes)), decode_npy, size, np.int8)
    if labels.min() < -1 or labels.max() >= classes:
        raise DataError(f"{_labels(part, classes)}: labels must be -1..{classes - 1}; {SOURCE}")
    targets: tuple[NDArray[Any], ...] = (
        labels,
        decoded(paths(part / "depth"), decode_npy, size, np.float32),
    )
    if centres:
        offsets = decoded(paths(part / "instance"), decode_centres, (2, *size), np.float32)
        targets = (*targets, offsets)
    return Split(decoded(paths(part / "image"), decode_npy, (*size, 3), np.float32), targets)


def normalise(images: Tensor) -> Tensor:
    """[sample, h, w, 3] in [0, 1] -> [sample, 3, h, w]; as MTAN: no mean, no augmentation."""
    return images.permute(0, 3, 1, 2).contiguous()
