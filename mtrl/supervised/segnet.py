"""SegNet, plain and with MTAN's attention (Liu et al. 2019): github.com/lorenmt/mtan.

The networks of MTAN's `model_segnet_split.py` and `model_segnet_mtan.py`, which CAGrad, Nash-MTL
and FAMO used for NYUv2 and Cityscapes.
"""

from __future__ import annotations

from operator import add
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (64, 128, 256, 512, 512)
"""Channels by level, on the way down."""
LEAVING = (WIDTHS[0], *WIDTHS[:-1])
"""And on the way up."""
STEP = 32
"""Height and width of the images must be divisible by this: each of the five levels halves them."""


def _unit(fan_in: int, fan_out: int) -> nn.Sequential:
    conv = nn.Conv2d(fan_in, fan_out, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(fan_out), nn.ReLU(inplace=True))


def _units(width: int, level: int) -> nn.Sequential:
    return nn.Sequential(*(_unit(width, width) for _ in range(1 if level < 2 else 2)))


def _attention(fan_in: int, width: int) -> nn.Sequential:
    """What a task takes of each of `width` channels, at each place: 0 to 1."""
    return nn.Sequential(
        nn.Conv2d(fan_in, width, 1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 1),
        nn.BatchNorm2d(width),
        nn.Sigmoid(),
    )


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class _Features(NamedTuple):
    """Of one level, on the way down or up."""

    before: Tensor
    """Down: after the first unit; up: after unpooling."""
    after: Tensor
    """After all units."""


class SegNet(nn.Module):
    """[sample, 3, 32h, 32w] -> z [sample, 64, 32h, 32w] (Badrinarayanan et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.ModuleList(map(_unit, (3, *WIDTHS), WIDTHS))
        self.down = nn.ModuleList(map(_units, WIDTHS, range(5)))
        self.leave = nn.ModuleList(map(_unit, WIDTHS, LEAVING))
        self.up = nn.ModuleList(map(_units, LEAVING, range(5)))
        _initialise(self)

    def features(self, x: Tensor) -> tuple[list[_Features], list[_Features]]:
        """Of the five levels down, and up; the finest first in both."""
        down, up, places = [], [], []
        for enter, units in zip(self.enter, self.down, strict=True):
            entered = enter(x)
            down.append(_Features(entered, units(entered)))
            x, place = functional.max_pool2d(down[-1].after, 2, return_indices=True)
            places.append(place)
        for level in reversed(range(5)):
            unpooled = functional.max_unpool2d(x, places[level], [2, 2])
            x = self.up[level](self.leave[level](unpooled))
            up.append(_Features(unpooled, x))
        return down, up[::-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)[1][0].after


class _TaskAttention(nn.Module):
    """One task's attention to the features of all levels."""

    def __init__(self) -> None:
        super().__init__()
        first, *deeper = WIDTHS
        self.down = nn.ModuleList([_attention(first, first)])
        self.down.extend(_attention(2 * width, width) for width in deeper)
        self.up = nn.ModuleList(map(_attention, map(add, WIDTHS, LEAVING), LEAVING))

    def forward(
        self,
        down: list[_Features],
        up: list[_Features],
        down_units: nn.ModuleList,
        up_units: nn.ModuleList,
    ) -> Tensor:
        """The units carry what the task has taken of one level to the next."""
        carried: list[Tensor] = []
        for level in range(5):
            given = torch.cat([down[level].before, *carried], 1)
            taken = self.down[level](given) * down[level].after
            carried = [functional.max_pool2d(down_units[level](taken), 2)]
        (x,) = carried
        for level in reversed(range(5)):
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            given = torch.cat([up[level].before, up_units[level](x)], 1)
            x = self.up[level](given) * up[level].after
        return x


class AttentionSegNet(nn.Module):
    """[sample, 3, 32h, 32w] -> z [sample, task * 64, 32h, 32w]: 64 channels for each task.

    All attention modules count as shared parameters, as in CAGrad's and Nash-MTL's code.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.segnet = SegNet()
        self.tasks = nn.ModuleList(_TaskAttention() for _ in range(tasks))
        self.down = nn.ModuleList(map(_unit, WIDTHS, (*WIDTHS[1:], WIDTHS[-1])))
        self.up = nn.ModuleList(map(_unit, WIDTHS, LEAVING))
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.segnet.features(x)
        return torch.cat([task(down, up, self.down, self.up) for task in self.tasks], 1)


class SegNetHead(nn.Sequential):
    """z [sample, channels, h, w] -> [sample, outputs, h, w], from 64 channels of z."""

    def __init__(self, outputs: int, first: int = 0) -> None:
        """first: of its channels."""
        width = WIDTHS[0]
        super().__init__(nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, outputs, 1))
        self.first = first
        _initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        result: Tensor = super().forward(z[:, self.first : self.first + WIDTHS[0]])
        return result
