"""What methods cost: times, their ratios, memory, and scores over the time of training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from run_files import write_run

from mtrl.commands.pack import pack
from mtrl.report import cost, results
from mtrl.report.groups import Group, benchmarks
from mtrl.report.section import Section
from mtrl.run.state import Run, read_run

TAGS = ("eval/success/", "time/", "memory/")


def group(label: str, *runs: Run) -> Group:
    return Group(label, label, runs)


def with_speeds(path: Path, speeds: dict[int, float], tag: str = "time/env_steps_per_s") -> Path:
    """The run in `path` with the speed of each log window, {last step: steps per second}."""
    lines = [json.dumps({"step": step, tag: speed}) + "\n" for step, speed in speeds.items()]
    metrics = path / "metrics.jsonl"
    metrics.write_text("".join(lines) + metrics.read_text())
    return path


def made(path: Path, speeds: dict[int, float], seed: int = 1, last: int = 1000, **more) -> Run:
    every = {step: [0.5] * 4 for step in range(250, last + 1, 250)}
    return read_run(with_speeds(write_run(path, every, seed=seed, **more), speeds), TAGS)


def test_memory_and_time_of_a_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", {}, rates=(0.0, 10.0, 0.0, 20.0, 40.0)), TAGS)
    assert cost.memory_mib(run) == 404
    assert cost.update_seconds(run).tolist() == [500.0, 250.0]
    silent = read_run(write_run(tmp_path / "b", {}, rates=()), TAGS)
    assert math.isnan(cost.memory_mib(silent))
    assert cost.update_seconds(silent).size == 0
    assert cost.training_seconds(silent)[0].size == 0


def test_ratios_to_the_baseline_and_what_overlaps(tmp_path: Path) -> None:
    # Seconds of 10,000 updates; the first interval is warm-up.
    speeds = {"unitary": (100, 100, 80, 125), "same": (1, 110, 90, 100), "slow": (1, 50, 40, 62.5)}
    groups = [
        group(name, read_run(write_run(tmp_path / name, {}, method=name, rates=rates), TAGS))
        for name, rates in speeds.items()
    ]
    found = {one.method: one for one in cost.costs(groups, "unitary", cost.update_seconds)}
    assert found["unitary"].seconds == pytest.approx((100, 90, 112.5))
    assert (found["unitary"].ratio, found["unitary"].overlaps) == (1.0, False)
    assert (found["same"].ratio, found["same"].overlaps) == (1.0, True)
    assert (found["slow"].ratio, found["slow"].overlaps) == (2.0, False)
    assert found["slow"].memory_ratio == 1.0
    alone = cost.costs(groups, "", cost.update_seconds)
    assert all(math.isnan(one.ratio) and not one.overlaps for one in alone)


def test_nothing_measured_costs_nothing(tmp_path: Path) -> None:
    silent = group("silent", read_run(write_run(tmp_path / "a", {}, rates=()), TAGS))
    (one,) = cost.costs([silent], "silent", cost.update_seconds)
    assert math.isnan(one.seconds.value)
    assert math.isnan(one.hours)
    assert math.isnan(one.memory_mib)


def test_time_of_training_from_the_logged_speeds(tmp_path: Path) -> None:
    run = made(tmp_path / "a", {200: 10.0, 400: 20.0, 1000: 60.0})
    steps, seconds = cost.training_seconds(run)
    assert steps.tolist() == [0, 200, 400, 1000]
    assert seconds.tolist() == pytest.approx([0, 20, 30, 40])
    (one,) = cost.costs([group("a", run)], "a", cost.update_seconds)
    assert one.hours == pytest.approx(40 / 3600)


def test_time_of_a_supervised_run_whose_steps_are_updates(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", {}, rates=())
    run = read_run(with_speeds(path, {500: 10.0, 1000: 20.0}, "time/updates_per_s"), TAGS)
    assert cost.training_seconds(run)[1].tolist() == [0, 50, 75]


def test_a_packed_run_took_as_long(tmp_path: Path) -> None:
    run = made(tmp_path / "run", {200 * k: 10.0 + k for k in range(1, 6)})
    pack(run.path, tmp_path / "packed", intervals=3)
    packed = read_run(tmp_path / "packed", TAGS)
    ends = [cost.training_seconds(one)[1][-1] for one in (run, packed)]
    assert ends[1] == pytest.approx(ends[0], rel=0.02)  # means of speeds, not of times


def test_scores_over_time(tmp_path: Path) -> None:
    """At each point the mean time of the runs that have come so far; time never falls."""
    fast = made(tmp_path / "fast", {1000: 100.0})
    slow = made(tmp_path / "slow", {500: 10.0}, seed=2, last=500, status="stopped")
    both = group("both", fast, slow)
    curve = results.curves(both, fast_tasks(fast), "eval/success", "runs")["mean"]
    over = cost.over_time(both, curve)
    assert over is not None
    # Growth: (2.5 + 25) / 2 twice, then the fast run's alone.
    assert over.steps * 3600 == pytest.approx([13.75, 27.5, 30.0, 32.5])
    np.testing.assert_array_equal(over.middle, curve.middle)
    silent = group("silent", read_run(write_run(tmp_path / "c", {}, rates=()), TAGS))
    assert cost.over_time(silent, curve) is None


def fast_tasks(run: Run) -> tuple[str, ...]:
    return tuple(tag.removeprefix("eval/success/") for tag in run.series if "eval/" in tag)


def test_overlapping_quartiles_are_warned_of(tmp_path: Path) -> None:
    for method, rate in {"unitary": 100.0, "famo": 101.0, "mgda": 10.0}.items():
        rates = [rate * (1 + 0.05 * (k % 3)) for k in range(9)]
        write_run(tmp_path / method, {}, method=method, rates=rates)
    runs = [read_run(path, TAGS) for path in tmp_path.iterdir()]
    (found,) = benchmarks(runs, "eval/success", "unitary")
    section = Section(found, metric="eval/success", unit="runs", baseline="unitary", width=7.0)
    (topic,) = (topic for topic in section.topics() if topic.title == "Cost")
    assert topic.warnings == [
        "The quartiles of the times overlap with those of unitary: famo. The ratios of these times "
        "show no difference."
    ]
