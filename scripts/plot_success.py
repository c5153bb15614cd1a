"""Success curves of finished or running runs as one PNG, beside what others have published.

    python scripts/plot_success.py results/best_mt10 results/best_mt50 --out docs/learning.png

A panel for every experiment (the name in the configuration): a thin line per run, and their mean as
long as all of them go. Published curves of the same benchmark, up to twice as many steps, are in
results/published.yaml, with their sources.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import yaml

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from mtrl.run.state import Run, find_runs, read_run
from mtrl.schema import ConfigError

PUBLISHED = Path(__file__).resolve().parent.parent / "results/published.yaml"
MEAN = "eval/success_mean"


def experiments(folders: list[Path]) -> dict[str, list[Run]]:
    """{name: runs that have been evaluated}, in the order of the folders."""
    found: dict[str, list[Run]] = {}
    for folder in folders:
        for path in find_runs([folder]):
            run = read_run(path, (MEAN,))
            if MEAN in run.series:
                found.setdefault(str(run.config.get("name", path.name)), []).append(run)
    return found


def draw(axis: Axes, name: str, runs: list[Run], published: list[dict[str, Any]]) -> None:
    curves = [dict(zip(*run.series[MEAN], strict=True)) for run in runs]
    for curve in curves:
        axis.plot(list(curve), list(curve.values()), color="tab:blue", alpha=0.35, linewidth=1)
    shared = sorted(set.intersection(*map(set, curves)))
    means = [np.mean([curve[step] for curve in curves]) for step in shared]
    seeds = f"mean of {len(runs)} seeds" if len(runs) > 1 else "one seed"
    axis.plot(shared, means, "o-", color="tab:blue", markersize=4, label=f"mtrl, {seeds}")
    last = max(max(curve) for curve in curves)
    for other in published:
        if other["benchmark"] == runs[0].benchmark:
            points = {step: value for step, value in other["success"].items() if step <= 2 * last}
            axis.plot(list(points), list(points.values()), "s--", color="grey", markersize=4)
            axis.lines[-1].set_label(other["name"])
    axis.set(title=name, xlabel="environment steps, all tasks", ylim=(0, 1.02), xlim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False, loc="lower right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, or folders of some")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    options = parser.parse_args()
    try:
        found = experiments(options.runs)
    except ConfigError as error:
        parser.error(str(error))
    if not found:
        parser.error("none of these runs has been evaluated yet")
    published = yaml.safe_load(PUBLISHED.read_text())
    size = 4.5 * len(found), 3.2
    figure, axes = plt.subplots(1, len(found), figsize=size, sharey=True, squeeze=False)
    for axis, (name, runs) in zip(axes[0], found.items(), strict=True):
        draw(axis, name, runs, published)
    axes[0, 0].set_ylabel("success rate")
    figure.tight_layout()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=120)


if __name__ == "__main__":
    main()
