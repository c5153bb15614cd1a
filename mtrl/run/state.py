"""Runs as they lie on disk: where they stand, found, read, and listed by `mtrl runs`.

Knows the files of a run directory, nothing of what was trained: settings are a flat mapping, and
measurements are series by tag.
"""

from __future__ import annotations

import dataclasses
import fcntl
import gzip
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from mtrl.schema import ConfigError, read_yaml, user_path

# Where a configuration says it, the first that is there.
METHOD_KEYS = ("agent.smto.name", "smto.name", "method")
BENCHMARK_KEYS = ("env.benchmark", "benchmark", "problem", "name")
TASK_KEYS = ("env.tasks", "tasks")
RUN_FILES = ("metrics.jsonl", "status.json", "environment.json", ".lock")

Status = Literal[
    "running",  # a process holds it
    "finished",  # it came to its end
    "stopped",  # ended early by a signal or a callback
    "failed",  # ended by an error
    "pruned",  # ended early by `mtrl tune`
]
"""What a run says of itself in status.json."""
State = Literal[
    Status,
    "waiting",  # planned by a sweep: yet to be started, or continued
    "died",  # its process is gone without a last word: killed, or a power cut
    "broken",  # its config.yaml cannot be used
]
"""Where a run stands. A run that is stopped, died or pruned continues from its last checkpoint."""
COLOURS: dict[State, str] = {
    "running": "cyan",
    "failed": "red",
    "broken": "red",
    "died": "red",
    "stopped": "yellow",
    "waiting": "",
    "pruned": "yellow",
    "finished": "green",
}
"""On the console, in the order of a sweep's table."""


class Series(NamedTuple):
    """One tag's measurements."""

    steps: NDArray[np.int64]
    """[point] increasing, in the run's own unit (environment steps)."""
    values: NDArray[np.float64]
    """[point]"""


@dataclass(frozen=True)
class Standing:
    """Where a run stands, and how far it came."""

    state: State
    reason: str = ""
    """Why it ended before its time; empty if it did not."""
    step: int = 0
    total: int = 0
    success: float | None = None
    """Mean success of the last evaluation."""
    seconds: float = 0.0
    """Time spent up to `step`."""


def standing(path: Path, broken: str = "") -> Standing:
    """Where the run in this directory stands; broken: why its config.yaml cannot be used."""
    said = last_said(path)
    if broken:
        return dataclasses.replace(said, state="broken", reason=broken)
    if is_held(path):
        return dataclasses.replace(said, state="running")
    if not (path / "config.yaml").is_file():
        return Standing("waiting")
    return dataclasses.replace(said, state="died") if said.state == "running" else said


def last_said(path: Path) -> Standing:
    """What the run last said of itself; a process that was killed, or is new, is `running`."""
    status = read_json(path / "status.json")
    return Standing(
        status["status"] if status.get("status") in get_args(Status) else "running",
        str(status.get("reason") or ""),
        int(status.get("step") or 0),
        int(status.get("total_steps") or 0),
        status.get("success_mean"),
        float(status.get("elapsed_s") or 0.0),
    )


def is_held(path: Path) -> bool:
    """Whether a process, on this machine or a sharer of its file system, holds the run's lock."""
    try:
        with open(path / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two readers do not collide
    except BlockingIOError:
        return True
    except OSError:  # no such file, or no locks there: then no run can be made or continued there
        return False
    return False


@dataclass(frozen=True)
class Run:
    """One run directory, finished or not."""

    path: Path
    config: Mapping[str, Any]
    """Flat: {"train.total_steps": 1000, ...}; empty values are left out, and all if broken."""
    status: Mapping[str, Any]
    """status.json, or empty."""
    now: Standing
    environment: Mapping[str, Any]
    """environment.json, or empty."""
    series: Mapping[str, Series] = field(default_factory=dict)
    """By tag; only the tags that were asked for."""

    @property
    def state(self) -> State:
        return self.now.state

    @property
    def method(self) -> str:
        """`pcgrad`, `pcgrad+unitary` where critic and actor differ, `pcgrad+rotograd`."""
        name = str(_first(self.config, METHOD_KEYS, "unknown"))
        if self.config.get("rotograd.enabled"):
            return f"{name}+rotograd"
        own = [self.config.get(f"agent.{loss}_smto.name", name) for loss in ("critic", "actor")]
        return own[0] if own[0] == own[1] else "+".join(own)

    @property
    def chosen_tasks(self) -> tuple[str, ...]:
        """If not all of a benchmark."""
        return tuple(_first(self.config, TASK_KEYS, ()))

    @property
    def benchmark(self) -> str:
        """The benchmark's name, or the task list that replaces it."""
        tasks = self.chosen_tasks
        if not tasks:
            return str(_first(self.config, BENCHMARK_KEYS, "unknown"))
        words = ", ".join(tasks) if len(tasks) <= 3 else f"{len(tasks)} tasks: {tasks[0]}, ..."
        return f"{self.config['problem']} {words}" if "problem" in self.config else words

    @property
    def seed(self) -> int:
        return int(self.config.get("seed", 0))

    @property
    def protocol(self) -> str:
        return str(self.status.get("protocol") or self.config.get("protocol", "none"))

    @property
    def step(self) -> int:
        return self.now.step

    @property
    def total_steps(self) -> int:
        return self.now.total

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def success_mean(self) -> float:
        """Of the last evaluation; NaN before the first."""
        return float("nan") if self.now.success is None else self.now.success

    @property
    def success(self) -> dict[str, float]:
        """{task: success rate} of the last evaluation."""
        prefix = "eval/success/"
        return {
            tag.removeprefix(prefix): float(series.values[-1])
            for tag, series in self.metrics(prefix).items()
        }

    def metrics(self, *prefixes: str) -> dict[str, Series]:
        """{tag: (steps, values)} of all that was measured, or of the tags that begin so."""
        return read_series(self.path / "metrics.jsonl", prefixes or ("",))


def _first(config: Mapping[str, Any], keys: Iterable[str], default: Any) -> Any:
    return next((config[key] for key in keys if key in config), default)


def is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() and any((path / name).exists() for name in RUN_FILES)


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Run directories among and below `paths`, each once, sorted; ConfigError if there is none."""
    asked = [user_path(path) for path in paths]
    for path in asked:
        if not path.is_dir():
            raise ConfigError("RUNS", str(path), "no such directory")
    found = sorted(runs_below(*asked))
    if not found:
        shown = ", ".join(map(str, asked))
        raise ConfigError("RUNS", shown, "holds no run (a folder with config.yaml and status.json)")
    return found


def runs_below(*folders: Path) -> Iterator[Path]:
    """Run directories among and below `folders`, each once, by a path without links if it can be.

    Symbolic links are followed, after all that is reached without them; none is followed twice.
    """
    seen: set[str] = set()
    waiting = deque(map(str, folders))
    while waiting:
        for folder, subfolders, _ in os.walk(waiting.popleft()):
            if (real := os.path.realpath(folder)) in seen:
                subfolders.clear()
                continue
            seen.add(real)
            if is_run(Path(folder)):
                yield Path(folder)
                subfolders.clear()  # a run holds no other runs
            below = [os.path.join(folder, name) for name in subfolders]
            waiting.extend(path for path in below if os.path.islink(path))


def read_run(path: Path, prefixes: tuple[str, ...] = ()) -> Run:
    """The run in directory `path`, with the series of all tags that begin with a prefix."""
    status, environment = read_json(path / "status.json"), read_json(path / "environment.json")
    series = read_series(path / "metrics.jsonl", prefixes) if prefixes else {}
    try:
        config = _read_settings(path / "config.yaml")
    except ConfigError as error:
        return Run(path, {}, status, standing(path, str(error)), environment, series)
    return Run(path, config, status, standing(path), environment, series)


def read_stored(path: Path) -> dict[str, Any]:
    """A run's config.yaml, whatever the kind of run; ConfigError if it is damaged."""
    content = read_yaml(path)
    if not (isinstance(content, dict) and content):
        raise ConfigError("CONFIG", str(path), "is empty or no mapping of keys to values")
    return content


def _read_settings(path: Path) -> dict[str, Any]:
    """Flat; ConfigError if it is no configuration of a run."""
    flat: dict[str, Any] = {}
    _flatten(read_stored(path), "", flat)
    if not isinstance(flat.get("seed", 0), int):
        raise ConfigError("seed", flat["seed"], f"must be an integer, in {path}")
    for key in TASK_KEYS:
        tasks = flat.get(key, [])
        if not (isinstance(tasks, list) and all(isinstance(task, str) for task in tasks)):
            raise ConfigError(key, tasks, f"must be a list of names, in {path}")
    return flat


def read_metrics(path: Path) -> Iterator[dict[str, float]]:
    """The lines of a metrics.jsonl, as they were written: {"step": ..., tag: value, ...}.

    What is not such a line is passed over: one that is being written, that was cut off when its
    process was killed, or that a power cut filled with anything. A packed run (`mtrl pack`) has
    them compressed.
    """
    compressed = path.with_name(f"{path.name}.gz")
    if not (path.exists() or compressed.exists()):
        return
    with open(path, "rb") if path.exists() else gzip.open(compressed) as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:  # not JSON, or not UTF-8
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield {tag: v for tag, v in record.items() if isinstance(v, int | float)}


def read_series(path: Path, prefixes: tuple[str, ...]) -> dict[str, Series]:
    """Tags of metrics.jsonl that begin with one of `prefixes`; of equal steps the last counts."""
    points: dict[str, dict[int, float]] = {}
    for record in read_metrics(path):
        for tag, value in record.items():
            if tag.startswith(prefixes) and tag != "step":
                points.setdefault(tag, {})[int(record["step"])] = float(value)
    return {
        tag: Series(np.array(sorted(of)), np.array([of[step] for step in sorted(of)]))
        for tag, of in points.items()
    }


def _flatten(value: Any, key: str, flat: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _flatten(item, f"{key}.{name}" if key else str(name), flat)
    elif value not in (None, "", []):
        flat[key] = value


def read_json(path: Path) -> dict[str, Any]:
    """A file that a run replaces as a whole; {} if it is not there, or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
