"""Packed runs: small, the same bytes each time, and read like the runs that they are of."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, Mtrl, succeeded
from hypothesis import given
from hypothesis import strategies as st
from run_files import TASKS, write_run

from mtrl.commands.pack import pack, reduced
from mtrl.config import load_yaml
from mtrl.options.validation import validate
from mtrl.report.write import ReportOptions, write_report
from mtrl.run.state import read_run
from mtrl.supervised.config import load_yaml as load_supervised
from mtrl.supervised.config import validate as validate_supervised

SCORES = {250: [0.1, 0.2, 0.3, 0.4], 1000: [1.0, 1 / 3, 0.5, 0.0]}


def test_every_published_record_is_a_configuration_of_this_version() -> None:
    """So each can be trained again, and reports may compare old records with new ones."""
    records = sorted(REPOSITORY.glob("results/*/*/*/config.yaml"))
    assert records
    for record in records:
        is_supervised = record.read_text().startswith("problem:")
        config = (load_supervised if is_supervised else load_yaml)(record)
        (validate_supervised if is_supervised else validate)(config)


def test_a_packed_run_is_read_like_the_run(run_mtrl: Mtrl, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "mine" / "seed_1", SCORES, seed=1)
    write_run(tmp_path / "runs" / "mine" / "seed_2", SCORES, seed=2, status="running")
    out = tmp_path / "out"
    succeeded(run_mtrl("pack", tmp_path / "runs", "--out", out, "--intervals", 2))
    for seed, state in ((1, "finished"), (2, "died")):
        place = Path("mine") / f"seed_{seed}"
        tags = ("eval/", "time/", "gradients/")
        run = read_run(tmp_path / "runs" / place, tags)
        packed = read_run(out / place, tags)
        assert (packed.config, packed.state) == (run.config, state)
        for task in TASKS:
            ours, theirs = (r.series[f"eval/success/{task}"] for r in (packed, run))
            np.testing.assert_array_equal(ours.steps, theirs.steps)
            np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-5)
        # Log lines at 200, 400 | 600, 800, 1000.
        np.testing.assert_array_equal(packed.series["time/updates_per_s"].steps, [400, 1000])
        rates = packed.series["time/updates_per_s"].values
        np.testing.assert_allclose(rates, [20.0, 37.5], rtol=1e-5)  # 3 / (1/50 + 1/50 + 1/25)


@pytest.mark.usefixtures("no_pictures")
def test_a_report_of_packed_runs_has_the_same_scores_and_comparisons(tmp_path: Path) -> None:
    finals = {"unitary": {1: 0.2, 2: 0.4}, "pcgrad": {1: 0.5, 2: 0.8}}
    for method, by_seed in finals.items():
        for seed, final in by_seed.items():
            scores = {500: [0.5] * 4, 1000: [final, 0.5, 0.7, final]}
            write_run(tmp_path / "runs" / method / str(seed), scores, method=method, seed=seed)
            place = Path(method) / str(seed)
            pack(tmp_path / "runs" / place, tmp_path / "packed" / place)
    written = {
        name: write_report(ReportOptions((tmp_path / name,), out=tmp_path / "out" / name))
        for name in ("runs", "packed")
    }
    for table in ("results", "comparisons", "scores", "curves", "profile"):
        found = [
            [line.split(",") for line in (page.parent / f"MT10/{table}.csv").open()]
            for page in written.values()
        ]
        assert len(found[0]) > 1
        assert found[0] == found[1]
    assert "2 pairs of seeds" in written["packed"].read_text()


def test_packing_again_gives_the_same_bytes(run_mtrl: Mtrl, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", SCORES)
    contents = []
    for name in ("one", "two"):
        succeeded(run_mtrl("pack", run, "--out", tmp_path / name))
        files = sorted((tmp_path / name / "run").iterdir())
        contents.append([(path.name, path.read_bytes()) for path in files])
    assert contents[0] == contents[1]
    names = [name for name, _ in contents[0]]
    assert names == ["config.yaml", "environment.json", "metrics.jsonl.gz", "status.json"]


def test_nothing_of_the_user_is_published(run_mtrl: Mtrl, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", SCORES)
    config = run / "config.yaml"
    paths = f"run_dir: {tmp_path}/run\ndata_dir: {tmp_path}\nplugins: [{tmp_path}/mine.py]\n"
    network = f"network: {{weights: {tmp_path}/w.npz, options: {{embeddings: {tmp_path}/e.npz}}}}\n"
    config.write_text(config.read_text() + paths + network)
    environment = {"command": [f"{tmp_path}/mtrl"], "git_diff": "secret", "cores": 2}
    (run / "environment.json").write_text(json.dumps(environment))
    succeeded(run_mtrl("pack", run, "--out", tmp_path / "out"))
    for path in (tmp_path / "out" / "run").iterdir():
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
        assert str(tmp_path) not in text
        assert "secret" not in text
    packed = read_run(tmp_path / "out" / "run")
    assert packed.config["plugins"] == ["mine.py"]
    assert packed.config["network.weights"] == "w.npz"
    assert packed.config["network.options.embeddings"] == "e.npz"
    assert packed.environment["git_diff"], "the report says that the code had been changed"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "."], "out = "),
        (["--intervals", "0"], "intervals = 0: must be at least 1"),
    ],
)
def test_what_cannot_be_packed(
    options: list[str], said: str, run_mtrl: Mtrl, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", SCORES)
    before = sorted(path.name for path in run.iterdir())
    done = run_mtrl("pack", "run", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert sorted(path.name for path in run.iterdir()) == before


def test_two_runs_for_one_place_are_refused_and_a_broken_run_is_left_out(
    run_mtrl: Mtrl, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        write_run(tmp_path / folder / "seed_1", SCORES)
    done = run_mtrl("pack", "a", "b", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "would be the place of a/seed_1 too" in done.stderr
    assert not (tmp_path / "out").exists()
    write_run(tmp_path / "a" / "seed_0", SCORES)
    (tmp_path / "a/seed_0/config.yaml").write_text("[broken")
    done = run_mtrl("pack", "a", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "mtrl: left out: CONFIG = " in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["seed_1"]


@given(rates=st.lists(st.floats(1.0, 1e3), min_size=1, max_size=40), intervals=st.integers(1, 10))
def test_packing_does_not_shorten_a_run(rates: list[float], intervals: int) -> None:
    records = [{"step": 100 * k, "time/env_steps_per_s": v} for k, v in enumerate(rates, start=1)]
    seconds = 0.0
    for before, line in itertools.pairwise([{"step": 0.0}, *reduced(records, intervals)]):
        seconds += (line["step"] - before["step"]) / line["time/env_steps_per_s"]
    assert seconds == pytest.approx(sum(100 / rate for rate in rates), rel=1e-3)


@given(
    steps=st.lists(st.integers(1, 10_000), min_size=1, max_size=60, unique=True),
    intervals=st.integers(1, 30),
)
def test_means_over_intervals(steps: list[int], intervals: int) -> None:
    records = [{"step": step, "a": float(step % 7)} for step in steps]
    last, expected = max(steps), []
    for k in range(intervals):
        inside = [s for s in sorted(steps) if k * last < s * intervals <= (k + 1) * last]
        if inside:
            mean = float(np.mean([step % 7 for step in inside]))
            expected.append({"step": inside[-1], "a": pytest.approx(mean, rel=1e-4)})
    assert reduced(records, intervals) == expected
