"""Splits of a data set, and the mini-batches of a run.

Batch k of a run depends on the seed and k alone, augmented or not, so a run resumes anywhere.
Large arrays stay memory-mapped; a thread gathers the next batch while the learner works on this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RESIDENT = 1 << 30
"""Bytes up to which a split lives on the learner's device."""


class Split(NamedTuple):
    inputs: Any
    """[sample, ...] as stored: an array, often uint8, or what is indexed like one (QM9's molecules:
    a slice is fewer of them, an array of numbers their batch)."""
    targets: tuple[NDArray[Any], ...]
    """One array [sample, ...] per task, or a single one [sample, task]."""


class Splits(NamedTuple):
    train: Split
    validation: Split
    """For early stopping and selection."""
    test: Split
    """Seen by the selected models only."""


def cut(split: Split, share: float) -> tuple[Split, Split]:
    """-> all but the last `share` of the samples, and these; views, no copies."""
    at = len(split.inputs) - max(1, round(share * len(split.inputs)))
    first, last = (
        Split(split.inputs[part], tuple(target[part] for target in split.targets))
        for part in (slice(at), slice(at, None))
    )
    return first, last


class Batch(NamedTuple):
    inputs: Any
    """[sample, ...] as stored: a tensor, or QM9's graphs."""
    targets: tuple[Tensor, ...]
    """Per task [sample, ...]."""


Augment = Callable[[Batch, np.random.Generator], Batch]


class Loader:
    """A split's samples on the learner's device."""

    def __init__(self, split: Split, tasks: int, device: torch.device) -> None:
        self.tasks, self.device, self.size = tasks, device, len(split.inputs)
        arrays = (split.inputs, *split.targets)
        indexed = isinstance(split.inputs, np.ndarray)
        self.resident = indexed and sum(array.nbytes for array in arrays) <= RESIDENT
        self.arrays: list[Any] = list(arrays)
        if self.resident:
            self.arrays = [torch.from_numpy(np.array(array)).to(device) for array in arrays]

    def take(self, index: NDArray[np.int64]) -> Batch:
        """The samples of these numbers."""
        if self.resident:
            at = torch.from_numpy(index).to(self.device)
            found = [array[at] for array in self.arrays]
        else:
            stored = [array[index] for array in self.arrays]
            found = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in stored]
            if self.device.type == "cuda":
                found = [value.pin_memory() for value in found]
            found = [value.to(self.device, non_blocking=True) for value in found]
        inputs, *targets = found
        if len(targets) == 1 and self.tasks > 1:
            targets = list(targets[0].unbind(1))
        return Batch(inputs, tuple(self._target(target) for target in targets))

    @staticmethod
    def _target(target: Tensor) -> Tensor:
        """Stored small, used as the losses need them: classes int64, values float32."""
        return target.float() if target.is_floating_point() else target.long()

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """The whole split."""
        for start in range(0, self.size, batch_size):
            yield self.take(np.arange(start, min(start + batch_size, self.size)))


class Batches:
    """The training batches, numbered through the epochs."""

    def __init__(
        self, loader: Loader, batch_size: int, seed: int, augment: Augment | None = None
    ) -> None:
        self.loader, self.batch_size, self.seed = loader, batch_size, seed
        self.augment = augment
        self.per_epoch = loader.size // batch_size
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._ahead: tuple[int, Future[Batch]] | None = None
        self._thread = None if loader.resident else ThreadPoolExecutor(1)

    def __getitem__(self, number: int) -> Batch:
        batch = self._stored(number)
        if self.augment is None:
            return batch
        return self.augment(batch, np.random.default_rng((self.seed, number, 1)))

    def _stored(self, number: int) -> Batch:
        if self._thread is None:
            return self.loader.take(self._index(number))
        if self._ahead is None or self._ahead[0] != number:
            batch = self.loader.take(self._index(number))
        else:
            batch = self._ahead[1].result()
        index = self._index(number + 1)
        self._ahead = (number + 1, self._thread.submit(self.loader.take, index))
        return batch

    def _index(self, number: int) -> NDArray[np.int64]:
        epoch, place = divmod(number, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            generator = np.random.default_rng((self.seed, epoch))
            self._order = (epoch, generator.permutation(self.loader.size))
        return self._order[1][place * self.batch_size :][: self.batch_size]

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
