"""QM9: quantum-chemical properties of small molecules, through torch-geometric."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem
from torch_geometric.data import Batch, Data, InMemoryDataset
from torch_geometric.datasets import QM9

from mtrl.supervised.data import Split, Splits
from mtrl.supervised.files import (
    DataError,
    cached_arrays,
    need_file,
    need_folder,
    read_lines,
    stamp,
)

RECIPE = 1
"""Version of what is kept in the cache folder."""
FILES = ("gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt")
SOURCE = (
    "QM9's files are gdb9.sdf and gdb9.sdf.csv of https://deepchemdata.s3-us-west-1.amazonaws.com/"
    "datasets/molnet_publish/qm9.zip, and https://ndownloader.figshare.com/files/3195404, called "
    "uncharacterized.txt"
)
HELD_OUT = 10_000
"""Molecules for validation, and for the test; a fifth of all at most."""
COLUMNS = {
    "mu": 0, "alpha": 1, "homo": 2, "lumo": 3, "r2": 5, "zpve": 6, "u0_atom": 12, "u_atom": 13,
    "h_atom": 14, "g_atom": 15, "cv": 11,
}  # fmt: skip
"""Of torch-geometric's 19 targets, by task."""
IN_MILLIS = ("homo", "lumo", "zpve", "u0_atom", "u_atom", "h_atom", "g_atom")
"""torch-geometric has them in eV, papers in meV."""


class Molecules:
    """A data set of torch-geometric, indexed like an array."""

    def __init__(self, graphs: InMemoryDataset) -> None:
        self.graphs = graphs

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, which: slice | NDArray[np.int64]) -> Any:
        """A slice -> fewer molecules; an array of numbers -> their batch."""
        chosen = self.graphs[which]
        if isinstance(which, slice):
            return Molecules(chosen)
        return Batch.from_data_list(list(chosen))


def load(folder: Path | None, targets: Sequence[str]) -> Splits:
    """The split of Gama & Grassi's code: 110,831 / 10,000 / 10,000 molecules.

    A target is [sample, task, 2]: the value in standard deviations from the mean, both of the
    training split (Nash-MTL's code), and this standard deviation in the unit of the metric.
    """
    arrays = _read(need_folder(folder, "QM9"))
    values = arrays.pop("y")[:, [COLUMNS[target] for target in targets]].astype(np.float64)
    values *= [1000.0 if target in IN_MILLIS else 1.0 for target in targets]
    held = min(HELD_OUT, len(values) // 5)
    if not held:
        raise DataError(f"{folder} has {len(values)} molecules, at least 5 are needed; {SOURCE}")
    test, validation, train = np.split(drawn_order(len(values)), [held, 2 * held])
    std = values[train].std(0, ddof=1)
    if not std.all():
        constant = targets[int(np.argmin(std))]
        raise DataError(f"{folder}: all molecules have the same {constant}; {SOURCE}")
    scaled = (values - values[train].mean(0)) / std
    both = np.stack([scaled, np.broadcast_to(std, scaled.shape)], 2).astype(np.float32)
    graphs = _dataset(arrays)

    def split(chosen: NDArray[np.int64]) -> Split:
        return Split(Molecules(graphs[chosen]), (both[chosen],))

    return Splits(split(train), split(validation), split(test))


def drawn_order(count: int) -> NDArray[np.int64]:
    """The molecules in the order of Gama & Grassi's `indices.txt`."""
    order = list(range(count))
    random.Random(0).shuffle(order)
    return np.array(order)


# -- files -----------------------------------------------------------------------------------------


class _Official(QM9):
    """torch-geometric's QM9 of files that are there, which stay as they are."""

    def __init__(self, folder: Path, processed: str) -> None:
        self.folder, self.processed = folder, processed
        super().__init__(str(folder))

    @property
    def raw_dir(self) -> str:
        return str(self.folder)

    @property
    def processed_dir(self) -> str:
        return self.processed

    def download(self) -> None:
        raise DataError(f"{self.folder} has lost a file; {SOURCE}")


GRAPH = ("x", "edge_index", "edge_attr", "pos")
"""What the network sees of a molecule."""


def _read(folder: Path) -> dict[str, NDArray[Any]]:
    """All molecules in torch-geometric's storage, `slices_x` ... beside `x` ...; made once."""
    folder = next((place for place in (folder / "qm9", folder / "raw") if place.is_dir()), folder)
    sdf, table, excluded = (need_file(folder / name, SOURCE) for name in FILES)
    versions = [metadata.version(name) for name in ("torch-geometric", "rdkit")]
    what = (RECIPE, *versions, *(stamp(folder, path) for path in (sdf, table, excluded)))
    return cached_arrays("qm9", what, lambda: _processed(folder))


def _processed(folder: Path) -> dict[str, NDArray[Any]]:
    sdf, table, excluded = (folder / name for name in FILES)
    names = _names(table)
    left_out = _left_out(excluded, len(names))
    with tempfile.TemporaryDirectory() as processed:
        try:
            dataset = _Official(folder, processed)
        except DataError:
            raise
        except Exception as error:  # RDKit and torch-geometric raise errors of many kinds
            raise DataError(f"{sdf}: {_fault(sdf, error)}; {SOURCE}") from None
    expected = [name for i, name in enumerate(names) if i not in left_out]
    if dataset._data.name != expected:
        pairs = zip(dataset._data.name, expected, strict=False)
        different = next(
            (f"{a} stands for {b}" for a, b in pairs if a != b), "their numbers differ"
        )
        raise DataError(
            f"{sdf} and {table.name} are not of the same molecules: {different}; {SOURCE}"
        )
    arrays = {key: dataset._data[key].numpy() for key in (*GRAPH, "y")}
    if not np.isfinite(arrays["pos"]).all():
        raise DataError(f"{sdf} has positions that are not finite; {SOURCE}")
    return arrays | {f"slices_{key}": dataset.slices[key].numpy() for key in GRAPH}


def _names(path: Path) -> list[str]:
    """Of the molecules, in the table of their properties, of which every number is checked."""
    names = []
    for number, line in enumerate(read_lines(path, SOURCE)[1:], start=2):
        name, *numbers = line.split(",")
        try:
            good = len(numbers) >= 19 and all(math.isfinite(float(n)) for n in numbers[:19])
        except ValueError:
            good = False
        if not good:
            raise DataError(f"{path}, line {number}: expected a name and 19 numbers; {SOURCE}")
        names.append(name)
    if len(names) < 5:
        raise DataError(f"{path} has {len(names)} molecules, at least 5 are needed; {SOURCE}")
    return names


def _left_out(path: Path, count: int) -> set[int]:
    """Indices of the molecules that are no longer what they were, which all papers leave out."""
    found = set()
    # The lines in which torch-geometric looks: nine above and one below are text.
    for number, line in enumerate(read_lines(path, SOURCE)[9:-1], start=10):
        first = next(iter(line.split()), "")
        if not first.isdecimal() or not 1 <= int(first) <= count:
            raise DataError(
                f"{path}, line {number}: expected a molecule's number, 1..{count}; {SOURCE}"
            )
        found.add(int(first) - 1)
    return found


def _fault(sdf: Path, error: Exception) -> str:
    for number, molecule in enumerate(Chem.SDMolSupplier(str(sdf), sanitize=False), start=1):
        if molecule is None:
            return f"molecule {number} cannot be read"
    return f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}"


def _dataset(arrays: dict[str, NDArray[Any]]) -> InMemoryDataset:
    dataset = InMemoryDataset()
    dataset.data = Data(**{key: torch.from_numpy(arrays[key]) for key in GRAPH})
    dataset.slices = {key: torch.from_numpy(arrays[f"slices_{key}"]) for key in GRAPH}
    return dataset
