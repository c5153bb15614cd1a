"""The report: what is grouped, computed, warned of and written."""

from __future__ import annotations

import csv
import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from run_files import TASKS, write_run

from mtrl.commands import main as cli
from mtrl.report import canvas, cost_figures, page, results, statistics
from mtrl.report.groups import Benchmark, benchmarks, speed_warning
from mtrl.report.looks import styles
from mtrl.report.write import ReportOptions, write_report
from mtrl.run.state import read_run

METRIC = "eval/success"
TAGS = (f"{METRIC}/", "gradients/", "time/updates_per_s", "memory/")
UNITARY = {1: [1.0, 0.5, 0.5, 0.0], 2: [1.0, 0.5, 0.0, 0.0], 3: [1.0, 1.0, 0.5, 0.5]}
PCGRAD = {1: [1.0, 1.0, 1.0, 0.5], 2: [1.0, 1.0, 0.5, 1.0], 3: [1.0, 1.0, 1.0, 1.0]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods with three finished seeds, one of them with an unfinished fourth; one method
    whose only run failed before its first evaluation."""
    root = tmp_path_factory.mktemp("runs")
    for method, finals in {"unitary": UNITARY, "pcgrad": PCGRAD}.items():
        for seed, final in finals.items():
            scores = {500: [0.75] * 4, 1000: final}
            rates = (0.0, 5.0, 100.0, 200.0) if method == "unitary" else (0.0, 5.0, 50.0)
            write_run(root / f"MT10/{method}/seed_{seed}", scores, method=method, seed=seed,
                      rates=rates)  # fmt: skip
    write_run(root / "MT10/pcgrad/seed_4", {500: [0.25] * 4}, method="pcgrad", seed=4,
              status="running")  # fmt: skip
    write_run(root / "MT10/mgda/seed_1", {}, method="mgda", status="failed", rates=())
    return root


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(ReportOptions((runs,), out=tmp_path_factory.mktemp("out")))


@pytest.fixture(scope="module")
def mt10(runs: Path) -> Benchmark:
    return read(*sorted((runs / "MT10").glob("*/*")))


def read(*paths: Path, baseline: str = "unitary") -> Benchmark:
    (found,) = benchmarks([read_run(path, TAGS) for path in paths], METRIC, baseline)
    return found


def rows(report: Path, name: str) -> list[dict[str, str]]:
    with open(report.parent / name, newline="") as file:
        return list(csv.DictReader(file))


# -- the page ---------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.sources += [values["src"] or ""] if "src" in values else []
        self.links += [values["href"] or ""] if "href" in values else []
        self.ids += [values["id"] or ""] if "id" in values else []
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_stands_alone(report: Path) -> None:
    found = Page(report.read_text())
    assert found.open == []  # every tag is closed
    assert len(found.sources) == 10
    assert all(source.startswith("data:image/svg+xml;base64,") for source in found.sources)
    contents = [link.removeprefix("#") for link in found.links if link.startswith("#")]
    assert contents[0] == "s1"
    assert contents == found.ids
    files = [link for link in found.links if not link.startswith("#")]
    tables = [*("tex", "csv") * 3, "runs.csv", "settings.csv"]
    assert len(files) == 4 * len(found.sources) + len(tables)
    for link in files:
        assert (report.parent / link).stat().st_size > 30
    assert "<script" not in report.read_text()


def test_figures_beside_the_page(report: Path) -> None:
    names = {path.stem for path in (report.parent / "MT10").glob("*.png")}
    assert names == {"curves", "scores", "profile", "improvement", "tasks", "heat_map",
                     "update_time", "memory", "wall_clock", "conflict"}  # fmt: skip
    for name in names:
        assert (report.parent / f"MT10/{name}.svg").read_text().startswith("<?xml")
        assert (report.parent / f"MT10/{name}.pdf").read_bytes().startswith(b"%PDF")
        assert rows(report, f"MT10/{name}.csv")


def test_page_says_what_is_weak(report: Path) -> None:
    text = Page(report.read_text()).text
    assert "mgda: 1 of 1 runs failed or died (out of memory)" in text
    assert "None is finished, so there is no final score" in text
    # Said to be running, but its process is gone.
    assert "pcgrad: 1 of 4 runs failed or died. The numbers are those of the survivors" in text
    assert "UNFINISHED: died" in text
    assert "no evaluation yet" in text
    assert "mgda against unitary: no finished runs on one side" in text
    assert "NOT COMPARABLE" not in text


def test_numbers_of_the_page(report: Path) -> None:
    by_hand = {
        ("unitary", "final"): ([0.5, 0.375, 0.75], 3),
        ("pcgrad", "final"): ([0.875, 0.875, 1.0], 3),
        ("unitary", "best"): ([0.75, 0.75, 0.75], 3),
        ("pcgrad", "best"): ([0.875, 0.875, 1.0], 3),
    }
    found = {(row["method"], row["score"]): row for row in rows(report, "MT10/scores.csv")}
    for key, (means, count) in by_hand.items():
        assert float(found[key]["mean"]) == pytest.approx(np.mean(means))
        assert int(found[key]["runs"]) == count
    assert found["mgda", "final"]["mean"] == "nan"
    test = statistics.paired(*(np.array(by_hand[m, "final"][0]) for m in ("pcgrad", "unitary")))
    compared = {row["method"]: row for row in rows(report, "MT10/comparisons.csv")}
    assert float(compared["pcgrad"]["p"]) == pytest.approx(test.p_value)
    assert float(compared["pcgrad"]["difference_low"]) == pytest.approx(test.difference.low)
    cells = {(r["method"], r["task"]): float(r["final"]) for r in rows(report, "MT10/heat_map.csv")}
    assert cells["pcgrad", "drawer"] == pytest.approx(2.5 / 3)
    times = [
        float(row["seconds"])
        for row in rows(report, "MT10/update_time.csv")
        if row["method"] == "unitary"
    ]
    assert times == pytest.approx([100.0, 50.0] * 3)  # 10,000 / 100 and 10,000 / 200


def test_equal_runs_equal_bytes(mt10: Benchmark, tmp_path: Path) -> None:
    looks = styles([group.label for group in mt10.groups], "unitary")
    written = []
    for name in ("a", "b"):
        with canvas.styled():
            drawn = cost_figures.memory(canvas.Canvas(7.0, looks, "score", "steps"), mt10.groups)
            assert drawn is not None
            _, files = page.save_figure(drawn, tmp_path / name)
        written.append([(tmp_path / name / file).read_bytes() for file in files])
    assert written[0] == written[1]


# -- results ----------------------------------------------------------------------------------


def test_curves_over_the_runs_that_have_come_so_far(mt10: Benchmark) -> None:
    pcgrad = next(group for group in mt10.groups if group.label == "pcgrad")
    curves = results.curves(pcgrad, mt10.tasks, METRIC, "runs")
    assert curves["mean"].steps.tolist() == [500, 1000]
    assert curves["mean"].runs.tolist() == [4, 3]
    assert curves["mean"].middle == pytest.approx([(3 * 0.75 + 0.25) / 4, (0.875 * 2 + 1) / 3])
    finals = np.array(list(PCGRAD.values()))
    whole = statistics.interval(statistics.interquartile_mean, finals)
    assert (curves["iqm"].middle[1], curves["iqm"].low[1], curves["iqm"].high[1]) == whole
    assert curves["task/drawer"].middle[1] == pytest.approx(2.5 / 3)


def test_long_series_are_thinned(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {}, rates=[50.0] * 350, total=350)
    (group,) = read(tmp_path / "a").groups
    curve = results.scalar_curve(group, "memory/learner_mib")
    assert curve is not None
    assert len(curve.steps) == results.MAX_POINTS
    assert curve.middle[0] == pytest.approx(np.mean([400, 401, 402, 403]))
    assert results.scalar_curve(group, "no/such") is None


# -- groups and warnings ----------------------------------------------------------------------


def labels(benchmark: Benchmark) -> dict[str, int]:
    return {group.label: len(group.runs) for group in benchmark.groups}


def test_groups_by_settings(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {}, seed=1)
    same = {"env.workers": 7}  # as without this key
    write_run(tmp_path / "b", {}, seed=2, settings=same)
    options = {"agent.smto": {"name": "cagrad", "options": {"c": 0.4}}}
    write_run(tmp_path / "c", {}, settings=options)
    options = {"agent.smto": {"name": "cagrad", "options": {"c": 0.9}}}
    write_run(tmp_path / "d", {}, settings=options)
    found = read(*tmp_path.iterdir())
    assert labels(found) == {"unitary": 2, "cagrad (c=0.4)": 1, "cagrad (c=0.9)": 1}


def test_several_settings_of_the_baseline_are_said(tmp_path: Path) -> None:
    for number, l2 in enumerate((0.0, 1e-4)):
        write_run(tmp_path / f"u{number}", {}, settings={"agent.actor_l2": l2})
        write_run(tmp_path / f"p{number}", {}, method="pcgrad", settings={"agent.actor_l2": l2})
    (warning,) = read(*sorted(tmp_path.iterdir())).warnings
    assert "2 settings of the baseline unitary" in warning
    assert "compared with unitary (actor_l2=0);" in warning
    assert "unitary (actor_l2=0); unitary (actor_l2=0.0001)." in warning
    chosen = read(*sorted(tmp_path.iterdir()), baseline="unitary (actor_l2=0.0001)")
    assert chosen.warnings == ()
    assert chosen.groups[0].label == "unitary (actor_l2=0.0001)"


def test_variants_are_named_by_what_few_of_them_have(tmp_path: Path) -> None:
    usual = {"agent.tau": 0.02, "agent.gamma": 0.9, "agent.n_step": 5, "agent.lr_decay": 0.5}
    others = {"agent.tau": 0.01, "agent.gamma": 0.5, "agent.n_step": 1, "agent.lr_decay": 0.0}
    for number, (key, value) in enumerate(others.items()):
        write_run(tmp_path / f"a{number}", {}, settings=usual | {key: value})
    write_run(tmp_path / "b", {}, seed=2, settings=usual)
    found = read(*tmp_path.iterdir())
    assert labels(found) == {
        "unitary": 1,
        "unitary (agent.tau=0.01)": 1,
        "unitary (agent.gamma=0.5)": 1,
        "unitary (agent.n_step=1)": 1,
        "unitary (agent.lr_decay=0)": 1,
    }
    assert found.groups[0].label == "unitary", "the baseline"


def test_tasks_of_their_own_are_another_benchmark(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {})
    write_run(tmp_path / "b", {}, settings={"env.tasks": ["reach", "push"]})
    read_runs = [read_run(path, TAGS) for path in tmp_path.iterdir()]
    assert [b.name for b in benchmarks(read_runs, METRIC, "")] == ["MT10", "reach, push"]


def test_long_task_lists_have_names_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tasks = ["reach", "push", "door", name]
        write_run(tmp_path / name, {}, settings={"env.tasks": tasks})
    names = [b.name for b in benchmarks([read_run(p) for p in tmp_path.iterdir()], METRIC, "")]
    assert names == ["4 tasks: reach, ...", "4 tasks: reach, ... (2)"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"protocol": "kurin"}, "different protocols. protocol kurin: pcgrad; protocol mw-plus"),
        ({"protocol": "mw-plus modified (env.horizon=150)"}, "different protocols"),
        ({"total": 2000}, "different numbers of training steps"),
        ({"settings": {"evaluation.episodes_per_task": 50}}, "different evaluations"),
    ],
)
def test_what_is_not_comparable_is_said(tmp_path: Path, other: dict, said: str) -> None:
    write_run(tmp_path / "b", {1000: [0.5] * 4})
    write_run(tmp_path / "a", {1000: [0.5] * 4}, method="pcgrad", **other)
    found = read(*sorted(tmp_path.iterdir()), baseline="")
    assert found.warnings[0].startswith("NOT COMPARABLE")
    assert said in found.warnings[0]


def test_copies_are_not_independent(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {500: [0.5] * 4}, status="stopped")
    write_run(tmp_path / "b", {1000: [0.5] * 4})
    found = read(*tmp_path.iterdir())
    assert [run.path.name for run in found.runs] == ["b"]
    assert any("same settings and seed" in text for text in found.warnings)


def test_speeds_of_different_machines(mt10: Benchmark, tmp_path: Path) -> None:
    assert speed_warning(mt10.runs) == ""
    other = read_run(write_run(tmp_path / "a", {}))
    other = dataclasses.replace(other, environment={"gpu": "H200"})
    assert "NOT COMPARABLE" in speed_warning([*mt10.runs, other])


# -- the command ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["{empty}"], "holds no run"),
        (["{runs}/nothing"], "no such directory"),
        (["{runs}", "--baseline", "unitari"], "did you mean 'unitary'?"),
        (
            ["{runs}", "--highlight", "pcgrat"],
            "highlight = 'pcgrat': no such method among the runs",
        ),
        (["{runs}", "--figure-width", "0.5"], "figure-width = 0.5: must be 2 to 20 inches"),
        (["{runs}", "--figure-width", "nan"], "figure-width = nan: must be 2 to 20 inches"),
        (
            ["{runs}", "--metric", "eval/nope"],
            "metric = 'eval/nope': no run of MT10 has such a score",
        ),
        (["{runs}", "--metric", "eval/sucess"], "are eval/success; did you mean 'eval/success'?"),
        (["{runs}", "--metric", "eval/success_mean"], "there are eval/success"),
        (["{runs}", "--metric", "eval"], "there are eval/success"),
        (["{runs}", "--metric", "eval/mae"], "metric = 'eval/mae': is better where it is lower"),
        (["{runs}", "--out", "{runs}/MT10/mgda/seed_1/status.json"], "out = '{runs}/MT10/mgda"),
        ([], "report needs run directories"),
    ],
)
def test_bad_input_is_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    arguments = [option.format(empty=tmp_path, runs=runs) for option in options]
    with pytest.raises(SystemExit) as caught:
        cli.main(["report", *arguments])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert said.format(runs=runs) in message
    assert message.count("\n") == 1


@pytest.mark.usefixtures("no_pictures")
def test_a_broken_run_is_shown_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "whole", {1000: [0.5] * 4})
    broken = write_run(tmp_path / "broken", {1000: [1.0] * 4}, seed=2)
    (broken / "config.yaml").write_text("")  # as a power cut leaves it
    out = tmp_path / "out"
    cli.main(["report", str(tmp_path), "--out", str(out)])
    text = Page((out / "report.html").read_text()).text
    assert f"{broken} is BROKEN and left out: CONFIG" in text
    assert rows(out / "report.html", "MT10/runs.csv")[0]["last"] == "0.5"
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main(["report", str(broken), "--out", str(out)])
    assert caught.value.code == 2
    assert "holds broken runs only: CONFIG" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_what_has_another_score_is_left_out_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs/rl", {1000: [0.5] * 4})
    other = {"metric": "eval/accuracy", "tasks": TASKS[:2], "settings": {"env.tasks": ["reach"]}}
    write_run(tmp_path / "runs/supervised", {1000: [0.9] * 2}, **other)
    cli.main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    said = "metric = 'eval/success': no run of reach has such a score; there are eval/accuracy"
    assert f"mtrl: warning: left out: {said}" in capsys.readouterr().err
    assert f"LEFT OUT: {said}" in Page((tmp_path / "out/report.html").read_text()).text
    assert len(rows(tmp_path / "out/report.html", "MT10/runs.csv")) == 1


@pytest.mark.usefixtures("no_pictures")
def test_nothing_of_an_earlier_report_stays(tmp_path: Path) -> None:
    for method in ("unitary", "pcgrad"):
        for seed in (1, 2):
            place = tmp_path / "runs" / method / str(seed)
            write_run(place, {1000: [0.1 * seed] * 4}, method=method, seed=seed)
    out = tmp_path / "out"
    write_report(ReportOptions((tmp_path / "runs",), out=out))
    assert (out / "MT10/comparisons.tex").is_file()
    (out / "MT10/mine.txt").write_text("not the report's")
    write_report(ReportOptions((tmp_path / "runs/pcgrad",), out=out))
    alone = write_report(ReportOptions((tmp_path / "runs/pcgrad",), out=tmp_path / "alone"))
    expected = {path.name for path in (alone.parent / "MT10").iterdir()}
    assert {path.name for path in (out / "MT10").iterdir()} == expected | {"mine.txt"}
    (tmp_path / "site/MT10").mkdir(parents=True)
    (tmp_path / "site/report.html").write_text('<a href="MT10/mine.csv">somebody else\'s</a>')
    (tmp_path / "site/MT10/mine.csv").write_text("1")
    write_report(ReportOptions((tmp_path / "runs/pcgrad",), out=tmp_path / "site"))
    assert (tmp_path / "site/MT10/mine.csv").exists()


@pytest.mark.usefixtures("no_pictures")
def test_runs_behind_links_are_in_the_report(tmp_path: Path) -> None:
    write_run(tmp_path / "store/a", {1000: [0.5] * 4})
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/linked").symlink_to(tmp_path / "store")
    written = write_report(ReportOptions((tmp_path / "runs",), out=tmp_path / "out"))
    assert len(rows(written, "MT10/runs.csv")) == 1


@pytest.mark.usefixtures("no_pictures")
def test_another_metric_and_no_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metric = "eval/accuracy"
    scores = {500: [4.0, 4.0], 1000: [3.0, 5.0]}
    run = write_run(tmp_path / "run", scores, method="famo", tasks=TASKS[:2], metric=metric,
                    rates=())  # fmt: skip
    metrics = run / "metrics.jsonl"
    epochs = [f'{{"step": {10 * k}, "epoch": {k}, "time/epoch_s": {k}.5}}\n' for k in (1, 2, 3)]
    metrics.write_text("".join(epochs) + metrics.read_text())
    out = tmp_path / "out"
    cli.main(["report", str(run), "--out", str(out), "--metric", metric])
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    text = Page((out / "report.html").read_text()).text
    assert "No comparison: no run of the baseline unitary (here: famo)" in text
    assert rows(out / "report.html", "MT10/curves.csv")[0]["value"] == "4.0"
    assert "seconds per epoch, median" in text, "supervised runs: epochs instead of updates"
    boxes = rows(out / "report.html", "MT10/epoch_time.csv")
    assert [float(box["seconds"]) for box in boxes] == [1.5, 2.5, 3.5]
    assert not list(out.rglob("update_time.*"))
