"""The part of the report on one benchmark: its tables and its figures, topic by topic."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mtrl.report import cost, cost_figures, figures, results
from mtrl.report.canvas import Canvas, Drawn
from mtrl.report.comparisons import compare
from mtrl.report.cost import Cost
from mtrl.report.figures import Curves
from mtrl.report.groups import Benchmark, Group, differing, settings, speed_warning
from mtrl.report.looks import plain, styles
from mtrl.report.results import Scores
from mtrl.report.statistics import Unit
from mtrl.report.tables import Column, Table


@dataclass(frozen=True)
class Topic:
    """A heading of the page, and what stands below it."""

    title: str
    tables: Sequence[Table] = ()
    figures: Sequence[Drawn | None] = ()
    """None: the runs did not log what it shows."""
    sentences: Sequence[str] = ()
    warnings: Sequence[str] = ()


class Section:
    """Methods stand in the order of their final scores, the best first."""

    def __init__(
        self,
        benchmark: Benchmark,
        *,
        metric: str,
        unit: Unit,
        baseline: str,
        width: float,
        highlight: Sequence[str] = (),
    ) -> None:
        self.benchmark, self.metric, self.unit = benchmark, metric, unit
        self.name, self.tasks, self.runs = benchmark.name, benchmark.tasks, benchmark.runs
        self.folder = re.sub(r"[^A-Za-z0-9_.-]+", "_", benchmark.name)
        final = {g.label: results.final_scores(g, self.tasks, metric) for g in benchmark.groups}
        self.groups = sorted(benchmark.groups, key=lambda group: _rank(final[group.label]))
        self.final = {group.label: final[group.label] for group in self.groups}
        self.best = {g.label: results.best_scores(g, self.tasks, metric) for g in self.groups}
        self.wanted = baseline
        self.baseline = next((g.label for g in benchmark.groups if g.is_called(baseline)), None)
        self.comparisons = compare(self.final, self.baseline, unit) if self.baseline else []
        self.has_epochs = any(len(cost.epoch_seconds(run)) for run in self.runs)
        success = metric == "eval/success"
        in_front = [g.label for g in self.groups if any(map(g.is_called, highlight))]
        self.canvas = Canvas(
            width,
            styles(list(self.final), self.baseline, in_front),
            "success rate" if success else plain(metric),
            "environment steps, all tasks" if success else "training steps",
        )

    def topics(self) -> Iterator[Topic]:
        """Those about which the runs have something to say."""
        curves = {
            group.label: results.curves(group, self.tasks, self.metric, self.unit)
            for group in self.groups
        }
        curves = {label: of for label, of in curves.items() if len(of["mean"].steps)}
        yield Topic("Results", (self._results(),), self._score_figures(curves))
        if self.baseline is None:
            have = ", ".join(group.label for group in self.groups)
            said = f"No comparison: no run of the baseline {self.wanted} (here: {have})."
            yield Topic("Comparison", sentences=(said,))
        elif self.comparisons:
            yield Topic(
                f"Compared with {self.baseline}",
                (self._comparisons(),),
                (figures.improvement(self.canvas, self.comparisons),),
                [one.sentence for one in self.comparisons],
            )
        yield self._cost(curves if _is_drawn(curves) else {})
        if curves:
            drawn = (
                figures.task_curves(self.canvas, curves, self.tasks) if _is_drawn(curves) else None,
                figures.heat_map(self.canvas, self.final, self.tasks),
            )
            yield Topic("Tasks", figures=drawn)
        if conflict := cost_figures.conflict(self.canvas, self.groups):
            yield Topic("Gradient conflict", figures=(conflict,))
        yield Topic("Runs", (self._runs(),))
        table = self._settings()
        none = () if table.rows else ("None, apart from the seed.",)
        yield Topic("Settings that differ", (table,) if table.rows else (), sentences=none)

    # -- results --------------------------------------------------------------------------------

    def _results(self) -> Table:
        rows = [
            (
                group.label,
                len(group.finished),
                len(group.runs),
                *(
                    statistic(self.unit)
                    for scores in (self.final[group.label], self.best[group.label])
                    for statistic in (scores.mean, scores.interquartile_mean)
                ),
            )
            for group in self.groups
        ]
        columns = (
            Column("method", "method", text=True),
            Column("finished", "finished"),
            Column("runs", "runs"),
            Column("final_mean", "final mean", interval=True),
            Column("final_iqm", "final IQM", interval=True),
            Column("best_mean", "best mean", interval=True),
            Column("best_iqm", "best IQM", interval=True),
        )
        return Table("results", columns, rows, in_paper=True)

    def _score_figures(self, curves: Curves) -> list[Drawn | None]:
        if not curves:
            return []
        unfinished = {group.label: self._standing(group) for group in self.groups}
        finished = {label: scores for label, scores in self.final.items() if len(scores.runs)}
        taus = results.thresholds([scores.table for scores in finished.values()])
        profiles = {label: results.profile(of, taus, self.unit) for label, of in finished.items()}
        return [
            figures.score_intervals(self.canvas, self.final, self.best, unfinished, self.unit),
            figures.learning_curves(self.canvas, curves) if _is_drawn(curves) else None,
            figures.profiles(self.canvas, profiles),
        ]

    def _standing(self, group: Group) -> list[float]:
        """Last scores of the unfinished runs that have any."""
        unfinished = [run for run in group.runs if not run.finished]
        tables = [results.evaluations(run, self.tasks, self.metric)[1] for run in unfinished]
        return [float(table[-1].mean()) for table in tables if len(table)]

    def _comparisons(self) -> Table:
        rows = [
            (
                one.method,
                *one.runs,
                one.test.name,
                one.verdict,
                one.test.difference,
                one.test.p_value,
                one.p_holm,
                one.improvement,
                one.run_improvement,
                one.test.seeds_needed,
            )
            for one in self.comparisons
        ]
        columns = (
            Column("method", "method", text=True),
            Column("runs", "runs"),
            Column("baseline_runs", "baseline's runs"),
            Column("test", "test", text=True),
            Column("verdict", "verdict at 95%", text=True),
            Column("difference", "difference", interval=True),
            Column("p", "p", 4),
            Column("p_holm", "p (Holm)", 4),
            Column("probability", "P(improvement), mean over tasks", interval=True),
            Column("share_of_runs", "P(improvement), share of runs", interval=True),
            Column("seeds_needed", "seeds needed", 0),
        )
        return Table("comparisons", columns, rows, in_paper=True)

    # -- cost -----------------------------------------------------------------------------------

    def _cost(self, curves: Curves) -> Topic:
        seconds_of = cost.epoch_seconds if self.has_epochs else cost.update_seconds
        found = cost.costs(self.groups, self.baseline or "", seconds_of)
        what = "epoch" if self.has_epochs else "10,000 updates"
        overlapping = [one.method for one in found if one.overlaps]
        warnings = [speed_warning(self.runs)]
        if overlapping:
            warnings.append(
                f"The quartiles of the times overlap with those of {self.baseline}: "
                f"{', '.join(overlapping)}. The ratios of these times show no difference."
            )
        clock = {
            group.label: curve
            for group in self.groups
            if group.label in curves
            and (curve := cost.over_time(group, curves[group.label]["mean"])) is not None
        }
        name = "epoch_time" if self.has_epochs else "update_time"
        drawn = (
            cost_figures.times(self.canvas, self.groups, seconds_of, name, f"seconds per {what}"),
            cost_figures.memory(self.canvas, self.groups),
            cost_figures.wall_clock(self.canvas, clock),
        )
        table = self._cost_table(found, what)
        return Topic("Cost", (table,), drawn, warnings=list(filter(None, warnings)))

    def _cost_table(self, found: Sequence[Cost], what: str) -> Table:
        rows = [
            (
                one.method,
                one.values,
                one.seconds,
                one.ratio,
                "yes" if one.overlaps else "-",
                one.hours,
                one.memory_mib,
                one.memory_ratio,
            )
            for one in found
        ]
        columns = (
            Column("method", "method", text=True),
            Column("values", "values"),
            Column("seconds", f"seconds per {what}, median [quartiles]", 1, interval=True),
            Column("ratio", "time, ratio to the baseline", 2),
            Column("overlaps", "quartiles overlap with the baseline's", text=True),
            Column("hours", "hours of training"),
            Column("memory_mib", "peak memory, MiB", 0),
            Column("memory_ratio", "memory, ratio to the baseline", 2),
        )
        return Table("cost", columns, rows, in_paper=True)

    # -- what was run ---------------------------------------------------------------------------

    def _runs(self) -> Table:
        rows = []
        for group in self.groups:
            for run in group.runs:
                steps, table = results.evaluations(run, self.tasks, self.metric)
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
                        float(means[-1]),
                        float(means[best]),
                        int(steps[best]) if len(steps) else "no evaluation yet",
                        run.protocol,
                        run.now.reason,
                    )
                )
        columns = (
            Column("run", "run", text=True),
            Column("method", "method", text=True),
            Column("seed", "seed"),
            Column("status", "status", text=True),
            Column("step", "step"),
            Column("of", "of"),
            Column("last", "last"),
            Column("best", "best"),
            Column("best_at", "best at"),
            Column("protocol", "protocol", text=True),
            Column("reason", "reason", text=True),
        )
        return Table("runs", columns, rows)

    def _settings(self) -> Table:
        rows = differing([settings(group.runs[0]) for group in self.groups])
        columns = [Column(group.label, group.label) for group in self.groups]
        shown = [(key, *("-" if v is None else str(v) for v in row)) for key, row in rows.items()]
        return Table("settings", (Column("setting", "setting", text=True), *columns), shown)


def _is_drawn(curves: Curves) -> bool:
    """A score that is measured once, such as test/accuracy, has no curve."""
    return any(len(of["mean"].steps) > 1 for of in curves.values())


def _rank(scores: Scores) -> float:
    """The lower the better; what has no final score comes last."""
    return -float(scores.by_run.mean()) if len(scores.runs) else math.inf
