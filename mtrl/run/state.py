"""Runs as they lie on disk: found, read, and listed by `mtrl runs`.

Knows the files of a run directory, nothing of what was trained: settings are a flat mapping, and
measurements are series by tag.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtrl.run.directory import is_held
from mtrl.schema import ConfigError, read_config, user_path

# Where a configuration says it, the first that is there.
METHOD_KEYS = ("agent.smto.name", "smto.name", "method")
BENCHMARK_KEYS = ("env.benchmark", "benchmark", "problem", "name")
RUN_FILES = ("metrics.jsonl", "status.json", "environment.json", ".lock")


class Series(NamedTuple):
    """One tag's measurements."""

    steps: NDArray[np.int64]
    """[point] increasing, in the run's own unit (environment steps)."""
    values: NDArray[np.float64]
    """[point]"""


@dataclass(frozen=True)
class Run:
    """One run directory, finished or not."""

    path: Path
    config: Mapping[str, Any]
    """Flat: {"train.total_steps": 1000, ...}; empty values are left out."""
    status: Mapping[str, Any]
    """status.json, or empty."""
    state: str
    """finished, stopped, failed, running, starting; pruned: ended early by `mtrl tune`; died: said
    to be running, but no process holds it; broken: its config.yaml cannot be used."""
    environment: Mapping[str, Any]
    """environment.json, or empty."""
    series: Mapping[str, Series] = field(default_factory=dict)
    """By tag; only the tags that were asked for."""
    broken: str = ""
    """Why config.yaml cannot be used."""

    @property
    def method(self) -> str:
        """`pcgrad`, `pcgrad+unitary` where critic and actor differ, `pcgrad+rotograd`."""
        name = str(_first(self.config, METHOD_KEYS, "unknown"))
        if self.config.get("rotograd.enabled"):
            return f"{name}+rotograd"
        own = [self.config.get(f"agent.{loss}_smto.name", name) for loss in ("critic", "actor")]
        return own[0] if own[0] == own[1] else "+".join(own)

    @property
    def benchmark(self) -> str:
        """The benchmark's name, or the task list that replaces it."""
        tasks = self.config.get("env.tasks", ())
        if tasks:
            return ", ".join(tasks) if len(tasks) <= 3 else f"{len(tasks)} tasks: {tasks[0]}, ..."
        return str(_first(self.config, BENCHMARK_KEYS, "unknown"))

    @property
    def seed(self) -> int:
        return int(self.config.get("seed", 0))

    @property
    def protocol(self) -> str:
        return str(self.status.get("protocol") or self.config.get("protocol", "none"))

    @property
    def step(self) -> int:
        return int(self.status.get("step") or 0)

    @property
    def total_steps(self) -> int:
        return int(self.status.get("total_steps") or 0)

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def success_mean(self) -> float:
        """Of the last evaluation; NaN before the first."""
        success = self.status.get("success_mean")
        return float("nan") if success is None else float(success)

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
        return Run(path, {}, status, "broken", environment, series, str(error))
    state = str(status.get("status", "starting"))
    if state in ("running", "starting") and not is_held(path):
        state = "died"
    return Run(path, config, status, state, environment, series)


def read_stored(path: Path) -> dict[str, Any]:
    """A run's config.yaml, whatever the kind of run; ConfigError if it is damaged."""
    content = read_config(path)
    if not (isinstance(content, dict) and content):
        raise ConfigError("CONFIG", str(path), "is empty or no mapping of keys to values")
    return content


def _read_settings(path: Path) -> dict[str, Any]:
    """Flat; ConfigError if it is no configuration of a run."""
    flat: dict[str, Any] = {}
    _flatten(read_stored(path), "", flat)
    if not isinstance(flat.get("seed", 0), int):
        raise ConfigError("seed", flat["seed"], f"must be an integer, in {path}")
    tasks = flat.get("env.tasks", [])
    if not (isinstance(tasks, list) and all(isinstance(task, str) for task in tasks)):
        raise ConfigError("env.tasks", tasks, f"must be a list of names, in {path}")
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
