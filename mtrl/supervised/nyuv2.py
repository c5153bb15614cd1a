"""NYUv2's segmentation, depth and surface normals, from MTAN's arrays (Liu et al. 2019)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mtrl.supervised import mtan_arrays
from mtrl.supervised.data import Batch, Splits
from mtrl.supervised.decoders import Depths, Labels, Normals
from mtrl.supervised.mtan_arrays import Kind, Sampler

SOURCE = "MTAN's NYUv2 arrays are linked at https://github.com/lorenmt/mtan"
CLASSES = 13
KINDS = (
    Kind(("label",), lambda size: Labels(size, CLASSES), lambda labels: labels >= 0, SOURCE),
    Kind(("depth",), Depths, lambda depths: depths != 0, SOURCE),
    Kind(("normal",), Normals, lambda normals: normals != 0, SOURCE),
)
SCALES = (1.0, 1.2, 1.5)


def load(folder: Path | None, *, step: int = 8) -> Splits:
    """label/, depth/ and normal/: 636 / 159 / 654 samples of 288 x 384.

    Labels [h, w] with -1 = none, depths [h, w, 1] with 0 = none, normals [h, w, 3] with 0 = none.
    """
    return mtan_arrays.load(folder, "NYUv2", KINDS, SOURCE, step)


def scale_and_mirror(batch: Batch, rng: np.random.Generator) -> Batch:
    """A part of each sample, enlarged 1, 1.2 or 1.5 times and, every other time, mirrored.

    As the code of CAGrad, Nash-MTL and FAMO (github.com/lorenmt/mtan/issues/34): depths shrink by
    the scale, mirrored normals turn round. But normals are taken from the nearest pixel, as labels
    and depths are: between pixels with and without one, theirs lose their length.
    """
    inputs, (labels, depths, normals) = batch
    samples, height, width = labels.shape
    scale = rng.choice(SCALES, samples)
    mirror = rng.choice([-1.0, 1.0], samples)

    def crop(length: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Half the part's length and its centre, in coordinates from -1 to 1."""
        kept = (length / scale).astype(np.int64)
        start = rng.integers(0, length - kept, endpoint=True)
        return kept / length, (2 * start + kept) / length - 1.0

    (half_y, y), (half_x, x) = crop(height), crop(width)
    zero = np.zeros(samples)
    affine = np.array([[mirror * half_x, zero, x], [zero, half_y, y]]).transpose(2, 0, 1)
    at_grid = Sampler(affine, inputs)
    values = torch.cat([torch.stack([labels.float(), depths], 1), normals], 1)
    moved = at_grid(values, outside="border")
    factors = np.stack([np.ones(samples), 1.0 / scale, mirror, np.ones(samples), np.ones(samples)])
    moved *= torch.as_tensor(factors.T, dtype=torch.float32, device=inputs.device)[..., None, None]
    targets = (moved[:, 0].round().long(), moved[:, 1], moved[:, 2:])
    return Batch(at_grid.images(inputs, outside="border"), targets)
