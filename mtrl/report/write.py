"""`mtrl report`: run directories -> report.html, figures and tables."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from mtrl import __version__
from mtrl.options.command_words import read_options
from mtrl.report import canvas, page
from mtrl.report.groups import Benchmark, benchmarks, machines
from mtrl.report.looks import COLOURS
from mtrl.report.section import Section, Topic
from mtrl.report.tables import Column, Table
from mtrl.run.state import Run, find_runs, read_run, read_series
from mtrl.run.tags import LOWER_IS_BETTER
from mtrl.schema import ConfigError, nearest

DEFAULT_BASELINE = "unitary"
TITLE = "mtrl report"
NARROWEST, WIDEST = 2.0, 20.0  # inches
TAGS = ("gradients/", "time/updates_per_s", "time/env_steps_per_s", "time/epoch_s", "memory/")


@dataclass(frozen=True)
class ReportOptions:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, or folders that hold some; finished or not."""
    out: Path = Path("report")
    """Folder for report.html, figures and tables; files of an earlier report there are replaced."""
    baseline: str = ""
    """Method that the others are compared with; unitary if empty and there."""
    highlight: tuple[str, ...] = ()
    """Methods that have a colour, seven at most. Without it, of many methods the baseline and the
    best seven have one, and the others are grey."""
    figure_width: float = 7.0
    """Of every figure, inches: a page's text is about 7 wide, a column 3.3."""
    bootstrap: Literal["runs", "tasks"] = "runs"
    """What a bootstrap draws: whole runs, or runs separately for every task (Agarwal et al. 2021,
    rliable), which makes intervals too narrow where the tasks of a run share a network."""
    metric: str = "eval/success"
    """The score: tags METRIC/<task>, higher is better."""


def report_command(words: list[str]) -> None:
    print(write_report(read_options(ReportOptions, "mtrl report", words, bare="runs")))


def write_report(options: ReportOptions) -> Path:
    """-> report.html. ConfigError if there are no runs, or an option does not fit them."""
    if not NARROWEST <= options.figure_width <= WIDEST:
        allowed = f"must be {NARROWEST:g} to {WIDEST:g} inches"
        raise ConfigError("figure-width", options.figure_width, allowed)
    asked = [path.expanduser() for path in options.runs]
    every = [read_run(path, (f"{options.metric}/", *TAGS)) for path in find_runs(asked)]
    broken = [run for run in every if run.state == "broken"]
    runs = [run for run in every if run.state != "broken"]
    if not runs:
        shown = ", ".join(map(str, asked))
        raise ConfigError("RUNS", shown, f"holds broken runs only: {broken[0].now.reason}")
    baseline = options.baseline or DEFAULT_BASELINE
    found = benchmarks(runs, options.metric, baseline)
    found, left_out = _with_metric(found, options.metric)
    _check_methods(found, "baseline", [options.baseline] if options.baseline else [])
    _check_methods(found, "highlight", options.highlight)
    for benchmark in found:
        others = [group for group in benchmark.groups if not group.is_called(baseline)]
        chosen = [group for group in others if any(map(group.is_called, options.highlight))]
        if len(chosen) > len(COLOURS):
            allowed = f"names {len(chosen)} methods; there are {len(COLOURS)} colours"
            raise ConfigError("highlight", " ".join(options.highlight), allowed)
    out = options.out.expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("out", str(out), f"cannot be made: {error.strerror}") from None
    sections = [
        Section(
            benchmark,
            metric=options.metric,
            unit=options.bootstrap,
            baseline=baseline,
            width=options.figure_width,
            highlight=options.highlight,
        )
        for benchmark in found
    ]
    path = out / "report.html"
    _delete_earlier(path)
    with canvas.styled():
        written = [_written(section, out) for section in sections]
    text = page.render(
        "report.html",
        title=TITLE,
        version=__version__,
        options=options,
        broken=broken,
        left_out=left_out,
        sections=written,
        machines=_machines([run for benchmark in found for run in benchmark.runs]),
    )
    path.write_text(text, encoding="utf-8")
    return path


def _delete_earlier(path: Path) -> None:
    """The figures and tables that an earlier report here links to, or some would stay as if they
    were the new one's. A page that is none of ours is only replaced."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if f"<title>{TITLE}</title>" in text:
        for link in re.findall(r'href="(\w[\w.-]*/[\w.-]+\.(?:csv|pdf|png|svg|tex))"', text):
            (path.parent / link).unlink(missing_ok=True)


def _written(section: Section, out: Path) -> dict[str, Any]:
    """The section as its template takes it; its figures and tables are written on the way."""
    folder = out / section.folder
    topics = [_topic(topic, folder) for topic in section.topics()]
    return {"section": section, "topics": topics}


def _topic(topic: Topic, folder: Path) -> dict[str, Any]:
    def links(names: Iterable[str]) -> dict[str, str]:
        return {name.rsplit(".")[-1]: f"{folder.name}/{name}" for name in names}

    tables = [{"table": t, "links": links(page.save_table(t, folder))} for t in topic.tables]
    figures = []
    for drawn in filter(None, topic.figures):
        data, names = page.save_figure(drawn, folder)
        figures.append({"drawn": drawn, "data": data, "links": links(names)})
    return {"topic": topic, "tables": tables, "figures": figures}


def _with_metric(
    found: Sequence[Benchmark], metric: str
) -> tuple[list[Benchmark], list[ConfigError]]:
    """The benchmarks that have this score, or none yet; and why others have not.

    ConfigError if all have others. Or if this score is better where it is lower: a report would
    call the worse method better.
    """
    if metric.rpartition("/")[2] in LOWER_IS_BETTER:
        instead = "is better where it is lower, and a report takes the higher score for the better"
        raise ConfigError("metric", metric, f"{instead}; see scripts/compare_supervised.py")
    kept, left_out = [], []
    for benchmark in found:
        try:
            _check_metric(benchmark, metric)
            kept.append(benchmark)
        except ConfigError as error:
            left_out.append(error)
    if not kept:
        raise left_out[0]
    for reason in left_out:
        print(f"mtrl: warning: left out: {reason}", file=sys.stderr)
    return kept, left_out


def _check_metric(benchmark: Benchmark, metric: str) -> None:
    """ConfigError if its runs have scores, but none of this name; it says which there are."""
    runs = benchmark.runs
    if "/" in metric and any(tag.startswith(f"{metric}/") for run in runs for tag in run.series):
        return
    tags = {
        tag for run in runs for tag in read_series(run.path / "metrics.jsonl", ("eval/", "test/"))
    }
    known = sorted({"/".join(tag.split("/")[:2]) for tag in tags if tag.count("/") > 1})
    if known:
        there = f"no run of {benchmark.name} has such a score; there are {', '.join(known)}"
        raise ConfigError("metric", metric, there + nearest(metric, known))


def _check_methods(found: Sequence[Benchmark], option: str, names: Iterable[str]) -> None:
    known = sorted({name for b in found for g in b.groups for name in (g.label, g.method)})
    for name in names:
        if name not in known:
            there = f"no such method among the runs: {', '.join(known)}{nearest(name, known)}"
            raise ConfigError(option, name, there)


def _machines(runs: Sequence[Run]) -> Table:
    """Versions and machines behind the runs."""
    found = machines(runs)
    keys = dict.fromkeys(key for entry in found for key in entry["what"])
    columns = [Column(names := _names(entry["runs"]), names, text=True) for entry in found]
    rows = [(key, *(_shown(entry["what"], key) for entry in found)) for key in keys]
    return Table("machines", (Column("runs", "runs", text=True), *columns), rows)


def _names(runs: Sequence[Run]) -> str:
    """`pcgrad 1, pcgrad 2, ... (7 runs)`"""
    names = [f"{run.method} {run.seed}" for run in runs]
    return (
        ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]}, ... ({len(names)} runs)"
    )


def _shown(what: Mapping[str, object], key: str) -> str:
    return str(what[key]) if what.get(key) is not None else "-"
