"""The folder of one run: resolved configuration, machine, status, and a lock.

runs/<name>/<method>/seed_<n>/ holds config.yaml, environment.json, status.json, metrics.jsonl,
TensorBoard's events.out.tfevents.*, checkpoints/ and videos/.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mtrl.config import Config, load_yaml
from mtrl.files.atomic import is_leftover, sweep_up, write_atomically
from mtrl.run.environment import environment
from mtrl.run.state import Status, read_json
from mtrl.schema import ConfigError, dump_yaml, read_yaml

Loaded = TypeVar("Loaded")
EVENTS = "events.out.tfevents."
"""How TensorBoard's files begin."""
BEFORE_THE_FIRST_STEP = (
    "config.yaml",
    "environment.json",
    "status.json",
    "metrics.jsonl",
    "metrics.csv",
    "wandb",
    "wandb_id",
)
"""What a run writes before its first step."""


class Sinks(Protocol):
    """Where else the numbers go."""

    @property
    def csv(self) -> bool: ...
    @property
    def wandb(self) -> bool: ...


class RunConfig(Protocol):
    """What a run of any kind, reinforcement learning or supervised, says of itself."""

    @property
    def run_path(self) -> Path: ...
    @property
    def method(self) -> str: ...
    @property
    def task_names(self) -> tuple[str, ...]: ...
    @property
    def protocol_stamp(self) -> str: ...
    @property
    def logging(self) -> Sinks: ...


def folder_of(path: Path) -> Path:
    """A run's directory, or that of a checkpoint's run."""
    return path.absolute().parent.parent if path.is_file() else path


class RunDirectory:
    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        """overwrite: a run that is there already may be deleted, by `make`."""
        self.path, self.overwrite = path, overwrite
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.status_file = path / "status.json"
        self.tensorboard = path  # with the rest: TensorBoard names a run by its events' folder
        self.checkpoints = path / "checkpoints"
        self._lock: Any = None
        self._made = False
        self._new_folders: list[Path] = []

    @classmethod
    def create(cls, config: RunConfig, *, overwrite: bool = False) -> RunDirectory:
        """A new directory with this configuration; see `make`."""
        run = cls(config.run_path, overwrite=overwrite)
        run.make()
        run.write(config)
        return run

    def check_free(self) -> None:
        """ConfigError, before anything is written, where a new run cannot be made."""
        shown = str(self.path)
        if not self.path.exists() or (self.path.is_dir() and not self._is_worth_keeping()):
            return
        if not self.config_file.is_file():
            raise ConfigError("run_dir", shown, "is not a run directory; it is left as it is")
        if not self.overwrite:
            raise ConfigError(
                "run_dir",
                shown,
                f"exists already; use --overwrite, --resume-if-exists, another --run-dir, "
                f"or `mtrl resume {self.path}`",
            )

    def make(self) -> None:
        """Make, lock and empty the directory of a new run.

        One that is there already is refused, unless `overwrite` says to delete it or it never came
        to its first step. Does nothing where it has been made, and is held.
        """
        if self._made:
            return
        self.check_free()
        folders = (self.path, *self.path.parents)
        self._new_folders += [folder for folder in folders if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError("run_dir", str(self.path), f"cannot be made: {error}") from None
        self.lock()
        self.check_free()  # another process may have been faster
        self._empty()
        self._made = True

    def discard(self) -> None:
        """Undo `make`: leave nothing that would be in the way of the next command."""
        with contextlib.suppress(OSError):  # whatever led here is the error to be told
            self._empty()
            (self.path / ".lock").unlink()
            for folder in self._new_folders:
                folder.rmdir()

    def _empty(self) -> None:
        for path in self._content():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _content(self) -> list[Path]:
        """What is there beyond the lock."""
        return [path for path in self.path.iterdir() if path.name != ".lock"]

    @property
    def holds_run(self) -> bool:
        """Whether there is a run that has come further than its start."""
        return self.config_file.is_file() and self._is_worth_keeping()

    def _is_worth_keeping(self) -> bool:
        """Whether there is more than a run that was killed has left before its first step."""
        content = self._content()
        names = {
            path.name
            for path in content
            if not path.name.startswith(EVENTS) and not is_leftover(path)
        }
        ours = not content or "environment.json" in names  # or somebody's own config.yaml
        logged = self.metrics_file.exists() and self.metrics_file.stat().st_size > 0
        return logged or not ours or not names.issubset(BEFORE_THE_FIRST_STEP)

    @classmethod
    def open(cls, path: Path) -> tuple[RunDirectory, Config]:
        """An existing run and its configuration; path: its directory or one of its checkpoints."""
        return cls.open_as(path, load_yaml)

    @classmethod
    def open_as(cls, path: Path, load: Callable[[Path], Loaded]) -> tuple[RunDirectory, Loaded]:
        """`open`, for a run with another kind of configuration."""
        run = cls(folder_of(path))
        if not run.config_file.is_file():
            if path.suffix == ".pt" and not path.exists():
                raise ConfigError("RUN", str(path), "no such checkpoint")
            what = "the checkpoint of a run" if path.is_file() else "a run directory"
            raise ConfigError("RUN_DIR", str(path), f"is not {what}: no {run.config_file}")
        if not run.config_file.stat().st_size:  # which would mean: all defaults
            raise ConfigError("RUN_DIR", str(path), f"cannot be used: {run.config_file} is empty")
        return run, load(run.config_file)

    @property
    def is_supervised(self) -> bool:
        """Whether this is a run of `mtrl supervised`."""
        if not self.config_file.is_file():
            return False
        content = read_yaml(self.config_file)
        return isinstance(content, dict) and "problem" in content

    def lock(self) -> None:
        """Hold the run for this process, to `release`; the system does that however it ends."""
        self.release()
        self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 - open as long as the run is
        for chance in range(4, -1, -1):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not chance:
                    reason = "is in use by another process"
                    raise ConfigError("run_dir", str(self.path), reason) from None
                time.sleep(0.05)  # whoever looks at the run (`state.is_held`) is through by then
        sweep_up(self.path)

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock, self._made = None, False

    def write(self, config: RunConfig) -> None:
        """What a new run is started with, and on: before that, the directory holds no run."""
        write_atomically(self.path / "environment.json", json.dumps(environment(), indent=1))
        self.write_config(config)

    def write_config(self, config: RunConfig) -> None:
        write_atomically(self.config_file, dump_yaml(config))

    @property
    def has_checkpoint(self) -> bool:
        return self.checkpoints.is_dir() and any(self.checkpoints.iterdir())

    @property
    def is_finished(self) -> bool:
        return read_json(self.status_file).get("status") == "finished"

    def video_folder(self, step: int) -> Path:
        return self.path / "videos" / f"step_{step:012d}"

    def write_status(self, status: Status, reason: str = "", **details: Any) -> None:
        """Replace status.json: status, reason and whatever describes the progress."""
        content = {"status": status, "reason": reason, **details}
        content |= {"pid": os.getpid(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        write_atomically(self.status_file, json.dumps(content, indent=1))

    def update_status(self, status: Status, reason: str) -> None:
        """Change status and reason; keep the progress last written. Never hides another error."""
        with contextlib.suppress(OSError, ValueError):
            content = read_json(self.status_file)
            self.write_status(**(content | {"status": status, "reason": reason}))
