"""Test scores of finished supervised runs: mean and 95% interval over seeds, Delta_m, mean rank.

    python scripts/compare_supervised.py runs/supervised_digits --baseline unitary
    python scripts/compare_supervised.py runs/supervised_multi_mnist_cl_rr --baseline single_tasks
    python scripts/compare_supervised.py runs/supervised_nyuv2 --baseline published
    python scripts/compare_supervised.py runs/supervised_nyuv2 --baseline single_task.yaml
    python scripts/compare_supervised.py runs/supervised_digits --markdown docs/supervised.md
    python scripts/compare_supervised.py runs/supervised_digits --figure delta_m.png
    python scripts/compare_supervised.py runs/supervised_digits --reference reference.yaml

The interval is Student's, over runs. Delta_m: POSITIVE is better (mtrl.supervised.comparison).
single_tasks: the folder's runs of one task each (`mtrl supervised ... --tasks NAME`), of every seed
that all tasks have.
published: what Nash-MTL's code has for single tasks, of nyuv2 and qm9. A file has your own values:
{segmentation: {mean_iou: 0.39, pixel_accuracy: 0.64}, depth: {absolute_error: 0.61, ...}, ...}.
--reference writes the best validation scores of the runs of one task. Laid over a configuration,
`mtrl supervised supervised_digits reference.yaml` keeps the model with the best Delta_m against
them.
Time: the median training time of an epoch. Figure: Delta_m of every run, means and intervals.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import stats

from mtrl.report.canvas import Canvas, styled
from mtrl.report.groups import benchmarks, differing, settings
from mtrl.report.looks import styles
from mtrl.report.markdown import MarkedPlace, Table
from mtrl.report.page import DPI
from mtrl.run.state import Run, find_runs, read_run
from mtrl.run.tags import LOWER_IS_BETTER
from mtrl.schema import ConfigError
from mtrl.supervised.comparison import (
    Scores,
    delta_m,
    given_scores,
    mean_over_tasks,
    mean_ranks,
    published_scores,
)

SINGLE = "single_tasks"
WIDTH = 7.0  # inches of the figure
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
    mean = f"{np.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {half_width(values):.4f}"


def half_width(values: list[float]) -> float:
    """Of Student's 95% interval; 0 of a single value."""
    n = len(values)
    return float(stats.t.ppf(0.975, n - 1)) * np.std(values, ddof=1) / n**0.5 if n > 1 else 0.0


def draw(path: Path, gains: Mapping[str, list[float]], baseline: str) -> None:
    """gains: Delta_m of each run, by method."""
    methods = sorted(gains, key=lambda method: -float(np.mean(gains[method])))
    looks = styles(methods, baseline)
    with styled():
        canvas = Canvas(WIDTH, looks, f"Delta_m against {baseline}, %", "")
        figure, (axes,) = canvas.rows_of_methods(methods)
        for y, method in enumerate(methods):
            look, values = looks[method], gains[method]
            mean, half = float(np.mean(values)), half_width(values)
            axes.plot(values, [y + 0.25] * len(values), "|", color=look.color, markersize=5)
            axes.plot(mean, y, look.marker, color=look.color, markersize=5)
            axes.plot([mean - half, mean + half], [y, y], color=look.color, linewidth=1.8)
        axes.axvline(0.0, color="0.6", linewidth=0.8, zorder=1)
        axes.set_xlabel(canvas.score)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI)


def joined(runs: list[Run]) -> list[Scores]:
    """Runs of one task each -> the scores of all tasks, of every seed that all of them have.

    Raises ConfigError if runs of one task differ in their settings.
    """
    found = benchmarks(runs, "test", "")
    for benchmark in found:
        if len(benchmark.groups) > 1:
            labels = ", ".join(group.label for group in benchmark.groups)
            allowed = f"the runs of one task must have one setting; {benchmark.name} has {labels}"
            raise ConfigError("baseline", SINGLE, allowed)
    of_tasks = [{r.seed: test_scores(r) for r in one.groups[0].runs} for one in found]
    seeds = sorted(set.intersection(*map(set, of_tasks))) if of_tasks else []
    return [{key: v for one in of_tasks for key, v in one[seed].items()} for seed in seeds]


def write_reference(path: Path, runs: list[Run]) -> None:
    """The mean over seeds of the best validation score, of every metric; a configuration's part."""
    best: dict[str, list[float]] = {}
    for run in runs:
        for tag, series in run.series.items():
            prefix, *key = tag.split("/")
            if prefix == "eval" and len(key) == 2:
                top = min if key[0] in LOWER_IS_BETTER else max
                best.setdefault("/".join(key), []).append(float(top(series.values)))
    if not best:
        raise ConfigError("reference", str(path), "needs finished runs of one task each (--tasks)")
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    lines = [f"# Best validation scores of single tasks; mean over seeds: {seeds}.", "train:"]
    lines += ["  reference:", *(f"    {key}: {np.mean(v):.6g}" for key, v in sorted(best.items()))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def unlike(single: list[Run], together: list[Run]) -> str:
    """The settings that runs of single tasks have and no other has, but for what is a method's."""
    found = []
    for key, row in differing([settings(run) for run in (*single, *together)]).items():
        alone, others = row[: len(single)], row[len(single) :]
        if not key.startswith(("tasks", "smto.", "rotograd.", "train.reference")):
            found += [f"{key} = {value}" for value in alone if value not in others]
    return ", ".join(dict.fromkeys(found))


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
        help="what Delta_m is relative to: a method, single_tasks, published, or a .yaml file with "
        "scores",
    )
    parser.add_argument(
        "--reference", type=Path, help="write a file for train.reference here, and nothing else"
    )
    parser.add_argument("--figure", type=Path, help="draw Delta_m of every run to this file")
    MarkedPlace.option(parser, "scripts/compare_supervised.py")
    options, doubt = parser.parse_args(), ""
    try:
        every = [
            read_run(path, ("test/", "eval/", "time/epoch_s"))
            for path in find_runs([options.folder])
        ]
        tested = [run for run in every if run.finished and test_scores(run)]
        single = [run for run in tested if len(run.chosen_tasks) == 1]
        together = [run for run in tested if run not in single]
        if options.reference is not None:
            joined(single)  # one setting for each task
            write_reference(options.reference, single)
            return
        if not together:
            parser.error(f"{options.folder} has no finished run that was tested")
        found = benchmarks(together, "test", options.baseline)
        runs = {group.label: list(group.runs) for group in found[0].groups}
        scores = {method: [test_scores(run) for run in own] for method, own in runs.items()}
        keys = list(next(iter(scores.values()))[0])
        if len(found) > 1 or any(set(one) != set(keys) for own in scores.values() for one in own):
            parser.error("the runs are of different problems")
        try:
            alone = [one for one in joined(single) if set(keys) <= one.keys()]
        except ConfigError as error:
            if options.baseline == SINGLE:
                raise
            alone, doubt = [], f"runs of single tasks are left out: {error}"
        if options.baseline == SINGLE and not alone:
            there = ", ".join(sorted({run.chosen_tasks[0] for run in single})) or "no task"
            allowed = f"needs finished runs of every task, with a seed that all have; has {there}"
            raise ConfigError("baseline", SINGLE, allowed)
        means = {
            method: {key: float(np.mean([one[key] for one in own])) for key in keys}
            for method, own in (scores | {SINGLE: alone} if alone else scores).items()
        }
        problem = str(next(iter(runs.values()))[0].config.get("problem", ""))
        baseline = baseline_scores(options.baseline, means, problem)
    except ConfigError as error:
        parser.error(str(error))
    warnings = [*found[0].warnings, *([doubt] if doubt else [])]
    if alone and (differences := unlike(single, together)):
        warnings.append(f"runs of single tasks have {differences}, others do not")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    ranks = mean_ranks({method: means[method] for method in runs})
    columns = {f"{metric}, {task}": [(task, metric)] for task, metric in keys}
    metrics = {metric for _, metric in keys}
    if len(metrics) == 1:
        mean = {f"{metrics.pop()}, mean": keys}
        columns = mean if len(keys) > MANY else columns | mean
    table = Table("method", "seeds", *columns, "Delta_m %", "mean rank", "s / epoch")

    def row(method: str, scores: list[Scores], *more: str) -> None:
        cells = [
            interval([mean_over_tasks(of[0][1], [one[key] for key in of]) for one in scores])
            for of in columns.values()
        ]
        gain = f"{delta_m(means[method], baseline):+.2f}"
        table.add(f"`{method}`", str(len(scores)), *cells, gain, *more)

    if options.figure is not None:
        gains = {method: [delta_m(one, baseline) for one in own] for method, own in scores.items()}
        draw(options.figure, gains, options.baseline)
    for method in sorted(runs, key=ranks.__getitem__):
        row(method, scores[method], f"{ranks[method]:.2f}", epoch_seconds(runs[method]))
    if alone:
        row(SINGLE, alone, "", "")
    table.publish(options.markdown)


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`: what is left has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
