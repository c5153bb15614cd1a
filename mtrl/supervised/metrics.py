"""Losses of a batch, and metrics of a whole split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mtrl.run.tags import LOWER_IS_BETTER

Loss = Callable[[Tensor, Tensor], Tensor]
"""(output, target) -> scalar, a mean over the batch."""


@dataclass(frozen=True)
class Metric:
    """A quantity of a whole split, from sums over its batches."""

    name: str
    statistics: Callable[[Tensor, Tensor], Tensor]
    """(output, target) of a batch -> numbers that add up over batches, float64."""
    value: Callable[[Tensor], Tensor]
    """Their sum -> the metric, a scalar."""

    @property
    def higher_is_better(self) -> bool:
        return self.name not in LOWER_IS_BETTER


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


def _angles(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Between normals [sample, 3, h, w] of any lengths: degrees [sample, h, w], and where there is
    one. Not by the arc cosine, which knows small angles to 0.02 degrees at best."""
    ours, truth = output.double(), target.double()
    sine = torch.linalg.cross(ours, truth, dim=1).norm(dim=1)
    return torch.atan2(sine, (ours * truth).sum(1)).rad2deg(), (target != 0).any(1)


def _angle_sum(output: Tensor, target: Tensor) -> Tensor:
    angle, known = _angles(output, target)
    return torch.stack([(angle * known).sum(), known.sum().double()])


def _within(degrees: float) -> Callable[[Tensor, Tensor], Tensor]:
    def statistics(output: Tensor, target: Tensor) -> Tensor:
        angle, known = _angles(output, target)
        return torch.stack([((angle < degrees) & known).sum(), known.sum()]).double()

    return statistics


BINS_PER_DEGREE = 100
"""Of the histogram that the median angle is read from: right to 0.005 degrees."""


def _angle_histogram(output: Tensor, target: Tensor) -> Tensor:
    angle, known = _angles(output, target)
    bins = 180 * BINS_PER_DEGREE
    index = (angle * BINS_PER_DEGREE).long().clamp(max=bins - 1)
    index = torch.where(known, index, bins).flatten()  # a bin of their own, as above
    counts = torch.zeros(bins + 1, dtype=torch.float64, device=output.device)
    counts.index_add_(0, index, torch.ones_like(counts[:1]).expand(len(index)))
    return counts[:-1]


def _median_angle(counts: Tensor) -> Tensor:
    """Mean of the lower and the upper median."""
    count = counts.sum()
    middle = torch.stack([(count - 1).div(2).floor(), count.div(2).floor()])
    bins = torch.searchsorted(counts.cumsum(0), middle, right=True)
    return (bins.double().mean() + 0.5) / BINS_PER_DEGREE


def _scaled_error(output: Tensor, target: Tensor) -> Tensor:
    error = (output.squeeze(1).double() - target[:, 0]).abs() * target[:, 1]
    return torch.stack([error.sum(), torch.full_like(error.sum(), len(error))])


ACCURACY = Metric("accuracy", _hits, _ratio)
PIXEL_ACCURACY = Metric("pixel_accuracy", _hits, _ratio)
MEAN_IOU = Metric("mean_iou", _confusion, _mean_iou)
MSE = Metric("mse", _squares, _ratio)
ABSOLUTE_ERROR = Metric("absolute_error", _depth_error(relative=False), _ratio)
RELATIVE_ERROR = Metric("relative_error", _depth_error(relative=True), _ratio)
CENTRE_ERROR = Metric("centre_error", _centre_distance, _ratio)
NORMALS = (
    Metric("mean_angle", _angle_sum, _ratio),
    Metric("median_angle", _angle_histogram, _median_angle),
    *(Metric(f"within_{d:g}", _within(d), _ratio) for d in (11.25, 22.5, 30.0)),
)
MAE = Metric("mae", _scaled_error, _ratio)


def segmentation_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean negative log-likelihood of the valid pixels, [sample, class, h, w]; -1 is ignored."""
    total = functional.cross_entropy(output, target, ignore_index=-1, reduction="sum")
    return total / (target != -1).sum().clamp(min=1)


def depth_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error where there is a depth: [sample, 1, h, w] against [sample, h, w]."""
    valid = target != 0
    return ((output.squeeze(1) - target).abs() * valid).sum() / valid.sum().clamp(min=1)


def centre_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the offsets [sample, 2, h, w], pixels, where the target is not NaN."""
    valid = ~target.isnan()
    error = (output - target.nan_to_num(nan=0.0)).abs() * valid
    return error.sum() / valid.sum().clamp(min=1)


def normals_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - cosine [sample, 3, h, w] where there is a normal, of length 1; 0 = none."""
    known = (target != 0).any(1)
    cosine = (functional.normalize(output, dim=1) * target).sum(1)
    return ((1.0 - cosine) * known).sum() / known.sum().clamp(min=1)


def scaled_mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error [sample, 1] of target[:, 0]; see `qm9.load`."""
    return functional.mse_loss(output.squeeze(1), target[:, 0])
