"""Finding the users' data files, and reading them once, into memory-mapped arrays.

Light imports: the decoding processes import this module.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import multiprocessing
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mtrl.files.atomic import replaced
from mtrl.files.cache import cache_folder

WORTH_PROCESSES = 2000
"""Files from which on starting processes takes less time than it saves."""
CHECKSUM = 4
"""Bytes at the end of a file of decoded arrays: the CRC-32 of its values."""

Content = TypeVar("Content")


class DataError(ValueError):
    """A data file that is missing or damaged: one line with its name and where to get it."""


class Decoder(Protocol):
    """One file -> its array; DataError names what is wrong with it.

    Its `repr` names everything that the array depends on in addition to the file.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __call__(self, path: Path) -> NDArray[Any]: ...


# -- finding --------------------------------------------------------------------------------------


def need_folder(folder: Path | None, what: str) -> Path:
    """The user's data folder, or DataError."""
    if folder is None:
        raise DataError(f"{what} needs a folder with its files: --data-dir FOLDER or MTRL_DATA")
    if not folder.is_dir():
        raise DataError(f"data_dir = {str(folder)!r}: no such folder")
    return folder


def need_file(path: Path, source: str) -> Path:
    if not path.is_file():
        raise DataError(f"{path} is missing; {source}")
    return path


def names_in(folder: Path) -> set[str]:
    """What is in a folder, without hidden files: macOS leaves a `._0.npy` next to a 0.npy."""
    try:
        return {name for name in os.listdir(folder) if not name.startswith(".")}
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from None


def read_lines(path: Path, source: str) -> list[str]:
    """A text file, with any line ends."""
    try:
        return need_file(path, source).read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; {source}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text, at byte {error.start}; {source}") from None


# -- reading once ---------------------------------------------------------------------------------


def decoded(root: Path, paths: Sequence[Path], decode: Decoder) -> NDArray[Any]:
    """All files, decoded, as one memory-mapped array [file, *shape], kept in the cache folder.

    Kept under all that it depends on: the decoder, and the name below `root`, the size and the time
    of every file.
    """
    key = (decode, [stamp(root, path) for path in paths])
    shape = (len(paths), *decode.shape)

    def arrays() -> Iterator[NDArray[Any]]:
        with _mapper(len(paths)) as mapper:
            yield from mapper(decode, paths)

    def write(temporary: Path) -> None:
        descr = np.lib.format.dtype_to_descr(decode.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        checksum = 0
        # Not through a memory map: there a full disk ends the process.
        with open(temporary, "xb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for array in arrays():
                content = array.tobytes()
                checksum = zlib.crc32(content, checksum)
                file.write(content)
            file.write(checksum.to_bytes(CHECKSUM, "little"))

    def read(path: Path) -> NDArray[Any]:
        mapped: NDArray[Any] = np.load(path, mmap_mode="r")
        with open(path, "rb") as file:
            file.seek(-CHECKSUM, os.SEEK_END)
            checksum = int.from_bytes(file.read(), "little")
        as_expected = (mapped.shape, mapped.dtype) == (shape, decode.dtype)
        if not as_expected or zlib.crc32(mapped.data) != checksum:
            raise ValueError(f"{path} is damaged")
        return mapped

    def make() -> NDArray[Any]:
        array = np.empty(shape, decode.dtype)
        for i, values in enumerate(arrays()):
            array[i] = values
        return array

    return _cached(f"{paths[0].parent.name}_{_digest(key)}.npy", read, write, make)


def stamp(root: Path, path: Path) -> tuple[str, int, int]:
    """A file's name below `root`, its size and its time: a file in which these stay is the same."""
    try:
        seen = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    return str(path.relative_to(root)), seen.st_size, seen.st_mtime_ns


def cached_arrays(
    name: str, what: object, make: Callable[[], dict[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """`make()`, kept in the cache folder under everything that it depends on: `what`."""
    made = functools.cache(make)

    def write(temporary: Path) -> None:
        with open(temporary, "xb") as file:
            np.savez(file, allow_pickle=False, **made())

    def read(path: Path) -> dict[str, NDArray[Any]]:
        with np.load(path, allow_pickle=False) as content:
            return dict(content)  # reads all, and checks the sums that zip files have

    return _cached(f"{name}_{_digest(what)}.npz", read, write, made)


def _digest(what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def _cached(
    name: str,
    read: Callable[[Path], Content],
    write: Callable[[Path], None],
    make: Callable[[], Content],
) -> Content:
    """The file of this name in the cache folder, written again where it is missing or damaged;
    `make()` where none can be written, and a line that says so."""
    folder = cache_folder() / "supervised"
    path = folder / name
    # Whatever a damaged file makes NumPy and zipfile raise: all their own errors are of these.
    with contextlib.suppress(OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return read(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replaced(path) as temporary:
            write(temporary)
        return read(path)
    except OSError as error:
        _say_once(
            f"mtrl: what is read cannot be kept in {folder}: {error.strerror or error}; "
            "MTRL_CACHE names another folder"
        )
    return make()


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


@contextmanager
def _mapper(count: int) -> Iterator[Callable[..., Any]]:
    """`map`, in worker processes where there is much to do."""
    if count < WORTH_PROCESSES:
        yield map
        return
    workers = min(len(os.sched_getaffinity(0)), 16)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield lambda decode, paths: pool.map(decode, paths, chunksize=64)
