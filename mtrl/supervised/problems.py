"""What each benchmark consists of: data, network, losses and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from mtrl.schema import ConfigError
from mtrl.supervised import celeba, cityscapes, mnist, mtan_arrays, networks, nyuv2, segnet
from mtrl.supervised.config import SupervisedConfig
from mtrl.supervised.data import Augment, Batch, Splits
from mtrl.supervised.metrics import (
    ABSOLUTE_ERROR,
    ACCURACY,
    CENTRE_ERROR,
    MAE,
    MEAN_IOU,
    MSE,
    NORMALS,
    PIXEL_ACCURACY,
    RELATIVE_ERROR,
    Loss,
    Metric,
    centre_loss,
    depth_loss,
    normals_loss,
    scaled_mse,
    segmentation_loss,
)
from mtrl.supervised.networks import MultiTaskNetwork


@dataclass(frozen=True)
class Task:
    name: str
    loss: Loss
    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class Problem:
    tasks: tuple[Task, ...]
    """Those that are trained."""
    stored: tuple[str, ...]
    """All that have targets, in the order of the targets."""
    load: Callable[[Path | None], Splits]
    """Folder of the official files -> data; DataError says what is missing."""
    network: Callable[[], MultiTaskNetwork]
    channels: int
    """Of z, the last shared activation; 0 where every task has its own."""
    prepare: Callable[[Any], Any]
    """Stored inputs -> the network's, normalised."""
    augment: Augment | None = None
    """Of training batches, as stored."""

    def targets(self, batch: Batch) -> list[Tensor]:
        """Those of the tasks that are trained."""
        return [batch.targets[self.stored.index(task.name)] for task in self.tasks]

    @property
    def scored(self) -> list[str]:
        """What a model is scored by: "<metric>/<task>"."""
        return [f"{metric.name}/{task.name}" for task in self.tasks for metric in task.metrics]

    @property
    def selects_by_mean(self) -> bool:
        """One model by the mean metric, where all tasks have the same one; else one per metric
        (metrics of different kinds have no mean: Kurin et al. 2022, 4.1.3)."""
        return len({metric.name for task in self.tasks for metric in task.metrics}) == 1


PUBLISHED_DROPOUT = 0.5


def make_problem(config: SupervisedConfig) -> Problem:
    if config.problem == "celeba":
        return _celeba(config)
    if config.problem == "qm9":
        return _qm9(config)
    if config.is_dense:
        return _dense(config)
    return _multi_mnist(config)


def _dropout(config: SupervisedConfig) -> float:
    rate = config.network.dropout
    return PUBLISHED_DROPOUT if rate == "published" else rate


def _celeba(config: SupervisedConfig) -> Problem:
    names, rate = config.task_names, config.network.dropout
    return Problem(
        tuple(Task(name, functional.cross_entropy, (ACCURACY,)) for name in names),
        config.problem_tasks,
        celeba.load,
        lambda: networks.celeba_network(len(names), None if rate == "published" else rate),
        2048,
        celeba.normalise,
    )


def _dense(config: SupervisedConfig) -> Problem:
    names, encoder = config.task_names, config.network.encoder
    step = segnet.STEP if encoder.startswith("segnet") else 8
    load: Callable[[Path | None], Splits]
    if config.problem == "nyuv2":
        classes, augment = nyuv2.CLASSES, nyuv2.scale_and_mirror
        load = partial(nyuv2.load, step=step)
    else:
        classes = 7 if config.problem == "cityscapes" else 19
        augment, centres = cityscapes.rotate_and_mirror, "instance_centres" in config.problem_tasks
        load = partial(cityscapes.load, classes=classes, centres=centres, step=step)
    kinds: dict[str, tuple[int, Loss, tuple[Metric, ...]]] = {
        "segmentation": (classes, segmentation_loss, (MEAN_IOU, PIXEL_ACCURACY)),
        "depth": (1, depth_loss, (ABSOLUTE_ERROR, RELATIVE_ERROR)),
        "instance_centres": (2, centre_loss, (CENTRE_ERROR,)),
        "normals": (3, normals_loss, NORMALS),
    }
    outputs = [kinds[name][0] for name in names]
    return Problem(
        tuple(Task(name, *kinds[name][1:]) for name in names),
        config.problem_tasks,
        load,
        lambda: networks.dense_network(encoder, outputs, _dropout(config)),
        networks.CHANNELS.get(encoder, 0),
        mtan_arrays.normalise,
        augment if config.train.augment else None,
    )


def _qm9(config: SupervisedConfig) -> Problem:
    if missing := [name for name in ("torch_geometric", "rdkit") if find_spec(name) is None]:
        raise ConfigError(
            "problem", "qm9", f"needs {missing[0]}: pip install torch-geometric rdkit"
        )
    from mtrl.supervised import molecule_network, qm9  # imports both, which takes seconds

    names = config.task_names
    return Problem(
        tuple(Task(name, scaled_mse, (MAE,)) for name in names),
        config.problem_tasks,
        partial(qm9.load, targets=config.problem_tasks),
        lambda: molecule_network.molecule_network(len(names)),
        molecule_network.WIDTH,
        molecule_network.complete,
    )


def _multi_mnist(config: SupervisedConfig) -> Problem:
    names, rate = config.task_names, _dropout(config)
    classify = [name.startswith("classify") for name in names]

    def dropout(*, channels: bool = False) -> nn.Module:
        if config.problem == "multi_mnist" and config.network.dropout == "published":
            return networks.PublishedDropout(whole_batch=channels)
        # Gama & Grassi's encoder drops elements.
        by_channel = channels and config.problem in ("digits", "multi_mnist")
        return nn.Dropout2d(rate) if by_channel else nn.Dropout(rate)

    def network() -> MultiTaskNetwork:
        heads = [
            networks.digit_head(dropout()) if is_class else networks.digit_decoder(dropout())
            for is_class in classify
        ]
        return MultiTaskNetwork(networks.lenet_encoder(dropout(channels=True)), heads)

    def load(folder: Path | None) -> Splits:
        pairs = mnist.digits() if config.problem == "digits" else mnist.multi_mnist(folder)
        return pairs.targets_of(config.problem_tasks)

    kinds: dict[bool, tuple[Loss, Metric]] = {
        True: (functional.cross_entropy, ACCURACY),
        False: (functional.mse_loss, MSE),
    }
    tasks = [(name, *kinds[is_class]) for name, is_class in zip(names, classify, strict=True)]
    return Problem(
        tuple(Task(name, loss, (metric,)) for name, loss, metric in tasks),
        config.problem_tasks,
        load,
        network,
        50,
        mnist.normalise,
    )
