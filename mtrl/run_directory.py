"""The folder of one run: resolved configuration, machine, status, and a lock.

runs/<name>/<method>/seed_<n>/ holds config.yaml, environment.json, status.json, metrics.jsonl,
TensorBoard's events.out.tfevents.*, checkpoints/ and videos/.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from mtrl.config import Config, load_yaml
from mtrl.schema import ConfigError, dump_yaml, read_yaml

if TYPE_CHECKING:
    import torch

Status = Literal["running", "finished", "stopped", "failed"]
Loaded = TypeVar("Loaded")


class Sinks(Protocol):
    """Where else the numbers go."""

    @property
    def csv(self) -> bool: ...
    @property
    def wandb(self) -> bool: ...


class RunConfig(Protocol):
    """What a run of any kind, reinforcement learning or supervised, says of itself."""

    @property
    def overwrite(self) -> bool: ...
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


class RunDirectory:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.status_file = path / "status.json"
        self.tensorboard = path  # beside the rest: TensorBoard names a run by its events' folder
        self.checkpoints = path / "checkpoints"
        self._lock: Any = None

    @classmethod
    def create(cls, config: RunConfig) -> RunDirectory:
        """A new directory; refuses an existing one unless config.overwrite says to replace it."""
        run = cls(config.run_path)
        if run.path.exists() and (not run.path.is_dir() or run._holds_anything()):
            if not config.overwrite:
                raise ConfigError(
                    "run_dir",
                    str(run.path),
                    f"exists already; use --overwrite, --resume-if-exists, another --run-dir, "
                    f"or `mtrl resume {run.path}`",
                )
            if not run.config_file.exists():
                raise ConfigError(
                    "run_dir",
                    str(run.path),
                    "is not a run directory; --overwrite will not delete it",
                )
            run.lock()
            shutil.rmtree(run.path)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError("run_dir", str(run.path), f"cannot be made: {error}") from None
        run.lock()
        write_atomically(run.config_file, dump_yaml(config))
        return run

    def _holds_anything(self) -> bool:
        """Beyond the lock of a run that was killed before it wrote its configuration."""
        return any(path.name != ".lock" for path in self.path.iterdir())

    @classmethod
    def open(cls, path: Path) -> tuple[RunDirectory, Config]:
        """An existing run and its configuration; path: its directory or one of its checkpoints."""
        return cls.open_as(path, load_yaml)

    @classmethod
    def open_as(cls, path: Path, load: Callable[[Path], Loaded]) -> tuple[RunDirectory, Loaded]:
        """`open`, for a run with another kind of configuration."""
        run = cls(path.parent.parent if path.is_file() else path)
        if not run.config_file.is_file():
            if path.suffix == ".pt" and not path.exists():
                raise ConfigError("RUN", str(path), "no such checkpoint")
            what = "the checkpoint of a run" if path.is_file() else "a run directory"
            raise ConfigError("RUN_DIR", str(path), f"is not {what}: no {run.config_file}")
        return run, load(run.config_file)

    @property
    def is_supervised(self) -> bool:
        """Whether this is a run of `mtrl supervised`."""
        if not self.config_file.is_file():
            return False
        content = read_yaml(self.config_file)
        return isinstance(content, dict) and "problem" in content

    def lock(self) -> None:
        """Hold the run for this process; the system releases it however the process ends."""
        if self._lock is not None:
            self._lock.close()
        self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 - open as long as the run is
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError("run_dir", str(self.path), "is in use by another process") from None

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
            details = json.loads(self.status_file.read_text()) if self.status_file.exists() else {}
            self.write_status(**(details | {"status": status, "reason": reason}))


def is_held(path: Path) -> bool:
    """Whether a process, on this machine or a sharer of its file system, holds the run's lock."""
    try:
        with open(path / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two readers do not collide
    except FileNotFoundError:
        return False
    except OSError:  # held; or the file system has no locks, then status.json is believed
        return True
    return False


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def peak_memory_mib(device: torch.device) -> float:
    """Most memory of this process so far, MiB: tensors on a CUDA device, else resident pages.

    VmHWM, because getrusage's ru_maxrss counts a parent's pages too where one forked.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # no /proc here
        return math.nan


def environment() -> dict[str, Any]:
    """Versions, machine and code state, to tell later what produced a run."""
    import torch  # late: the simulation workers start before

    versions = {}
    for name in ("mtrl-smto", "torch", "metaworld", "mujoco", "gymnasium", "numpy", "tensorboard"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(
                ["git", "-C", str(Path(__file__).parent), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            ).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            return ""

    cuda = torch.cuda.is_available()
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "versions": versions,
        "git_commit": git("rev-parse", "HEAD"),
        "git_diff": git("diff", "HEAD"),
    }
