"""Success curves of finished or running runs as one PNG.

    python scripts/plot_success.py runs/quickstart/* --out docs/quickstart.png

Left: mean deterministic success of every run. Right: the first run's tasks (training episodes,
share of the last 10 solved).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mtrl.runs import read_metrics


def read(run: Path, prefix: str) -> dict[str, tuple[list[float], list[float]]]:
    """{tag: (steps, values)} of all tags of a run that start with `prefix`."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for record in read_metrics(run / "metrics.jsonl"):
        for tag, value in record.items():
            if tag.startswith(prefix):
                steps, values = curves.setdefault(tag, ([], []))
                steps.append(record["step"])
                values.append(value)
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    options = parser.parse_args()

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for run in options.runs:
        for steps, values in read(run, "eval/success_mean").values():
            left.plot(steps, values, marker="o", markersize=3, label=run.name)
    left.set(title="mean success, evaluation", ylabel="success rate", ylim=(0, 1.02))
    colours = plt.get_cmap("tab10")
    for index, (tag, (steps, values)) in enumerate(
        read(options.runs[0], "train/episode_success/").items()
    ):
        style = "-" if index < 10 else "--"
        right.plot(steps, values, style, color=colours(index % 10), label=tag.split("/")[-1])
    right.set(title=f"tasks of {options.runs[0].name}, training episodes")
    for axis in (left, right):
        axis.set_xlabel("environment steps, all tasks")
        axis.grid(alpha=0.3)
        axis.ticklabel_format(axis="x", style="sci", scilimits=(3, 3))
    left.legend(fontsize=7, frameon=False)
    right.legend(fontsize=6, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)
    print(options.out)


if __name__ == "__main__":
    main()
