"""Reading the users' data files, once, into memory-mapped arrays.

Light imports: the decoding processes import this module.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mtrl.atomic import replaced

WORTH_PROCESSES = 2000
"""Files from which on starting processes takes less time than it saves."""

Decode = Callable[[Path], NDArray[Any]]
Content = TypeVar("Content")


class DataError(ValueError):
    """A data file that is missing or damaged: one line with its name and where to get it."""


def need_folder(folder: Path | None, what: str) -> Path:
    """The user's data folder, or DataError."""
    if folder is None:
        raise DataError(f"{what} wants a folder with its files: --data-dir FOLDER or MTRL_DATA")
    if not folder.is_dir():
        raise DataError(f"data_dir = {str(folder)!r}: no such folder")
    return folder


def need_file(path: Path, source: str) -> Path:
    if not path.is_file():
        raise DataError(f"{path} is missing; {source}")
    return path


def decode_jpeg_64(path: Path) -> NDArray[np.uint8]:
    """-> RGB [3, 64, 64], bilinear from the whole image; DataError if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
    except OSError as error:  # Pillow's errors are OSErrors too
        raise DataError(f"{path} cannot be read: {error}") from None
    return np.asarray(small).transpose(2, 0, 1)


def decode_npy(path: Path) -> NDArray[Any]:
    """-> the array; DataError if it cannot be read."""
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    return array


SINGLE = 1000
"""Cityscapes' instance images hold class * 1000 + number where a pixel is of one instance; below
stand classes without instances, and groups."""


def decode_centres(path: Path) -> NDArray[np.float32]:
    """An instance image [h, w] -> each pixel's (y, x) minus its instance's mean, [2, h, w], pixels;
    NaN where there is no instance. DataError if it cannot be read, or is none."""
    instances = decode_npy(path)
    if instances.ndim != 2 or (instances != np.round(instances)).any() or instances.min() < -1:
        raise DataError(
            f"{path}: wanted [h, w] of Cityscapes' instance numbers (whole, not below -1: the "
            f"33,000 of bicycles want more than int16), found {instances.shape}, {instances.dtype}"
        )
    offsets = np.full((2, *instances.shape), np.nan, dtype=np.float32)
    for number in np.unique(instances[instances >= SINGLE]):
        places = np.nonzero(instances == number)
        for axis, place in enumerate(places):
            offsets[axis][places] = place - place.mean()
    return offsets


def decoded(
    paths: Sequence[Path], decode: Decode, shape: tuple[int, ...], dtype: DTypeLike
) -> NDArray[Any]:
    """All files, decoded, as one memory-mapped array [file, *shape], kept in the cache folder.

    DataError for a file of another shape.
    """
    first, last = paths[0], paths[-1]
    stamps = [(path.stat().st_mtime_ns, path.stat().st_size) for path in (first, last)]
    what = (decode.__name__, str(first.resolve()), str(last), len(paths), shape, str(dtype), stamps)

    def write(temporary: Path) -> None:
        array = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.dtype(dtype), shape=(len(paths), *shape)
        )
        with _mapper(len(paths)) as mapper:
            for i, values in enumerate(mapper(decode, paths)):
                if values.size != array[i].size or values.shape[:2] != shape[:2]:
                    raise DataError(f"{paths[i]}: wanted shape {shape}, found {values.shape}")
                array[i] = values.reshape(shape)
        array.flush()

    def read(path: Path) -> NDArray[Any]:
        mapped: NDArray[Any] = np.load(path, mmap_mode="r")
        return mapped

    return _cached(f"{first.parent.name}_{_digest(what)}.npy", read, write)


def cached_arrays(
    name: str, what: object, make: Callable[[], dict[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """`make()`, kept in the cache folder under everything that it depends on: `what`."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **make())

    def read(path: Path) -> dict[str, NDArray[Any]]:
        with np.load(path, allow_pickle=False) as content:
            return dict(content)  # reads all, and checks the sums that zip files have

    return _cached(f"{name}_{_digest(what)}.npz", read, write)


def _digest(what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def _cached(name: str, read: Callable[[Path], Content], write: Callable[[Path], None]) -> Content:
    """The file of this name in the cache folder, written anew where it is missing or damaged."""
    folder = Path(os.environ.get("MTRL_CACHE", Path.home() / ".cache" / "mtrl")) / "supervised"
    path = folder / name
    # Whatever a damaged file makes NumPy and zipfile raise: all their own errors are of these.
    with contextlib.suppress(OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return read(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error}; MTRL_CACHE names another") from None
    with replaced(path) as temporary:
        write(temporary)
    return read(path)


@contextmanager
def _mapper(count: int) -> Iterator[Callable[..., Any]]:
    """`map`, in worker processes where there is much to do."""
    if count < WORTH_PROCESSES:
        yield map
        return
    workers = min(len(os.sched_getaffinity(0)), 16)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield lambda decode, paths: pool.map(decode, paths, chunksize=64)
