"""What each benchmark consists of: data, network, losses and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from mtrl.supervised import celeba, cityscapes, mnist, networks
from mtrl.supervised.config import SupervisedConfig
from mtrl.supervised.data import Splits
from mtrl.supervised.networks import MultiTaskNetwork

Loss = Callable[[Tensor, Tensor], Tensor]
"""(output, target) -> scalar, a mean over the batch."""


@dataclass(frozen=True)
class Metric:
    """A quantity of a whole split, from sums over its batches."""

    name: str
    higher_is_better: bool
    statistics: Callable[[Tensor, Tensor], Tensor]
    """(output, target) of a batch -> numbers that add up over batches, float64."""
    value: Callable[[Tensor], Tensor]
    """Their sum -> the metric, a scalar."""


@dataclass(frozen=True)
class Task:
    name: str
    loss: Loss
    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class Problem:
    tasks: tuple[Task, ...]
    load: Callable[[Path | None], Splits]
    """Folder of the official files -> data; DataError says what is missing."""
    network: Callable[[], MultiTaskNetwork]
    prepare: Callable[[Tensor], Tensor]
    """Stored inputs -> the network's, normalised."""

    @property
    def selects_by_mean(self) -> bool:
        """One model by the mean metric, where all tasks have the same one; else one per metric
        (metrics of different kinds have no mean: Kurin et al. 2022, 4.1.3)."""
        return len({metric.name for task in self.tasks for metric in task.metrics}) == 1


# -- metrics and losses -------------------------------------------------------------------------


def _ratio(sums: Tensor) -> Tensor:
    return sums[0] / sums[1]


def _hits(output: Tensor, target: Tensor) -> Tensor:
    """[right, counted] over samples or pixels; targets below 0 do not count."""
    valid = target >= 0
    right = (output.argmax(1) == target) & valid
    return torch.stack([right.sum(), valid.sum()]).double()


def _confusion(output: Tensor, target: Tensor) -> Tensor:
    """[class, class] counts of (truth, prediction) over the valid pixels."""
    classes = output.shape[1]
    # Invalid pixels go to a bin of their own: no data-dependent shape, no wait for the device.
    index = torch.where(target >= 0, classes * target + output.argmax(1), classes * classes)
    counts = torch.zeros(classes * classes + 1, dtype=torch.float64, device=output.device)
    counts.index_add_(0, index.flatten(), torch.ones_like(counts[:1]).expand(index.numel()))
    return counts[:-1].view(classes, classes)


def _mean_iou(confusion: Tensor) -> Tensor:
    """Mean over the classes that occur, in truth or prediction."""
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return (confusion.diagonal() / union)[union > 0].mean()


def _squares(output: Tensor, target: Tensor) -> Tensor:
    square = (output.double() - target).square().sum()
    return torch.stack([square, torch.full_like(square, target.numel())])


def _depth_error(relative: bool) -> Callable[[Tensor, Tensor], Tensor]:
    def statistics(output: Tensor, target: Tensor) -> Tensor:
        valid = target != 0
        error = (output.squeeze(1).double() - target).abs()
        if relative:
            error = error / torch.where(valid, target, 1.0).abs()
        return torch.stack([(error * valid).sum(), valid.sum().double()])

    return statistics


ACCURACY = Metric("accuracy", True, _hits, _ratio)
PIXEL_ACCURACY = Metric("pixel_accuracy", True, _hits, _ratio)
MEAN_IOU = Metric("mean_iou", True, _confusion, _mean_iou)
MSE = Metric("mse", False, _squares, _ratio)
ABSOLUTE_ERROR = Metric("absolute_error", False, _depth_error(relative=False), _ratio)
RELATIVE_ERROR = Metric("relative_error", False, _depth_error(relative=True), _ratio)


def segmentation_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean negative log-likelihood of the valid pixels, [sample, class, h, w]; -1 is ignored."""
    return functional.cross_entropy(output, target, ignore_index=-1)


def depth_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error where there is a depth: [sample, 1, h, w] against [sample, h, w]."""
    valid = target != 0
    return ((output.squeeze(1) - target).abs() * valid).sum() / valid.sum().clamp(min=1)


# -- the problems -------------------------------------------------------------------------------


def make_problem(config: SupervisedConfig) -> Problem:
    names, dropout = config.task_names, config.network.dropout
    if config.problem == "celeba":
        return Problem(
            tuple(Task(name, functional.cross_entropy, (ACCURACY,)) for name in names),
            celeba.load,
            lambda: networks.celeba_network(len(names), dropout),
            celeba.normalise,
        )
    if config.problem.startswith("cityscapes"):
        classes = 19 if config.problem == "cityscapes_19" else 7
        return Problem(
            (
                Task(names[0], segmentation_loss, (MEAN_IOU, PIXEL_ACCURACY)),
                Task(names[1], depth_loss, (ABSOLUTE_ERROR, RELATIVE_ERROR)),
            ),
            lambda folder: cityscapes.load(folder, classes),
            lambda: networks.cityscapes_network(classes, dropout),
            cityscapes.normalise,
        )
    classify = [name.startswith("classify") for name in names]

    def network() -> MultiTaskNetwork:
        heads = [
            networks.digit_head(dropout) if is_class else networks.digit_decoder()
            for is_class in classify
        ]
        return MultiTaskNetwork(networks.lenet_encoder(dropout), heads)

    def load(folder: Path | None) -> Splits:
        pairs = mnist.digits() if config.problem == "digits" else mnist.multi_mnist(folder)
        return pairs.targets_of(names)

    kinds: dict[bool, tuple[Loss, Metric]] = {
        True: (functional.cross_entropy, ACCURACY),
        False: (functional.mse_loss, MSE),
    }
    tasks = [(name, *kinds[is_class]) for name, is_class in zip(names, classify, strict=True)]
    return Problem(
        tuple(Task(name, loss, (metric,)) for name, loss, metric in tasks),
        load,
        network,
        mnist.normalise,
    )
