"""Test scores of finished supervised runs: mean and 95% interval over seeds, Delta_m, mean rank.

    python scripts/compare_supervised.py runs/supervised_digits --baseline unitary

The interval is Student's, over runs. Delta_m: POSITIVE is better (mtrl.supervised.comparison).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from mtrl.run_directory import RunDirectory
from mtrl.supervised.comparison import Scores, delta_m, mean_ranks
from mtrl.supervised.config import load_yaml

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's 97.5% quantiles for 1 to 9 degrees of freedom; beyond: 1.96, slightly too narrow."""


def test_scores(run: RunDirectory) -> Scores:
    """{(task, metric): value}; empty if the run has not been tested."""
    found: dict[tuple[str, str], float] = {}
    for line in run.metrics_file.read_text().splitlines():
        for tag, value in json.loads(line).items():
            if tag.startswith("test/") and tag.count("/") == 2:
                _, metric, task = tag.split("/")
                found[task, metric] = value
    return found


def interval(values: list[float]) -> str:
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return f"{mean:.4f}"
    quantile = T_975[n - 2] if n - 2 < len(T_975) else 1.96
    return f"{mean:.4f} +- {quantile * np.std(values, ddof=1) / n**0.5:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with runs of one problem")
    parser.add_argument("--baseline", default="unitary", help="method that Delta_m is relative to")
    options = parser.parse_args()
    seeds: dict[str, list[Scores]] = {}
    for path in sorted(options.folder.rglob("config.yaml")):
        run = RunDirectory(path.parent)
        if run.is_supervised and run.metrics_file.exists() and (scores := test_scores(run)):
            seeds.setdefault(load_yaml(path).method, []).append(scores)
    if options.baseline not in seeds:
        parser.error(
            f"no tested run of {options.baseline}; there are: {', '.join(seeds) or 'none'}"
        )
    keys = list(seeds[options.baseline][0])
    if any(set(scores) != set(keys) for runs in seeds.values() for scores in runs):
        parser.error("the runs are of different problems")
    means = {
        method: {key: float(np.mean([scores[key] for scores in runs])) for key in keys}
        for method, runs in seeds.items()
    }
    ranks = mean_ranks(means)
    columns = [f"{metric}, {task}" for task, metric in keys] if len(keys) <= 8 else ["mean"]
    print(f"| method | seeds | {' | '.join(columns)} | Delta_m % | mean rank |")
    print("|---" * (4 + len(columns)) + "|")
    for method in sorted(seeds, key=ranks.__getitem__):
        runs = seeds[method]
        cells = [interval([scores[key] for scores in runs]) for key in keys]
        if len(keys) > 8:
            cells = [interval([float(np.mean(list(scores.values()))) for scores in runs])]
        gain = delta_m(means[method], means[options.baseline])
        row = [f"`{method}`", str(len(runs)), *cells, f"{gain:+.2f}", f"{ranks[method]:.2f}"]
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
