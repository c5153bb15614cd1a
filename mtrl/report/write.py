"""`mtrl report`: run directories -> report.html, and every figure as PNG, SVG and CSV."""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from mtrl import __version__
from mtrl.options.command_words import read_options
from mtrl.report import figures, page, results
from mtrl.report.figures import Drawn, Words
from mtrl.report.groups import (
    Benchmark,
    Group,
    benchmarks,
    differing,
    machines,
    settings,
    speed_warning,
)
from mtrl.report.looks import plain, styles
from mtrl.report.results import Comparison, Scores
from mtrl.run.state import Run, find_runs, read_run, read_series
from mtrl.schema import ConfigError, nearest

DPI = 200
DEFAULT_BASELINE = "unitary"


@dataclass(frozen=True)
class ReportOptions:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, or folders that hold some; finished or not."""
    out: Path = Path("report")
    """Folder for report.html and the figures; files of an earlier report there are replaced."""
    baseline: str = ""
    """Method that the others are compared with; unitary if empty and there."""
    bootstrap: Literal["runs", "tasks"] = "runs"
    """What a bootstrap draws: whole runs, or runs separately for every task (Agarwal et al. 2021,
    rliable), which makes intervals too narrow where the tasks of a run share a network."""
    metric: str = "eval/success"
    """The score: tags METRIC/<task>, higher is better."""


def report_command(words: list[str]) -> None:
    print(write_report(read_options(ReportOptions, "mtrl report", words, bare="runs")))


def write_report(options: ReportOptions) -> Path:
    """-> report.html. ConfigError if there are no runs, no such metric, or no such baseline."""
    tags = (f"{options.metric}/", "gradients/", "time/updates_per_s", "time/epoch_s", "memory/")
    asked = [path.expanduser() for path in options.runs]
    every = [read_run(path, tags) for path in find_runs(asked)]
    broken = [run for run in every if run.broken]
    runs = [run for run in every if not run.broken]
    if not runs:
        shown = ", ".join(map(str, asked))
        raise ConfigError("RUNS", shown, f"holds broken runs only: {broken[0].broken}")
    _check_metric(runs, options.metric)
    found = benchmarks(runs, options.metric, options.baseline or DEFAULT_BASELINE)
    known = sorted({name for b in found for g in b.groups for name in (g.label, g.method)})
    if options.baseline and options.baseline not in known:
        raise ConfigError(
            "baseline",
            options.baseline,
            f"no such method among the runs: {', '.join(known)}{nearest(options.baseline, known)}",
        )
    out = options.out.expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("out", str(out), f"cannot be made: {error.strerror}") from None
    options = dataclasses.replace(options, out=out)
    parts = [page.heading(1, "Multi-task runs: report"), _summary(found, options)]
    parts += [page.warning(f"{run.path} is BROKEN and left out: {run.broken}.") for run in broken]
    for benchmark in found:
        with figures.styled():
            parts += Section(benchmark, options).parts()
    parts += _provenance(runs)
    path = options.out / "report.html"
    path.write_text(page.page("mtrl report", parts))
    return path


def _check_metric(runs: Sequence[Run], metric: str) -> None:
    """ConfigError if the runs have scores, but none of this name; it says which there are."""
    if "/" in metric and any(tag.startswith(f"{metric}/") for run in runs for tag in run.series):
        return
    tags = {
        tag for run in runs for tag in read_series(run.path / "metrics.jsonl", ("eval/", "test/"))
    }
    known = sorted({"/".join(tag.split("/")[:2]) for tag in tags if tag.count("/") > 1})
    if known:
        there = f"no run has such a score; there are {', '.join(known)}{nearest(metric, known)}"
        raise ConfigError("metric", metric, there)


def _summary(found: Sequence[Benchmark], options: ReportOptions) -> str:
    drawn = "whole runs" if options.bootstrap == "runs" else "runs, separately for every task"
    listed = [
        f"{b.name}: {len(b.groups)} methods, {len(b.runs)} runs, "
        f"{sum(run.finished for run in b.runs)} finished"
        for b in found
    ]
    return page.bullets(listed) + page.paragraph(
        f"mtrl {__version__}. Score: {options.metric}, mean over tasks, higher is better. "
        f"Intervals in brackets: 95%, percentile bootstrap, which draws {drawn}; with few seeds "
        "they are too narrow, so verdicts rest on Welch's t test of the runs' means instead. "
        "Formulas: docs/report.md.",
        "note",
    )


class Section:
    """The part of the report on one benchmark."""

    def __init__(self, benchmark: Benchmark, options: ReportOptions) -> None:
        self.benchmark, self.options = benchmark, options
        self.groups, self.tasks = benchmark.groups, benchmark.tasks
        self.final = {g.label: self._scores(g, best=False) for g in self.groups}
        self.best = {g.label: self._scores(g, best=True) for g in self.groups}
        self.has_epochs = any(len(results.epoch_seconds(run)) for run in benchmark.runs)
        baseline = self._baseline()
        labels = [group.label for group in self.groups]
        self.looks = styles(labels, baseline.label if baseline else None)
        self.folder = re.sub(r"[^A-Za-z0-9_.-]+", "_", benchmark.name)
        success = options.metric == "eval/success"
        self.words = Words(
            "success rate" if success else plain(options.metric),
            "environment steps, all tasks" if success else "training steps",
        )

    def _scores(self, group: Group, *, best: bool) -> Scores:
        choose = results.best_scores if best else results.final_scores
        return choose(group, self.tasks, self.options.metric)

    def parts(self) -> list[str]:
        baseline = self._baseline()
        comparisons: list[Comparison] = []
        if baseline:
            comparisons = results.compare(
                self.benchmark, baseline, self.options.metric, self.options.bootstrap
            )
        return [
            page.heading(2, self.benchmark.name),
            *map(page.warning, self.benchmark.warnings),
            page.heading(3, "Results"),
            self._results(),
            *self._comparisons(baseline, comparisons),
            page.heading(3, "Figures"),
            *(self._save(drawn) for drawn in self._figures(comparisons) if drawn),
            page.heading(3, "Runs"),
            self._runs(),
            page.heading(3, "Settings that differ"),
            self._settings(),
        ]

    def _baseline(self) -> Group | None:
        wanted = self.options.baseline or DEFAULT_BASELINE
        return next(
            (g for name in ("label", "method") for g in self.groups if getattr(g, name) == wanted),
            None,
        )

    # -- tables ---------------------------------------------------------------------------------

    def _results(self) -> str:
        unit = self.options.bootstrap
        rows = []
        for group in self.groups:
            final, best = self.final[group.label], self.best[group.label]
            seconds_of = results.epoch_seconds if self.has_epochs else results.update_seconds
            seconds = [seconds_of(run) for run in group.runs]
            memory = [results.memory_mib(run) for run in group.runs]
            known = [mib for mib in memory if not math.isnan(mib)]
            times = np.concatenate(seconds)
            rows.append(
                (
                    group.label,
                    f"{len(group.finished)} of {len(group.runs)}",
                    page.with_interval(final.mean(unit)),
                    page.with_interval(final.interquartile_mean(unit)),
                    page.with_interval(best.mean(unit)),
                    page.with_interval(best.interquartile_mean(unit)),
                    page.number(float(np.median(times)) if times.size else math.nan, 1),
                    page.number(max(known, default=math.nan), 0),
                )
            )
        columns = ("method", "runs finished", "final mean", "final IQM", "best mean", "best IQM")
        what = "epoch" if self.has_epochs else "10,000 updates"
        speed = (f"{what}, median s", "peak memory, MiB")
        warned = speed_warning(self.benchmark.runs)
        shown = page.table((*columns, *speed), rows)
        return shown + (page.warning(warned) if warned else "")

    def _comparisons(self, baseline: Group | None, comparisons: Sequence[Comparison]) -> list[str]:
        if baseline is None:
            have = ", ".join(group.label for group in self.groups)
            wanted = self.options.baseline or DEFAULT_BASELINE
            return [
                page.paragraph(f"No comparison: no run of the baseline {wanted} (here: {have}).")
            ]
        if not comparisons:
            return []
        exact: tuple[str, ...] = ("method", "baseline", "runs", "baseline_runs", "verdict")
        exact += ("difference", "difference_low", "difference_high", "p", "p_holm")
        exact += ("probability", "probability_low", "probability_high", "seeds_needed")
        self._csv(
            "comparisons",
            exact,
            [
                (one.method, one.baseline, *one.runs, one.verdict, *one.difference, one.p_value,
                 one.p_holm, *one.improvement, one.seeds_needed)
                for one in comparisons
            ],
        )  # fmt: skip
        columns = ("method", "runs", "verdict at 95%", "difference", "p", "p (Holm)")
        more = ("P(improvement)", "seeds needed")
        rows = [
            (
                one.method,
                f"{one.runs[0]} and {one.runs[1]}",
                one.verdict,
                page.with_interval(one.difference),
                page.number(one.p_value, 4),
                page.number(one.p_holm, 4),
                page.with_interval(one.improvement),
                page.number(one.seeds_needed, 0),
            )
            for one in comparisons
        ]
        return [
            page.heading(3, f"Compared with {baseline.label}"),
            page.bullets([one.sentence for one in comparisons]),
            page.table((*columns, *more), rows, text=("verdict at 95%",)),
            page.paragraph(
                "Difference of the final means with Welch's 95% interval; p, two-sided, and "
                "adjusted for the number of comparisons (Holm); probability of improvement with "
                "its bootstrap interval; seeds needed per method to find the seen difference with "
                "80% power.",
                "note",
            ),
        ]

    def _runs(self) -> str:
        columns = ("run", "method", "seed", "status", "step", "of", "last", "best", "best at",
                   "protocol", "reason")  # fmt: skip
        rows = []
        for group in self.groups:
            for run in group.runs:
                steps, table = results.evaluations(run, self.tasks, self.options.metric)
                means = table.mean(1) if len(steps) else np.array([math.nan])
                best = int(np.argmax(means))
                rows.append(
                    (
                        run.path,
                        group.label,
                        run.seed,
                        run.state if run.finished else f"UNFINISHED: {run.state}",
                        run.step,
                        run.total_steps,
                        page.number(float(means[-1])),
                        page.number(float(means[best])),
                        int(steps[best]) if len(steps) else "no evaluation yet",
                        run.protocol,
                        run.status.get("reason", ""),
                    )
                )
        self._csv("runs", columns, rows)
        return page.table(columns, rows, text=("method", "status", "protocol", "reason"))

    def _settings(self) -> str:
        rows = differing([settings(group.runs[0]) for group in self.groups])
        if not rows:
            return page.paragraph("None, apart from the seed.")
        columns = ("setting", *(group.label for group in self.groups))
        shown = [
            (key, *("-" if value is None else value for value in row)) for key, row in rows.items()
        ]
        return page.table(columns, shown)

    # -- figures --------------------------------------------------------------------------------

    def _figures(self, comparisons: Sequence[Comparison]) -> Iterable[Drawn | None]:
        options, looks, words = self.options, self.looks, self.words
        curves = {
            group.label: results.curves(group, self.tasks, options.metric, options.bootstrap)
            for group in self.groups
        }
        curves = {label: of for label, of in curves.items() if len(of["mean"].steps)}
        if curves:
            yield figures.learning_curves(curves, looks, words)
            unfinished = {group.label: self._standing(group) for group in self.groups}
            yield figures.score_intervals(
                self.final, self.best, unfinished, looks, words, options.bootstrap
            )
            yield figures.improvement(comparisons, looks)
            yield figures.task_curves(curves, self.tasks, looks, words)
            yield figures.heat_map(self.final, self.tasks, words)
        draw_times = figures.epoch_time if self.has_epochs else figures.update_time
        yield draw_times(self.groups, looks)
        yield figures.memory(self.groups, looks)
        yield figures.conflict(self.groups, looks, words)

    def _standing(self, group: Group) -> list[float]:
        """Last scores of the unfinished runs that have any."""
        unfinished = [run for run in group.runs if not run.finished]
        tables = [results.evaluations(r, self.tasks, self.options.metric)[1] for r in unfinished]
        return [float(table[-1].mean()) for table in tables if len(table)]

    def _save(self, drawn: Drawn) -> str:
        folder = self.options.out / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        drawn.figure.savefig(folder / f"{drawn.name}.png", dpi=DPI, metadata={"Software": None})
        drawn.figure.set_layout_engine("none")  # laid out: not a second time for the SVG
        svg = folder / f"{drawn.name}.svg"
        drawn.figure.savefig(svg, metadata={"Date": None, "Creator": None})
        self._csv(drawn.name, drawn.columns, drawn.rows)
        links = [f"{self.folder}/{drawn.name}.{ending}" for ending in ("png", "svg", "csv")]
        return page.figure(svg.read_bytes(), drawn.caption, links)

    def _csv(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        folder = self.options.out / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)


def _provenance(runs: Sequence[Run]) -> list[str]:
    """Versions and machines behind the runs."""
    found = machines(runs)
    keys = dict.fromkeys(key for entry in found for key in entry["what"])
    columns = ("runs", *(_names(entry["runs"]) for entry in found))
    rows = [(key, *(_shown(entry["what"].get(key)) for entry in found)) for key in keys]
    parts = [page.heading(2, "Versions and machines"), page.table(columns, rows)]
    if len(found) > 1:
        parts.append(page.paragraph("The runs were not all made by the same versions and machine."))
    return parts


def _names(runs: Sequence[Run]) -> str:
    """`pcgrad 1, pcgrad 2, ... (7 runs)`"""
    names = [f"{run.method} {run.seed}" for run in runs]
    return (
        ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]}, ... ({len(names)} runs)"
    )


def _shown(value: object) -> str:
    return "-" if value is None else str(value)
