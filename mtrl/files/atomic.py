"""Files that are there whole or not at all, whatever ends the process or the machine."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".tmp-"
"""How the names of files begin that are being written."""


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name to write to; what is there when the block ends takes the place of `path`.

    It is on disk by then, so that a power cut leaves the old file or the new one. If the block
    raises, the old file stays and nothing else does. The name ends as that of `path` does.
    """
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # of the same kind as the error itself
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # some network file systems cannot flush a folder
        _flush(path.parent)


def write_atomically(path: Path, text: str) -> None:
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sweep_up(folder: Path) -> None:
    """Delete what killed processes had begun to write. For the only process that writes there."""
    for leftover in folder.iterdir():
        if is_leftover(leftover):
            leftover.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether this was being written."""
    return path.name.startswith(TEMPORARY)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
