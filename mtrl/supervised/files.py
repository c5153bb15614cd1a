"""Reading the users' data files, once, into memory-mapped arrays.

Light imports: the decoding processes import this module.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

WORTH_PROCESSES = 2000
"""Files from which on starting processes takes less time than it saves."""

Decode = Callable[[Path], NDArray[Any]]


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


def decoded(
    paths: Sequence[Path], decode: Decode, shape: tuple[int, ...], dtype: DTypeLike
) -> NDArray[Any]:
    """All files, decoded, as one memory-mapped array [file, *shape], kept in the cache folder.

    Written beside its name, then renamed: an interrupted decoding leaves nothing that is used.
    DataError for a file of another shape.
    """
    cache = Path(os.environ.get("MTRL_CACHE", Path.home() / ".cache" / "mtrl")) / "supervised"
    first, last = paths[0], paths[-1]
    stamps = [(path.stat().st_mtime_ns, path.stat().st_size) for path in (first, last)]
    what = (decode.__name__, str(first.resolve()), str(last), len(paths), shape, str(dtype), stamps)
    key = hashlib.sha256(repr(what).encode()).hexdigest()[:16]
    path = cache / f"{first.parent.name}_{key}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            array = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=np.dtype(dtype), shape=(len(paths), *shape)
            )
            with _mapper(len(paths)) as mapper:
                for i, values in enumerate(mapper(decode, paths)):
                    if values.size != array[i].size or values.shape[:2] != shape[:2]:
                        raise DataError(f"{paths[i]}: wanted shape {shape}, found {values.shape}")
                    array[i] = values.reshape(shape)
            array.flush()
            del array
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    mapped: NDArray[Any] = np.load(path, mmap_mode="r")
    return mapped


@contextmanager
def _mapper(count: int) -> Iterator[Callable[..., Any]]:
    """`map`, in worker processes where there is much to do."""
    if count < WORTH_PROCESSES:
        yield map
        return
    workers = min(len(os.sched_getaffinity(0)), 16)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield lambda decode, paths: pool.map(decode, paths, chunksize=64)
