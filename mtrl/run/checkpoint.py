"""Atomic, checksummed checkpoints, written in the background.

A name always holds a whole checkpoint (mtrl.files.atomic). Its last 40 bytes are a marker and
the SHA-256 of everything before them: a truncated or altered file is detected, and the previous one
is used.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mtrl.device.memory import free_memory, snapshot
from mtrl.files.atomic import replaced, sweep_up
from mtrl.files.errors import first_line

MARKER = b"mtrlck01"
TRAILER = len(MARKER) + hashlib.sha256().digest_size


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or none that can be read."""


class _HashingFile:
    """A write-only file that hashes what passes through."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) to `path`.

    Raises CheckpointError if that fails; what was there before is then intact.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as temporary, open(temporary, "wb") as file:
            hashing = _HashingFile(file)
            torch.save(state, hashing)  # type: ignore[arg-type]  # it only writes and flushes
            file.write(MARKER + hashing.hash.digest())
    except (OSError, RuntimeError) as error:  # torch turns a failed write into RuntimeError
        cause = error.__cause__ or error.__context__ or error
        cause = cause if isinstance(cause, OSError) else error
        raise CheckpointError(
            f"cannot save checkpoint {path}: {cause}; earlier checkpoints are intact"
        ) from error


def _size(state: Any) -> int:
    """Bytes of the tensors in it."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        state = list(state.values())
    return sum(map(_size, state)) if isinstance(state, list | tuple) else 0


class Writer:
    """Writes files from snapshots, in a thread, one at a time.

    Where one failed, the next call of any method but `close` raises its CheckpointError.
    """

    def __init__(self, keep: int) -> None:
        """keep: step checkpoints that stay; see `prune`."""
        self.keep = keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, path: Path, state: dict[str, Any]) -> None:
        """Copy `state`, wait for the file before, begin to write. In memory that is too small for
        a copy: write at once."""
        self.wait()
        if _size(state) > free_memory(torch.device("cpu")):
            self._write(path, state)
        else:
            self._writing = self._thread.submit(self._write, path, snapshot(state))

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        prune(path.parent, self.keep)

    def check(self) -> None:
        """Raise what went wrong, without waiting."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Until everything is on disk."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Let what is being written be finished; an error in it is not raised."""
        self._thread.shutdown()


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; raises CheckpointError if it is missing or damaged."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size - TRAILER
            if size <= 0:
                raise CheckpointError(f"checkpoint {path} is damaged: too short")
            digest = hashlib.sha256()
            remaining = size
            while remaining and (chunk := file.read(min(remaining, 1 << 24))):
                digest.update(chunk)
                remaining -= len(chunk)
            if file.read() != MARKER + digest.digest():
                raise CheckpointError(
                    f"checkpoint {path} is damaged, or none of mtrl's: checksum does not match"
                )
            file.seek(0)
            return _unpickled(path, file)
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error}") from error


def _unpickled(path: Path, file: BinaryIO) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {first_line(error)}") from error
    return state


def check_fit(own: Mapping[str, Any], state: Any) -> None:
    """Raise CheckpointError unless `state` has every part of `own`, with tensors of its shapes."""
    for part, content in own.items():
        if not isinstance(state, Mapping) or part not in state:
            raise CheckpointError(f"it has no {part}")
        here, there = _shapes(part, content), _shapes(part, state[part])
        for name in [*here, *there]:
            if here.get(name) != there.get(name):
                theirs, ours = there.get(name, "none"), here.get(name, "none")
                raise CheckpointError(f"{name} has shape {theirs} there, {ours} here")


def _shapes(name: str, content: Any) -> dict[str, tuple[int, ...]]:
    if isinstance(content, Mapping):
        return {
            key: shape
            for part, value in content.items()
            if part != "_extra_state"  # a generator, whose size is the device's, and counters
            for key, shape in _shapes(f"{name}.{part}", value).items()
        }
    return {name: tuple(content.shape) if isinstance(content, Tensor) else ()}


def check_resumable(state: Any, environments: int) -> None:
    """Raise CheckpointError unless a run with so many environments can continue from `state`."""
    if isinstance(state, Mapping) and "agent" in state and "replay" not in state:
        raise CheckpointError("it holds the policy alone; a run continues from a step_*.pt")
    check_kind(state)
    theirs = len(state["episodes"])
    if theirs != environments:
        raise CheckpointError(f"its run has {theirs} environments, this one {environments}")


def check_kind(state: Any) -> None:
    """Raise CheckpointError unless it is a checkpoint of reinforcement learning."""
    if not isinstance(state, Mapping) or "agent" not in state:
        supervised = isinstance(state, Mapping) and not {"learner", "network"}.isdisjoint(state)
        raise CheckpointError(
            f"it is a checkpoint of {'mtrl supervised' if supervised else 'something else'}"
        )


def step_path(directory: Path, step: int) -> Path:
    return directory / f"step_{step:012d}.pt"


def newest_first(directory: Path) -> list[Path]:
    return sorted(directory.glob("step_*.pt"), reverse=True)


def load_latest(directory: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest readable checkpoint (None if there is none) and warnings about damaged ones."""
    warnings: list[str] = []
    for path in newest_first(directory):
        try:
            return load(path), warnings
        except CheckpointError as error:
            warnings.append(f"{error}; trying the one before")
    return None, warnings


def load_newest(
    directory: Path, *, finished: bool = False
) -> tuple[dict[str, Any] | None, list[str]]:
    """`load_latest`, to continue from; CheckpointError if there are some, all damaged.

    finished: whether the run is, which would be trained again over its record if there is none.
    """
    state, warnings = load_latest(directory)
    if state is None and finished and not warnings:
        raise CheckpointError(
            f"{directory}: no checkpoint is left to continue from; the run is finished and is left "
            "as it is"
        )
    if state is None and warnings:
        names = ", ".join(path.name for path in newest_first(directory))
        raise CheckpointError(
            f"{directory}: no checkpoint can be read, {names}; the run is left as it is"
        )
    return state, warnings


def load_step(path: Path, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """`load`, of a checkpoint that a run can continue from.

    check: raises CheckpointError if it is another.
    """
    state = load(path)
    try:
        check(state)
    except CheckpointError as error:
        raise CheckpointError(f"cannot continue from {path}: {error}") from None
    return state


def best_step(directory: Path) -> int:
    """The step of the best policy; 0 if there is none that can be read."""
    try:
        return int(load(directory / "best.pt")["step"])
    except CheckpointError:
        return 0


def delete_later(path: Path) -> list[Path]:
    """Make a step checkpoint its folder's newest; -> those that were deleted, a best policy of a
    later step among them."""
    later = [other for other in newest_first(path.parent) if other.name > path.name]
    if step_path(path.parent, best_step(path.parent)).name > path.name:
        later.append(path.with_name("best.pt"))
    for other in later:
        other.unlink()
    return later


def prune(directory: Path, keep: int) -> None:
    """Delete all but the newest `keep` step checkpoints, and leftovers of interrupted writes."""
    for path in newest_first(directory)[keep:]:
        path.unlink(missing_ok=True)
    sweep_up(directory)
