"""Test scores of finished supervised runs: mean and 95% interval over seeds, Delta_m, mean rank.

    python scripts/compare_supervised.py runs/supervised_digits --baseline unitary
    python scripts/compare_supervised.py runs/supervised_nyuv2 --baseline published
    python scripts/compare_supervised.py runs/supervised_nyuv2 --baseline single_task.yaml
    python scripts/compare_supervised.py runs/supervised_digits --markdown docs/supervised.md

The interval is Student's, over runs. Delta_m: POSITIVE is better (mtrl.supervised.comparison).
published: what Nash-MTL's code has for single tasks, of nyuv2 and qm9. A file has your own values:
{segmentation: {mean_iou: 0.39, pixel_accuracy: 0.64}, depth: {absolute_error: 0.61, ...}, ...}.
Time: the median training time of an epoch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import stats

from mtrl.report.groups import benchmarks
from mtrl.report.markdown import MarkedPlace, Table
from mtrl.run.state import Run, find_runs, read_run
from mtrl.schema import ConfigError
from mtrl.supervised.comparison import (
    Scores,
    delta_m,
    given_scores,
    mean_over_tasks,
    mean_ranks,
    published_scores,
)

MANY = 8
"""Scores from which on only their mean is shown."""


def test_scores(run: Run) -> Scores:
    """{(task, metric): value}; empty if the run has not been tested."""
    tags = [tag.split("/") for tag in run.series if tag.startswith("test/") and tag.count("/") == 2]
    return {
        (task, metric): float(run.series[f"test/{metric}/{task}"].values[-1])
        for _, metric, task in tags
    }


def interval(values: list[float]) -> str:
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return f"{mean:.4f}"
    half = float(stats.t.ppf(0.975, n - 1)) * np.std(values, ddof=1) / n**0.5
    return f"{mean:.4f} ± {half:.4f}"


def epoch_seconds(runs: list[Run]) -> str:
    seen = [run.series["time/epoch_s"].values for run in runs if "time/epoch_s" in run.series]
    return f"{np.median(np.concatenate(seen)):.2f}" if seen else ""


def baseline_scores(wanted: str, means: Mapping[str, Scores], problem: str) -> Scores:
    """Raises ConfigError if there are none, or not for every task and metric of the runs."""
    keys = next(iter(means.values()))
    if wanted in means:
        return means[wanted]
    if wanted == "published":
        return published_scores(problem, keys)
    if wanted.endswith((".yaml", ".yml")):
        return given_scores(Path(wanted), keys)
    tested = ", ".join(means)
    raise ConfigError(
        "baseline", wanted, f"must be published, a .yaml file, or a tested method: {tested}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with runs of one problem")
    parser.add_argument(
        "--baseline",
        default="unitary",
        help="what Delta_m is relative to: a method, published, or a .yaml file with scores",
    )
    MarkedPlace.option(parser, "scripts/compare_supervised.py")
    options = parser.parse_args()
    every = [read_run(path, ("test/", "time/epoch_s")) for path in find_runs([options.folder])]
    tested = [run for run in every if run.finished and test_scores(run)]
    if not tested:
        parser.error(f"{options.folder} has no finished run that was tested")
    found = benchmarks(tested, "test", options.baseline)
    runs = {group.label: list(group.runs) for group in found[0].groups}
    for warning in found[0].warnings:
        print(f"warning: {warning}", file=sys.stderr)
    scores = {method: [test_scores(run) for run in own] for method, own in runs.items()}
    keys = list(next(iter(scores.values()))[0])
    if len(found) > 1 or any(set(one) != set(keys) for own in scores.values() for one in own):
        parser.error("the runs are of different problems")
    means = {
        method: {key: float(np.mean([one[key] for one in own])) for key in keys}
        for method, own in scores.items()
    }
    problem = str(next(iter(runs.values()))[0].config.get("problem", ""))
    try:
        baseline = baseline_scores(options.baseline, means, problem)
    except ConfigError as error:
        parser.error(str(error))
    ranks = mean_ranks(means)
    columns = {f"{metric}, {task}": [(task, metric)] for task, metric in keys}
    metrics = {metric for _, metric in keys}
    if len(metrics) == 1:
        mean = {f"{metrics.pop()}, mean": keys}
        columns = mean if len(keys) > MANY else columns | mean
    table = Table("method", "seeds", *columns, "Delta_m %", "mean rank", "s / epoch")
    for method in sorted(runs, key=ranks.__getitem__):
        cells = [
            interval(
                [mean_over_tasks(of[0][1], [one[key] for key in of]) for one in scores[method]]
            )
            for of in columns.values()
        ]
        gain = f"{delta_m(means[method], baseline):+.2f}"
        row = [f"`{method}`", str(len(runs[method])), *cells, gain, f"{ranks[method]:.2f}"]
        table.add(*row, epoch_seconds(runs[method]))
    table.publish(options.markdown)


if __name__ == "__main__":
    main()
