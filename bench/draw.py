"""The figures in docs/ whose numbers benchmarks measured and left in CSV files there.

python bench/draw.py            # all of them
python bench/draw.py docs/smto.csv
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mtrl.report.canvas import STYLE

DOCS = Path(__file__).parent.parent / "docs"
GREY, BLUE, ORANGE, GREEN = "#c9c9c9", "#1f77b4", "#ff7f0e", "#2ca02c"
NEEDS = {"losses": GREY, "gramian": BLUE, "jacobian": ORANGE}
Rows = Sequence[dict[str, str]]


def simulation(rows: Rows) -> Figure:
    """Both steps over the physics, task by task."""
    rows = sorted(
        (row for row in rows if not row["task"].startswith("mean")),
        key=lambda row: float(row["upstream / physics"]),
    )
    figure = Figure((7, 7.5), layout="constrained")
    axes = figure.subplots()
    for column, color, label in (
        ("upstream / physics", GREY, "Meta-World's own step"),
        ("ours / physics", BLUE, "env.fast"),
    ):
        axes.barh(range(len(rows)), [float(r[column]) for r in rows], color=color, label=label)
    axes.axvline(1, color="black", ls="--", label="five MuJoCo steps and a forward pass")
    axes.set_yticks(range(len(rows)), [row["task"].removesuffix("-v3") for row in rows])
    axes.set(ylim=(-0.7, len(rows) - 0.3), xlabel="time of a step, over its physics")
    axes.legend(loc="lower right")
    return figure


def smto(rows: Rows) -> Figure:
    """An update over unitary's: median and quartiles, for each number of tasks."""
    one_by_one = next(row for row in rows if row["needs"] not in NEEDS)
    rows = [row for row in reversed(rows) if row["needs"] in NEEDS]
    sizes = [column for column in rows[0] if column.startswith("m = ")]
    figure = Figure((7, 0.17 * len(rows) + 1), layout="constrained")
    for axes, size in zip(
        figure.subplots(1, len(sizes), sharex=True, sharey=True), sizes, strict=True
    ):
        for y, row in enumerate(rows):
            median, low, high = map(float, row[size].strip(")").replace("(", "-").split("-"))
            color = NEEDS[row["needs"]]
            axes.hlines(y, low, high, color=color)
            axes.plot(median, y, "o", color=color, markersize=4)
        slow = one_by_one[size].split(" ")[0]
        axes.axvline(1, color="black", lw=0.8)
        axes.set_title(f"{size.removeprefix('m = ')} tasks\n(one backward per task: {slow})")
        axes.set(xlabel="time over unitary's", ylim=(-0.7, len(rows) - 0.3))
        axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
    for need, color in NEEDS.items():
        axes.plot([], [], "o-", color=color, label=f"needs: {need}")
    figure.legend(loc="outside lower center", ncols=len(NEEDS))
    return figure


def learner(rows: Rows) -> Figure:
    """An update over the bare matrix products of the same shapes."""
    shapes = list(dict.fromkeys((row["benchmark"], row["width"]) for row in rows))
    names = list(dict.fromkeys(row["what"] for row in rows if row["what"] != "products"))
    figure = Figure((7, 0.28 * len(names) + 1.5), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(shapes)
    for index, (shape, color) in enumerate(zip(shapes, (BLUE, ORANGE, GREEN, GREY), strict=False)):
        ratio = {
            row["what"]: float(row["over the products"])
            for row in rows
            if (row["benchmark"], row["width"]) == shape and row["over the products"]
        }
        places = np.arange(len(names)) + (index - (len(shapes) - 1) / 2) * height
        values = [ratio.get(name, np.nan) for name in names]
        axes.barh(places, values, height, color=color, label=f"{shape[0]}, width {shape[1]}")
    axes.axvline(1, color="black", lw=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("time of an update, over its matrix products in fp32")
    figure.legend(loc="outside lower center", ncols=len(shapes))
    return figure


FIGURES: dict[str, Callable[[Rows], Figure]] = {
    "simulation": simulation,
    "smto": smto,
    "learner": learner,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    every = [DOCS / f"{name}.csv" for name in FIGURES]
    parser.add_argument("files", nargs="*", type=Path, default=every, metavar="FILE")
    for file in parser.parse_args().files:
        if file.stem not in FIGURES:
            parser.error(f"{file}: there are figures of {', '.join(FIGURES)}")
        with open(file, newline="") as opened, matplotlib.rc_context(STYLE):
            figure = FIGURES[file.stem](list(csv.DictReader(opened)))
            FigureCanvasAgg(figure)
            figure.savefig(file.with_suffix(".png"), dpi=110)
        print(file.with_suffix(".png"))


if __name__ == "__main__":
    main()
