"""Cityscapes' segmentation, depth and instance centres, from MTAN's arrays (Liu et al. 2019)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mtrl.supervised import mtan_arrays
from mtrl.supervised.data import Batch, Splits
from mtrl.supervised.decoders import Centres, Depths, Labels
from mtrl.supervised.mtan_arrays import Kind, Sampler

SOURCE = "MTAN's Cityscapes arrays are linked at https://github.com/lorenmt/mtan"
FOLDERS = {7: ("label", "label_7"), 19: ("label_19",)}
"""Where the labels of so many classes may be."""
INSTANCES = "Cityscapes' gtFine_instanceIds.png, nearest neighbour to the images' size, as .npy"
DEPTH = Kind(("depth",), Depths, lambda depths: depths != 0, SOURCE)
CENTRES = Kind(("instance",), Centres, lambda offsets: ~np.isnan(offsets), INSTANCES)
DEGREES = 10.0


def load(folder: Path | None, classes: int, *, centres: bool = False, step: int = 8) -> Splits:
    """label/ and depth/ (centres: and instance/): 2,380 / 595 / 500 samples of 128 x 256.

    Labels [h, w] with -1 = none, depths [h, w, 1] with 0 = none, instances [h, w] in Cityscapes'
    numbers.
    """
    segmentation = Kind(
        FOLDERS[classes], lambda size: Labels(size, classes), lambda labels: labels >= 0, SOURCE
    )
    kinds = (segmentation, DEPTH, *((CENTRES,) * centres))
    return mtan_arrays.load(folder, "Cityscapes", kinds, SOURCE, step)


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
    at_grid = Sampler(affine, inputs)
    images = at_grid.images(inputs)
    moved = at_grid(torch.stack([labels.float() + 1.0, depths], 1))  # 0 means none in both
    targets = [moved[:, 0].round().long() - 1, moved[:, 1]]
    for values in offsets:  # one at most
        known = at_grid((~values.isnan()).float())[:, :1] > 0.5
        y, x = at_grid(values.nan_to_num(nan=0.0)).unbind(1)
        back = torch.as_tensor(turned, dtype=torch.float32, device=x.device)[..., None, None]
        vector = [back[:, 0, 1] * x + back[:, 1, 1] * y, back[:, 0, 0] * x + back[:, 1, 0] * y]
        targets.append(torch.where(known, torch.stack(vector, 1), torch.nan))
    return Batch(images, tuple(targets))
