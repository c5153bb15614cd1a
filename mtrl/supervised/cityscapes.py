"""Cityscapes' segmentation, depth and instance centres, from MTAN's arrays (Liu et al. 2019)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mtrl.supervised.data import Batch, Split, Splits
from mtrl.supervised.decoders import Centres, Depths, Images, Labels, read_npy
from mtrl.supervised.files import DataError, Decoder, decoded, names_in, need_folder

SOURCE = "MTAN's Cityscapes arrays are linked at https://github.com/lorenmt/mtan"
SPLIT_SEED = 0
FOLDERS = {7: ("label", "label_7"), 19: ("label_19",)}
"""Where the labels of so many classes may be."""
NUMBERED = re.compile(r"(0|[1-9][0-9]*)\.npy")
KNOWN: tuple[Callable[[NDArray[Any]], NDArray[np.bool_]], ...] = (
    lambda labels: labels >= 0,
    lambda depths: depths != 0,
    lambda offsets: ~np.isnan(offsets),
)
"""Which pixels of a label, a depth and an offset count."""
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
        names = {name for name in names_in(folder) if name.endswith(".npy")}
        if strange := sorted(name for name in names if not NUMBERED.fullmatch(name)):
            raise DataError(f"{folder / strange[0]}: must be called 0.npy, 1.npy, ...; {SOURCE}")
        numbers = {int(name.removesuffix(".npy")) for name in names}
        wanted = range(count or max(numbers, default=0) + 1)
        if missing := sorted(set(wanted) - numbers):
            raise DataError(f"{folder / str(missing[0])}.npy is missing; {SOURCE}")
        if surplus := sorted(numbers - set(wanted)):
            raise DataError(f"{folder / str(surplus[0])}.npy has no image; {SOURCE}")
        count = len(wanted)
    return count


def _split(part: Path, classes: int, numbers: NDArray[np.int64], centres: bool) -> Split:
    def arrays(name: str, decode: Decoder) -> NDArray[Any]:
        return decoded(part.parent, [part / name / f"{i}.npy" for i in numbers], decode)

    first = part / "image" / f"{numbers[0]}.npy"
    shape = read_npy(first).shape
    if len(shape) != 3 or shape[2] != 3 or any(n < 8 or n % 8 for n in shape[:2]):
        raise DataError(
            f"{first}: must be [h, w, 3] with h and w divisible by 8, found {list(shape)}; {SOURCE}"
        )
    size = shape[0], shape[1]
    names = [_labels(part, classes).name, "depth"]
    targets = [arrays(names[0], Labels(size, classes)), arrays(names[1], Depths(size))]
    if centres:
        names.append("instance")
        targets.append(arrays("instance", Centres(size)))
    for name, values, known in zip(names, targets, KNOWN, strict=False):
        if not any(known(sample).any() for sample in values):
            raise DataError(f"{part / name}: no pixel of these {len(values)} samples has a value")
    return Split(arrays("image", Images(size)), tuple(targets))


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
