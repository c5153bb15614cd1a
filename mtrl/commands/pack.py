"""`mtrl pack`: what a run found, in a few kilobytes, for publishing.

A packed run is a run directory without checkpoints, TensorBoard files and policies, which
`mtrl report` and `mtrl runs` read like any other. Its bytes depend on the run alone.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from mtrl.files import yaml12
from mtrl.files.atomic import replaced, write_atomically
from mtrl.options.command_words import read_options
from mtrl.run.environment import MACHINE
from mtrl.run.state import find_runs, read_json, read_metrics, read_stored
from mtrl.schema import ConfigError, at_least, check_bounds

EVALUATIONS = ("eval/", "test/")
DIGITS = 5
ENVIRONMENT = ("python", *MACHINE, "versions", "git_commit")  # nothing of the user's
STATUS = (
    "status", "step", "total_steps", "elapsed_s", "protocol", "success_mean", "best_success_mean",
)  # fmt: skip


@dataclass(frozen=True)
class PackOptions:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, or folders that hold some."""
    out: Path = Path("results")
    """Folder to write to; runs keep their paths below the folder that was given."""
    intervals: Annotated[int, at_least(1)] = 20
    """Equal parts of a run; of measurements other than evaluations, the mean over each is kept."""


def pack_command(words: list[str]) -> None:
    options = read_options(PackOptions, "mtrl pack", words, bare="runs")
    check_bounds(options)
    places: dict[Path, Path] = {}
    for root in options.runs:
        for run in find_runs([root]):
            place = options.out / (run.name if run == root else run.relative_to(root))
            if place.resolve() == run.resolve():
                raise ConfigError("out", str(options.out), "is where the run lies")
            if place in places:
                allowed = f"{place} would be the place of {places[place]} too: pack them apart"
                raise ConfigError("runs", str(run), allowed)
            places[place] = run
    broken = 0
    for place, run in places.items():
        try:
            print(f"{run}: {pack(run, place, options.intervals) / 1024:.1f} KiB")
        except ConfigError as error:
            print(f"mtrl: left out: {error}", file=sys.stderr)
            broken = 1
    if broken:
        sys.exit(1)


def pack(run: Path, out: Path, intervals: int = 20) -> int:
    """Write the run's record to the folder `out`, another one; -> its size in bytes.

    ConfigError for a run that cannot be read.
    """
    config = read_stored(run / "config.yaml")
    _without_folders(config)
    status = read_json(run / "status.json")
    environment = read_json(run / "environment.json")
    lines = reduced(list(read_metrics(run / "metrics.jsonl")), intervals)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "config.yaml", yaml12.dump(config))
    for name, keys, content in (
        ("status.json", STATUS, status),
        ("environment.json", ENVIRONMENT, environment),
    ):
        kept = {key: content[key] for key in keys if key in content}
        if content.get("git_diff"):
            kept["git_diff"] = "not published"  # that there was one, for the report
        write_atomically(out / name, json.dumps(kept, indent=1) + "\n")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    with replaced(out / "metrics.jsonl.gz") as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0))
    return sum(path.stat().st_size for path in out.iterdir())


def _without_folders(config: dict[str, Any]) -> None:
    """Of the user's machine nothing but the names of files."""
    for key in ("run_dir", "data_dir"):
        config.pop(key, None)
    if config.get("plugins"):
        config["plugins"] = [Path(path).name for path in config["plugins"]]
    network = config.get("network", {})
    options = network.get("options") or {}
    for settings, key in ((network, "weights"), *((options, key) for key in options)):
        if isinstance(path := settings.get(key), str) and Path(path).is_absolute():
            settings[key] = Path(path).name


def reduced(records: Iterable[dict[str, float]], intervals: int) -> list[dict[str, float]]:
    """Evaluations as they are; of other tags the mean over each interval, at its last step, and of
    speeds (`_per_s`) the steps of the interval over their time."""
    records = sorted(records, key=lambda record: record["step"])
    if not records:
        return []
    last = max(int(records[-1]["step"]), 1)
    kept: list[dict[str, float]] = []
    sums: dict[int, dict[str, list[tuple[float, float]]]] = {}
    before = 0.0
    for record in records:
        if any(tag.startswith(EVALUATIONS) for tag in record):
            kept.append(record)
            continue
        number = (int(record["step"]) * intervals - 1) // last  # each holds its last step
        interval = sums.setdefault(number, {})
        for tag, value in record.items():
            interval.setdefault(tag, []).append((value, record["step"] - before))
        before = record["step"]
    for interval in sums.values():
        step = max(interval.pop("step"))[0]
        kept.append({"step": step} | {tag: _mean(tag, v) for tag, v in interval.items()})
    return [
        {tag: v if tag == "step" else float(f"{v:.{DIGITS}g}") for tag, v in record.items()}
        for record in sorted(kept, key=lambda record: record["step"])
    ]


def _mean(tag: str, values: Sequence[tuple[float, float]]) -> float:
    """values: of each log line, with the steps since the one before."""
    if tag.endswith("_per_s") and all(value > 0 for value, _ in values):
        steps = sum(steps for _, steps in values)
        return steps / sum(steps / value for value, steps in values) if steps else values[-1][0]
    return sum(value for value, _ in values) / len(values)
