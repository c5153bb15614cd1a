"""Test scores of finished supervised runs: mean and 95% interval over seeds, Delta_m, mean rank.

    python scripts/compare_supervised.py runs/supervised_digits --baseline unitary
    python scripts/compare_supervised.py runs/supervised_digits --markdown docs/supervised.md

The interval is Student's, over runs. Delta_m: POSITIVE is better (mtrl.supervised.comparison).
Time: the median training time of an epoch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from marked_table import replace_table
from scipy import stats

from mtrl.run.state import Run, find_runs, read_run
from mtrl.supervised.comparison import Scores, delta_m, mean_ranks

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with runs of one problem")
    parser.add_argument("--baseline", default="unitary", help="method that Delta_m is relative to")
    parser.add_argument("--markdown", type=Path, help="file with the marked place for the table")
    options = parser.parse_args()
    runs: dict[str, list[Run]] = {}
    for path in find_runs([options.folder]):
        run = read_run(path, ("test/", "time/epoch_s"))
        if test_scores(run):
            runs.setdefault(run.method, []).append(run)
    if options.baseline not in runs:
        parser.error(f"no tested run of {options.baseline}; there are: {', '.join(runs) or 'none'}")
    scores = {method: [test_scores(run) for run in own] for method, own in runs.items()}
    keys = list(scores[options.baseline][0])
    if any(set(one) != set(keys) for own in scores.values() for one in own):
        parser.error("the runs are of different problems")
    means = {
        method: {key: float(np.mean([one[key] for one in own])) for key in keys}
        for method, own in scores.items()
    }
    ranks = mean_ranks(means)
    columns = {f"{metric}, {task}": [(task, metric)] for task, metric in keys}
    metrics = {metric for _, metric in keys}
    if len(metrics) == 1:
        mean = {f"{metrics.pop()}, mean": keys}
        columns = mean if len(keys) > MANY else columns | mean
    lines = [
        f"| method | seeds | {' | '.join(columns)} | Delta_m % | mean rank | s / epoch |",
        "|---" * (5 + len(columns)) + "|",
    ]
    for method in sorted(runs, key=ranks.__getitem__):
        cells = [
            interval([float(np.mean([one[key] for key in of])) for one in scores[method]])
            for of in columns.values()
        ]
        gain = f"{delta_m(means[method], means[options.baseline]):+.2f}"
        row = [f"`{method}`", str(len(runs[method])), *cells, gain, f"{ranks[method]:.2f}"]
        lines.append(f"| {' | '.join([*row, epoch_seconds(runs[method])])} |")
    table = "\n".join(lines)
    print(table)
    if options.markdown:
        replace_table(options.markdown, "compare_supervised", table)


if __name__ == "__main__":
    main()
