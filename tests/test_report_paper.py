"""What goes into a paper: looks of methods, figures of a given width, tables in LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from run_files import TASKS, write_run

from mtrl.report import canvas, cost_figures, figures, page, results
from mtrl.report.groups import Benchmark, benchmarks
from mtrl.report.looks import BLACK, GREY, OTHER, styles
from mtrl.report.results import Scores
from mtrl.report.section import Section
from mtrl.report.statistics import Interval
from mtrl.report.tables import Column, Table, tex
from mtrl.report.write import ReportOptions, write_report
from mtrl.run.state import read_run

METRIC = "eval/success"
TAGS = (f"{METRIC}/", "gradients/", "time/", "memory/")
NAMES = ["unitary", "_own", "a $b$ [c]", "50% & more_#1~^\\{x}", *(f"m{i}" for i in range(24))]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """28 methods, whatever they are called; the later in NAMES, the better."""
    root = tmp_path_factory.mktemp("many")
    paths = []
    for i, name in enumerate(NAMES):
        score = {500: [0.25] * 4, 1000: [i / 28] * 4}
        paths.append(write_run(root / str(i), score, method=name))
    (found,) = benchmarks([read_run(path, TAGS) for path in paths], METRIC, "unitary")
    return found


def section(benchmark: Benchmark, width: float = 7.0, highlight: tuple[str, ...] = ()) -> Section:
    return Section(
        benchmark, metric=METRIC, unit="runs", baseline="unitary", width=width, highlight=highlight
    )


# -- looks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 8, 9, 28, 100])
def test_methods_look_different_or_grey(count: int) -> None:
    ranked = [f"method {i}" for i in range(count)]
    looks = styles(ranked, "method 0")
    assert list(looks) == ranked
    assert looks["method 0"].color == BLACK
    coloured = [look for look in looks.values() if look != OTHER]
    assert len(coloured) == min(count, 8)
    for part in range(3):  # colour, marker, dashes: each tells all of them apart
        assert len({str(look[part]) for look in coloured}) == len(coloured)
    assert set(ranked[8:]) == {k for k, look in looks.items() if look == OTHER}


def test_looks_without_a_baseline_and_with_a_highlighted_method() -> None:
    ranked = [f"method {i}" for i in range(12)]
    looks = styles(ranked, None, ["method 11"])
    assert all(look.color != BLACK for look in looks.values()), "black is the baseline's"
    grey = [label for label, look in looks.items() if look.color == GREY]
    assert grey == ["method 6", "method 7", "method 8", "method 9", "method 10"]


def test_looks_do_not_change_with_the_ranks() -> None:
    assert styles(["a", "b", "c"], "b") == styles(["c", "b", "a"], "b")


def curves_of(found: Benchmark) -> figures.Curves:
    return {g.label: results.curves(g, found.tasks, METRIC, "runs") for g in found.groups}


def test_curves_of_28_methods_as_they_are_drawn(many: Benchmark, tmp_path: Path) -> None:
    of, curves = section(many), curves_of(many)
    drawn = [
        figures.learning_curves(of.canvas, curves),
        figures.task_curves(of.canvas, curves, many.tasks),
        cost_figures.conflict(of.canvas, many.groups),
    ]
    for one in drawn:
        assert one is not None
        one.figure.savefig(tmp_path / "drawn.png")  # a bad formula fails only when it is drawn
        (legend,) = one.figure.legends
        shown = {text.get_text() for text in legend.get_texts()}
        assert shown == {"unitary", "20 other methods", *(f"m{i}" for i in range(17, 24))}
        lines = [line for line in one.figure.axes[0].lines if line.get_linewidth() > 0.6]
        looks = [(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines]
        assert len(lines) == 28
        assert len(set(looks)) == 9
        assert sum(color == GREY for color, _ in looks) == 20
        assert sum(color == BLACK for color, _ in looks) == 1
        assert all(line.get_marker() not in ("", "None") for line in lines)
        assert {row[0] for row in one.rows} == set(NAMES), "the numbers are of all"


def test_a_highlighted_method_is_in_the_legend(many: Benchmark) -> None:
    of = section(many, highlight=("_own",))
    drawn = figures.learning_curves(of.canvas, curves_of(many))
    (legend,) = drawn.figure.legends
    shown = {text.get_text() for text in legend.get_texts()}
    assert shown == {"unitary", "_own", "20 other methods", *(f"m{i}" for i in range(18, 24))}


@pytest.mark.parametrize(("count", "banded"), [(5, 5), (6, 1), (8, 1)])
def test_few_bands_or_the_baselines_alone(many: Benchmark, count: int, banded: int) -> None:
    few = dataclasses.replace(many, groups=many.groups[:count])
    drawn = figures.learning_curves(section(few).canvas, curves_of(few))
    bands = [tuple(band.get_facecolor()[0, :3]) for band in drawn.figure.axes[0].collections]
    assert len(bands) == banded
    assert (0.0, 0.0, 0.0) in bands


# -- figures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3.3, 7.0])
def test_figures_are_as_wide_as_asked_and_nothing_is_cut(many: Benchmark, width: float) -> None:
    of = section(many, width)
    with canvas.styled():
        drawn = [one for topic in of.topics() for one in topic.figures if one]
        assert len(drawn) == 10
        for one in drawn:
            assert one.figure.get_figwidth() == width
            assert_whole(one.figure, one.name)


def assert_whole(figure: Figure, name: str) -> None:
    """All text lies inside the figure."""
    figure.draw_without_rendering()
    box, outer = figure.get_tightbbox(), figure.bbox_inches
    slack = 0.03  # inches
    assert box.x0 >= outer.x0 - slack, name
    assert box.x1 <= outer.x1 + slack, name
    assert box.y0 >= outer.y0 - slack, name
    assert box.y1 <= outer.y1 + slack, name


def test_profile_is_the_share_above_each_value() -> None:
    table = np.random.default_rng(0).binomial(10, 0.6, (3, 4)) / 10
    runs = tuple(range(3))
    curve = results.profile(Scores(runs, table), results.thresholds([table]), "runs")
    for tau, share in zip(curve.steps, curve.middle, strict=True):
        above = 0
        for run in range(3):
            for task in range(4):
                above += table[run, task] > tau
        assert share == pytest.approx(above / 12)
    assert curve.steps[0] == 0
    assert curve.steps[-1] == 1
    assert (curve.low <= curve.middle).all()
    assert (curve.middle <= curve.high).all()


def test_thresholds_are_the_rates_themselves() -> None:
    """A score of 0.29 is not above 0.29, which sums of 0.01 would make 0.29000000000000004."""
    rates = np.array([[k / 100] for k in range(101)])
    taus = results.thresholds([rates])
    curve = results.profile(Scores(tuple(range(101)), rates), taus, "runs")
    assert curve.middle == pytest.approx(np.arange(100, -1, -1) / 101, abs=1e-12)
    others = results.thresholds([np.array([[-3.0]]), np.array([[5.0]])])
    assert (others[0], others[-1], len(others)) == (-3, 5, 101)


# -- tables -----------------------------------------------------------------------------------


def unescaped(text: str) -> str:
    """What LaTeX prints."""
    names = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^",
             "textless": "<", "textgreater": ">", "textbar": "|"}  # fmt: skip
    text = re.sub(r"\\(text[a-z]+)\{\}", lambda found: names[found[1]], text)
    text = re.sub(r"\\([&%$#_{}])", r"\1", text)
    return text.replace("$-$", "-")


@pytest.mark.parametrize("name", [*NAMES, "c_{0.5} < 1 > 0 | x", "cagrad (c=-0.4)", "a-2"])
def test_special_characters_of_latex(name: str) -> None:
    escaped = tex(name)
    assert unescaped(escaped) == name
    assert not re.search(r"(?<!\\)[&%#_~^]", escaped)
    assert escaped.count("$") % 2 == name.count("$") % 2


def test_minus_signs_and_rows_that_begin_with_a_bracket() -> None:
    assert tex("-0.5 [-0.7,\u00a00.1]") == "$-$0.5 [$-$0.7,~0.1]"
    assert tex("multi-task, 3-4") == "multi-task, 3-4"
    assert tex("[c]") == "{[c]}", "after the line before, \\\\[c] would be a distance"


def test_table_in_latex_and_csv(tmp_path: Path) -> None:
    columns = (Column("method", "method", text=True), Column("mean", "mean, %", 2, interval=True))
    rows = [("a_b", Interval(1 / 3, 0.25, 0.5)), ("c", Interval(float("nan")))]
    names = page.save_table(Table("both", columns, rows, in_paper=True), tmp_path)
    assert names == ["both.tex", "both.csv"]
    assert (tmp_path / "both.tex").read_text().splitlines() == [
        r"% \usepackage{booktabs}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"method & mean, \% \\",
        r"\midrule",
        r"a\_b & 0.33 [0.25,~0.50] \\",
        r"c & - \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    with open(tmp_path / "both.csv", newline="") as file:
        exact = list(csv.reader(file))
    assert exact[0] == ["method", "mean", "mean_low", "mean_high"]
    assert [float(cell) for cell in exact[1][1:]] == [1 / 3, 0.25, 0.5]


def test_in_latex_a_column_that_says_one_thing_is_a_comment(tmp_path: Path) -> None:
    columns = (Column("runs", "runs"), Column("test", "test", text=True), Column("p", "p"))
    page.save_table(Table("t", columns, [(4, "paired t", 0.1), (4, "paired t", 0.2)]), tmp_path)
    assert "paired t" in (tmp_path / "t.csv").read_text()
    page.save_table(
        Table("t", columns, [(4, "paired t", 0.1), (4, "paired t", 0.2)], in_paper=True), tmp_path
    )
    lines = (tmp_path / "t.tex").read_text().splitlines()
    assert lines[1] == "% in every row: test = paired t"
    assert lines[4] == r"runs & p \\"
    assert lines[6:8] == [r"4 & 0.100 \\", r"4 & 0.200 \\"], "the first column names the rows"
    page.save_table(Table("t", columns, [(4, "paired t", 0.1)], in_paper=True), tmp_path)
    assert r"4 & paired t & 0.100 \\" in (tmp_path / "t.tex").read_text(), "one row is whole"


def test_rows_are_sorted_by_score(many: Benchmark) -> None:
    first = next(section(many).topics())
    methods = [row[0] for row in first.tables[0].rows]
    assert methods == NAMES[::-1]


@pytest.mark.usefixtures("no_pictures")
def test_what_has_no_finished_run_comes_last_and_breaks_nothing(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {1000: [0.0] * 4}, method="unitary")
    write_run(tmp_path / "b", {500: [1.0] * 4}, method="famo", status="stopped")
    write_run(tmp_path / "c", {}, method="mgda", status="failed", rates=())
    written = write_report(ReportOptions((tmp_path,), out=tmp_path / "out", figure_width=3.3))
    table = (tmp_path / "out/MT10/results.tex").read_text().splitlines()
    first = table.index(r"\midrule") + 1
    assert [line.split(" & ")[0] for line in table[first : first + 3]] == [
        "unitary",
        "famo",
        "mgda",
    ]
    assert "nan" not in " ".join(table)
    assert "famo against unitary: no finished runs on one side." in written.read_text()


def test_no_finished_run_at_all(tmp_path: Path) -> None:
    for name, steps in {"a": (250, 500), "once": (500,)}.items():
        scores = dict.fromkeys(steps, [0.5] * 4)
        write_run(tmp_path / name, scores, status="stopped", tasks=TASKS)
        (found,) = benchmarks([read_run(tmp_path / name, TAGS)], METRIC, "unitary")
        drawn = {one.name for topic in section(found).topics() for one in topic.figures if one}
        assert ("curves" in drawn) == ("tasks" in drawn) == (len(steps) > 1)
        assert not {"profile", "heat_map", "improvement"} & drawn
