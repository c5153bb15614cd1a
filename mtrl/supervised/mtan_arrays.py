"""MTAN's arrays of labelled images (Liu et al. 2019): one .npy file per sample and kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mtrl.supervised.data import Split, Splits
from mtrl.supervised.decoders import Images, read_npy
from mtrl.supervised.files import DataError, Decoder, decoded, names_in, need_folder

SPLIT_SEED = 0
NUMBERED = re.compile(r"(0|[1-9][0-9]*)\.npy")


class Kind(NamedTuple):
    """What one task is to predict of every pixel."""

    folders: tuple[str, ...]
    """Where its files may be, the first that is there."""
    decoder: Callable[[tuple[int, int]], Decoder]
    """Height and width -> its decoder."""
    known: Callable[[NDArray[Any]], NDArray[np.bool_]]
    """Which of the decoded values count."""
    source: str
    """Where to get its files."""


def load(folder: Path | None, name: str, kinds: Sequence[Kind], source: str, step: int) -> Splits:
    """train/ and val/ with image/ and a folder for each kind, each with 0.npy, 1.npy, ...

    A fifth of the training files, drawn once for all, is for validation; val/ is the test split.
    Images [h, w, 3] in [0, 1], height and width divisible by `step`.
    """
    folder = need_folder(folder, name)
    if (folder / name.lower()).is_dir():
        folder = folder / name.lower()
    train, test = (_count(folder / part, kinds, source) for part in ("train", "val"))
    order = np.random.PCG64(SPLIT_SEED).random_raw(train).argsort(kind="stable")
    held = train // 5
    if not held:
        raise DataError(f"{folder / 'train'} has {train} samples, at least 5 are needed")

    def split(part: str, numbers: NDArray[np.int64]) -> Split:
        return _split(folder / part, numbers, kinds, source, step)

    return Splits(
        split("train", np.sort(order[held:])),
        split("train", np.sort(order[:held])),
        split("val", np.arange(test)),
    )


def _folder(part: Path, kind: Kind) -> Path:
    places = [part / name for name in kind.folders]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise DataError(f"{places[0]} is missing; {kind.source}")
    return found


def _count(part: Path, kinds: Sequence[Kind], source: str) -> int:
    """Samples of a part, whose folders must agree."""
    if not (part / "image").is_dir():
        raise DataError(f"{part / 'image'} is missing; {source}")
    count = 0
    for folder in (part / "image", *(_folder(part, kind) for kind in kinds)):
        names = {name for name in names_in(folder) if name.endswith(".npy")}
        if strange := sorted(name for name in names if not NUMBERED.fullmatch(name)):
            raise DataError(f"{folder / strange[0]}: must be called 0.npy, 1.npy, ...; {source}")
        numbers = {int(name.removesuffix(".npy")) for name in names}
        wanted = range(count or max(numbers, default=0) + 1)
        if missing := sorted(set(wanted) - numbers):
            raise DataError(f"{folder / str(missing[0])}.npy is missing; {source}")
        if surplus := sorted(numbers - set(wanted)):
            raise DataError(f"{folder / str(surplus[0])}.npy has no image; {source}")
        count = len(wanted)
    return count


def _split(
    part: Path, numbers: NDArray[np.int64], kinds: Sequence[Kind], source: str, step: int
) -> Split:
    def arrays(folder: Path, decode: Decoder) -> NDArray[Any]:
        return decoded(part.parent, [folder / f"{i}.npy" for i in numbers], decode)

    first = part / "image" / f"{numbers[0]}.npy"
    shape = read_npy(first).shape
    if len(shape) != 3 or shape[2] != 3 or any(n < step or n % step for n in shape[:2]):
        raise DataError(
            f"{first}: must be [h, w, 3] with h and w divisible by {step}, found {list(shape)}; "
            f"{source}"
        )
    size = shape[0], shape[1]
    targets = []
    for kind in kinds:
        folder = _folder(part, kind)
        targets.append(arrays(folder, kind.decoder(size)))
        if not any(kind.known(sample).any() for sample in targets[-1]):
            raise DataError(f"{folder}: no pixel of these {len(numbers)} samples has a value")
    return Split(arrays(part / "image", Images(size)), tuple(targets))


def normalise(images: Tensor) -> Tensor:
    """[sample, h, w, 3] in [0, 1] -> [sample, 3, h, w]; as MTAN: no mean."""
    return images.permute(0, 3, 1, 2).contiguous()


class Sampler:
    """Images seen through affine maps, one for each sample."""

    def __init__(self, affine: NDArray[np.float64], images: Tensor) -> None:
        """affine [sample, 2, 3]: where (x, y) of the result comes from, in coordinates in which
        both sides of the images [sample, h, w, ...] go from -1 to 1."""
        theta = torch.as_tensor(affine, dtype=torch.float32, device=images.device)
        size = [len(images), 1, *images.shape[1:3]]
        self._grid = functional.affine_grid(theta, size, align_corners=False)

    def __call__(self, values: Tensor, mode: str = "nearest", outside: str = "zeros") -> Tensor:
        """[sample, channel, h, w] -> the same; outside: zeros, or border (the nearest pixel)."""
        return functional.grid_sample(values, self._grid, mode, outside, align_corners=False)

    def images(self, values: Tensor, outside: str = "zeros") -> Tensor:
        """[sample, h, w, channel] -> the same, bilinear."""
        return self(values.permute(0, 3, 1, 2), "bilinear", outside).permute(0, 2, 3, 1)
