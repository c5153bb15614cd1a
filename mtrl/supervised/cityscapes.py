"""Cityscapes' segmentation, depth and instance centres, from MTAN's arrays (Liu et al. 2019)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mtrl.supervised.data import Batch, Split, Splits
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
    """[sample, h, w, 3] in [0, 1] -> [sample, 3, h, w]; as MTAN: no mean."""
    return images.permute(0, 3, 1, 2).contiguous()


DEGREES = 10.0


def rotate_and_mirror(batch: Batch, rng: np.random.Generator) -> Batch:
    """Each sample turned by up to 10 degrees either way and, every other time, mirrored.

    As Gama & Grassi's code (from Sener & Koltun 2018), but pixels from outside the image count in
    no loss, and offsets are turned with the image instead of being measured again in what is left.
    """
    inputs, (labels, depths, *offsets) = batch
    samples, height, width = labels.shape
    angle = np.radians(rng.uniform(-DEGREES, DEGREES, samples))
    mirror = rng.choice([-1.0, 1.0], samples)
    cos, sin, zero = np.cos(angle), np.sin(angle), np.zeros(samples)
    # Where a pixel (x, y) of the result comes from, in pixels from the centre ...
    turned = np.array([[mirror * cos, -sin], [mirror * sin, cos]]).transpose(2, 0, 1)
    # ... and in PyTorch's coordinates, in which both sides go from -1 to 1.
    stretch = np.array([[1.0, height / width], [width / height, 1.0]])
    affine = np.concatenate([turned * stretch, np.stack([zero, zero], -1)[..., None]], -1)
    theta = torch.as_tensor(affine, dtype=torch.float32, device=inputs.device)
    grid = functional.affine_grid(theta, [samples, 1, height, width], align_corners=False)

    def at_grid(values: Tensor, mode: str = "nearest") -> Tensor:
        """[sample, channel, h, w] -> the same; 0 from outside."""
        return functional.grid_sample(values, grid, mode, "zeros", align_corners=False)

    images = at_grid(inputs.permute(0, 3, 1, 2), "bilinear").permute(0, 2, 3, 1)
    moved = at_grid(torch.stack([labels.float() + 1.0, depths], 1))  # 0 means none in both
    targets = [moved[:, 0].round().long() - 1, moved[:, 1]]
    for values in offsets:  # one at most
        known = at_grid((~values.isnan()).float())[:, :1] > 0.5
        y, x = at_grid(values.nan_to_num(nan=0.0)).unbind(1)
        back = torch.as_tensor(turned, dtype=torch.float32, device=x.device)[..., None, None]
        vector = [back[:, 0, 1] * x + back[:, 1, 1] * y, back[:, 0, 0] * x + back[:, 1, 0] * y]
        targets.append(torch.where(known, torch.stack(vector, 1), torch.nan))
    return Batch(images, tuple(targets))
