"""Encoders and heads of the supervised benchmarks, as published.

A network is an encoder, shared by all tasks, and one head per task. Parameters of the residual
encoders have torchvision's names, so that its ImageNet files fit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtrl.schema import ConfigError
from mtrl.supervised.segnet import AttentionSegNet, SegNet, SegNetHead


class MultiTaskNetwork(nn.Module):
    """inputs -> encoder -> z [sample, ...] -> one output per task."""

    def __init__(self, encoder: nn.Module, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(heads)

    def forward(self, inputs: Any) -> list[Tensor]:
        views = self.views(self.encoder(inputs))
        return [head(view) for head, view in zip(self.heads, views, strict=True)]

    def views(self, z: Tensor) -> list[Tensor]:
        """What the heads see of z: each its own."""
        return [z] * len(self.heads)

    def at_z(self, rows: Tensor) -> Tensor:
        """Task gradients at the views -> at z, [task, *z]. Once per iteration of training."""
        return rows

    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters that the tasks' losses train, by name: encoder's and heads'."""
        own = ("encoder.", "heads.")
        return {name: p for name, p in self.named_parameters() if name.startswith(own)}


# -- Multi-MNIST --------------------------------------------------------------------------------


class PublishedDropout(nn.Module):
    """Dropout of half the inputs as in the code of Sener & Koltun 2018 and Kurin et al. 2022: what
    is left is not scaled up, so that the next layer sees twice as much when nothing is dropped.

    whole_batch: one mask over the channels, for all samples; else one over a sample's elements.
    """

    def __init__(self, *, whole_batch: bool) -> None:
        super().__init__()
        self.whole_batch = whole_batch

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mask = x.new_empty((1, x.shape[1], 1, 1) if self.whole_batch else x.shape)
        return x * mask.bernoulli_(0.5)


def lenet_encoder(dropout: nn.Module) -> nn.Sequential:
    """[sample, 1, 28, 28] -> z [sample, 50] (Sener & Koltun 2018); 21,330 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 10, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, 5),
        dropout,
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(320, 50),
        nn.ReLU(),
    )


def digit_head(dropout: nn.Module) -> nn.Sequential:
    """z [sample, 50] -> logits [sample, 10]; 3,060 parameters."""
    return nn.Sequential(nn.Linear(50, 50), nn.ReLU(), dropout, nn.Linear(50, 10))


def digit_decoder(dropout: nn.Module) -> nn.Sequential:
    """z [sample, 50] -> a normalised image [sample, 28, 28] (Gama & Grassi's code); 214,544
    parameters."""
    return nn.Sequential(
        nn.Linear(50, 256),
        nn.ReLU(),
        dropout,
        nn.Linear(256, 784),
        nn.Unflatten(1, (28, 28)),
    )


# -- residual encoders --------------------------------------------------------------------------


def _conv(fan_in: int, fan_out: int, size: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (size // 2)
    return nn.Conv2d(fan_in, fan_out, size, stride, padding, dilation, bias=False)


class _Block(nn.Module, ABC):
    expansion: int
    downsample: nn.Module | None

    def _shortcut(self, fan_in: int, fan_out: int, stride: int) -> nn.Module | None:
        if stride == 1 and fan_in == fan_out:
            return None
        return nn.Sequential(_conv(fan_in, fan_out, 1, stride), nn.BatchNorm2d(fan_out))

    @abstractmethod
    def residual(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        return functional.relu(self.residual(x) + skip)


class BasicBlock(_Block):
    expansion = 1

    def __init__(self, fan_in: int, width: int, stride: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(fan_in, width, 3, stride, dilation), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, 1, dilation), nn.BatchNorm2d(width)
        self.dropout = nn.Dropout2d(dropout)
        self.downsample = self._shortcut(fan_in, width, stride)

    def residual(self, x: Tensor) -> Tensor:
        hidden = self.dropout(functional.relu(self.bn1(self.conv1(x))))
        return self.bn2(self.conv2(hidden))


class Bottleneck(_Block):
    expansion = 4

    def __init__(self, fan_in: int, width: int, stride: int, dilation: int, dropout: float) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1, self.bn1 = _conv(fan_in, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride, dilation), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, out, 1), nn.BatchNorm2d(out)
        self.downsample = self._shortcut(fan_in, out, stride)

    def residual(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class ResNet(nn.Module):
    """Residual encoder without its classifier (He et al. 2016).

    stem: small (3x3, stride 1, no pooling: CIFAR) or large (7x7, stride 2, max pooling: ImageNet).
    strides, dilations: of the four stages; a dilated stage's first block has the dilation before.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        small: bool,
        width: int = 64,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        stem_dropout: float = 0.0,
        block_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.small = small
        self.conv1 = _conv(3, width, 3) if small else _conv(3, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout2d(stem_dropout)
        fan_in, before = width, 1
        self.stages: list[str] = []
        for i, (depth, stride, dilation) in enumerate(zip(depths, strides, dilations, strict=True)):
            blocks = []
            for j in range(depth):
                first = (stride, before) if j == 0 else (1, dilation)
                blocks.append(block(fan_in, width << i, *first, block_dropout))
                fan_in = (width << i) * block.expansion
            before = dilation
            self.stages.append(f"layer{i + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(functional.relu(self.bn1(self.conv1(x))))
        if not self.small:
            x = functional.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x


def celeba_network(tasks: int, dropout: float | None) -> MultiTaskNetwork:
    """[sample, 3, 64, 64] -> z [sample, 2048] -> `tasks` pairs of logits (Kurin et al. 2022, C.1).

    CIFAR-style ResNet-18, 4x4 average pooling; dropout after the stem, inside each block and on z:
    None = the published .25, .5 and .5, else one rate for all.
    """
    stem, deep = (0.25, 0.5) if dropout is None else (dropout, dropout)
    trunk = ResNet(
        BasicBlock,
        [2, 2, 2, 2],
        small=True,
        stem_dropout=stem,
        block_dropout=deep,
    )
    encoder = nn.Sequential(trunk, nn.AvgPool2d(4), nn.Flatten(), nn.Dropout(deep))
    return MultiTaskNetwork(encoder, [nn.Linear(2048, 2) for _ in range(tasks)])


class DeepLabHead(nn.Module):
    """z [sample, channels, h, w] -> [sample, outputs, 8h, 8w] (Chen et al. 2017, DeepLab v3)."""

    def __init__(self, channels: int, outputs: int, dropout: float, width: int = 256) -> None:
        super().__init__()

        def unit(fan_in: int, size: int, dilation: int = 1) -> nn.Sequential:
            return nn.Sequential(
                _conv(fan_in, width, size, 1, dilation), nn.BatchNorm2d(width), nn.ReLU()
            )

        self.branches = nn.ModuleList(
            [unit(channels, 1), *(unit(channels, 3, dilation) for dilation in (12, 24, 36))]
        )
        # No BatchNorm after the pooling: with one sample it would see a single value.
        self.image = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, width, 1), nn.ReLU()
        )
        self.project = nn.Sequential(
            unit(5 * width, 1),
            nn.Dropout(dropout),
            unit(width, 3),
            nn.Conv2d(width, outputs, 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        image = self.image(z).expand(-1, -1, *z.shape[2:])
        features = torch.cat([*(branch(z) for branch in self.branches), image], dim=1)
        return functional.interpolate(
            self.project(features), scale_factor=8, mode="bilinear", align_corners=False
        )


CHANNELS = {"resnet50": 2048, "resnet18": 512, "segnet": 64}
"""Of z, by encoder; segnet_mtan: 64 for each task."""


def dilated_resnet(name: str) -> ResNet:
    """resnet50 or resnet18 of output stride 8: dilations 2 and 4 in the last two stages."""
    block: type[BasicBlock] | type[Bottleneck] = BasicBlock
    depths = [2, 2, 2, 2]
    if name == "resnet50":
        block, depths = Bottleneck, [3, 4, 6, 3]
    return ResNet(block, depths, small=False, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))


def dense_network(encoder: str, outputs: Sequence[int], dropout: float) -> MultiTaskNetwork:
    """[sample, 3, h, w] -> one map [sample, outputs, h, w] per task, of a number or more for each
    pixel: class logits, depth, instance centres, normals.

    resnet50 (Kurin et al. 2022, LibMTL) and resnet18 (Gama & Grassi 2025) with DeepLab's heads;
    segnet and segnet_mtan (CAGrad, Nash-MTL, FAMO) without dropout.
    """
    if encoder == "segnet":
        return MultiTaskNetwork(SegNet(), [SegNetHead(n) for n in outputs])
    if encoder == "segnet_mtan":
        heads = [SegNetHead(n, i * CHANNELS["segnet"]) for i, n in enumerate(outputs)]
        return MultiTaskNetwork(AttentionSegNet(len(outputs)), heads)
    channels = CHANNELS[encoder]
    deeplab = [DeepLabHead(channels, n, dropout) for n in outputs]
    return MultiTaskNetwork(dilated_resnet(encoder), deeplab)


def load_encoder(network: MultiTaskNetwork, path: Path) -> None:
    """Copy a torchvision state dictionary's convolutions into the encoder; ConfigError as below."""
    network.encoder.load_state_dict(read_encoder(network.encoder, path))


def read_encoder(encoder: nn.Module, path: Path) -> dict[str, Tensor]:
    """A torchvision state dictionary without its classifier, as this encoder takes it.

    Raises ConfigError if the file cannot be read or does not fit.
    """

    def refuse(reason: str) -> NoReturn:
        raise ConfigError("network.weights", str(path), reason)

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        refuse(f"cannot be read: {error.strerror or error}")
    except Exception:  # torch.load raises errors of many kinds, most with advice to trust the file
        refuse("cannot be read: must be a file of tensors alone, written by torch.save")
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        refuse("is not a state dictionary: must hold names and tensors alone")
    given = {name: value for name, value in state.items() if not str(name).startswith("fc.")}
    wanted = encoder.state_dict()
    for name in wanted:
        if name.endswith(".num_batches_tracked"):  # old files have none; nothing depends on it
            given.setdefault(name, torch.tensor(0))
    strange = [name for name in given if name not in wanted]
    wrong = [n for n in wanted if n not in given or given[n].shape != wanted[n].shape] or strange
    if wrong:
        refuse(f"does not fit the encoder, at {wrong[0]}")
    if bad := [name for name, value in given.items() if not value.isfinite().all()]:
        refuse(f"has values that are not finite, in {bad[0]}")
    return given
