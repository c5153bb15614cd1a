"""Losses of a batch, and metrics of a whole split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

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


def _centre_distance(output: Tensor, target: Tensor) -> Tensor:
    valid = ~target.isnan()
    error = (output.double() - target).nan_to_num(nan=0.0).abs()
    return torch.stack([error.sum(), valid.sum().double()])


ACCURACY = Metric("accuracy", True, _hits, _ratio)
PIXEL_ACCURACY = Metric("pixel_accuracy", True, _hits, _ratio)
MEAN_IOU = Metric("mean_iou", True, _confusion, _mean_iou)
MSE = Metric("mse", False, _squares, _ratio)
ABSOLUTE_ERROR = Metric("absolute_error", False, _depth_error(relative=False), _ratio)
RELATIVE_ERROR = Metric("relative_error", False, _depth_error(relative=True), _ratio)
CENTRE_ERROR = Metric("centre_error", False, _centre_distance, _ratio)


def segmentation_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean negative log-likelihood of the valid pixels, [sample, class, h, w]; -1 is ignored."""
    return functional.cross_entropy(output, target, ignore_index=-1)


def depth_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error where there is a depth: [sample, 1, h, w] against [sample, h, w]."""
    valid = target != 0
    return ((output.squeeze(1) - target).abs() * valid).sum() / valid.sum().clamp(min=1)


def centre_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the offsets [sample, 2, h, w], pixels, where the target is not NaN."""
    valid = ~target.isnan()
    error = (output - target.nan_to_num(nan=0.0)).abs() * valid
    return error.sum() / valid.sum().clamp(min=1)
