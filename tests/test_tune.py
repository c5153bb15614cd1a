"""`mtrl tune`: the space that it searches, pruning, and a study that is killed and continued."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ENVIRONMENT, REPOSITORY, Mtrl, tiny_settings, wait_for
from test_cli import refused
from test_sweep import LONG, TOY, has_checkpoint, pid_of

from mtrl.config import load_yaml
from mtrl.options.command_line import load_config
from mtrl.run.directory import RunDirectory
from mtrl.run.state import Standing, find_runs, read_run
from mtrl.sweep.board import Board
from mtrl.sweep.grid import Trial, expand
from mtrl.sweep.local import Share, run_local
from mtrl.sweep.options import SweepOptions, parse_options
from mtrl.sweep.process import StopRequest
from mtrl.tune.space import read_space
from mtrl.tune.study import OBJECTIVE, Study

SPACE = """
agent.actor_lr: {log_uniform: [1e-5, 1e-2]}
agent.tau: {uniform: [0.001, 0.05]}
network.width: {int: [8, 24], step: 8}
agent.smto.name: {categorical: [unitary, pcgrad]}
agent.betas: {categorical: [[0.9, 0.999], [0.5, 0.9]]}
"""

# space, and what must be said of it
IMPOSSIBLE = {
    "unknown key": ("agent.gama: {uniform: [0, 1]}", ["agent.gama = 0.0: unknown key", "'gamma'?"]),
    "bound": ("agent.gamma: {uniform: [0.9, 1.5]}", ["agent.gamma = 1.5: must be in [0, 1)"]),
    "choice": ("agent.smto.name: {categorical: [unitary, pcgrd]}", ["'pcgrd'", "'pcgrad'?"]),
    "option of another method": ("agent.smto.options.c: {uniform: [0, 1]}", ["no such option"]),
    "order": ("agent.gamma: {uniform: [0.9, 0.5]}", ["[0.9, 0.5]: uniform must have a lower"]),
    "one bound": ("agent.gamma: {uniform: [0.9]}", ["agent.gamma = [0.9]", "two bounds"]),
    "text": ("agent.gamma: {uniform: [a, b]}", ["agent.gamma = ['a', 'b']", "two numbers"]),
    "infinite": ("agent.actor_lr: {uniform: [0.1, .inf]}", ["agent.actor_lr", "finite bounds"]),
    "log of zero": ("agent.tau: {log_uniform: [0, 1]}", ["agent.tau = [0, 1]", "positive bounds"]),
    "step": ("network.width: {int: [3, 6], step: 2}", ["network.width = [3, 6]", "steps of 2"]),
    "fraction": ("network.width: {int: [3.5, 6]}", ["network.width", "two integers"]),
    "float for an integer": ("network.width: {uniform: [3, 5]}", ["network.width", "{int: [LOW"]),
    "kind": ("agent.gamma: {normal: [0, 1]}", ["agent.gamma = {'normal': [0, 1]}", "log_uniform"]),
    "step of a float": ("agent.tau: {uniform: [0.1, 1], step: 1}", ["agent.tau", "{uniform: [LOW"]),
    "no kind": ("agent.gamma: 0.9", ["agent.gamma = 0.9: must be {uniform"]),
    "no choice": ("agent.smto.name: {categorical: []}", ["agent.smto.name = []", "at least one"]),
    "a choice twice": ("agent.gamma: {categorical: [0.1, 1e-1]}", ["has 0.1 twice"]),
    "seed": ("seed: {int: [0, 9]}", ["seed = {'int': [0, 9]}", "no hyperparameter"]),
    "nothing": ("", ["space = ", "must be a mapping"]),
    "set too": ("agent.gamma: {uniform: [0.5, 0.9]}", ["agent.gamma = 0.7", "--set"]),
}


@pytest.mark.parametrize(("text", "expected"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_an_impossible_space_is_refused_in_a_line(
    text: str, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.yaml").write_text(text)
    line = ["tune", TOY, "--space", str(tmp_path / "space.yaml"), "--root", str(tmp_path / "runs")]
    line += ["--set", "agent.gamma=0.7"] if expected[-1] == "--set" else []
    refused(line, capsys, *expected)
    assert not (tmp_path / "runs").exists()


OPTIONS = {
    "no space": ("", ["space = ''", "--space SPACE.yaml"]),
    "no such space": ("--space nowhere.yaml", ["space = 'nowhere.yaml': no such file"]),
    "no trials": ("--space space.yaml --trials 0", ["trials = 0: must be at least 1"]),
    "no place": ("--space space.yaml --parallel 0", ["parallel = 0"]),
    "a setting": ("--space space.yaml --set agent.gamma=2", ["agent.gamma = 2"]),
    "another folder": ("--space space.yaml --set run_dir=x", ["set run_dir = 'x': use --root"]),
}


@pytest.mark.parametrize(("line", "expected"), OPTIONS.values(), ids=OPTIONS.keys())
def test_impossible_options_are_refused_in_a_line(
    line: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(SPACE)
    refused(["tune", TOY, *line.split()], capsys, *expected)
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


def test_without_optuna_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(SPACE)
    monkeypatch.setitem(sys.modules, "optuna", None)
    refused(["tune", TOY, "--space", "space.yaml"], capsys, "pip install optuna")
    assert not Path("runs").exists()


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Study]:
    (tmp_path / "space.yaml").write_text(SPACE)
    base = load_config(TOY)
    space = read_space(tmp_path / "space.yaml", base, {})

    def make(**settings: Any) -> Study:
        return Study(tmp_path, base, settings, space, trials=8, prune_after=2)

    return make


def went(run: Trial, status: str, *success: float, start: int = 1) -> None:
    """The run's directory, as after evaluations at steps 100, 200, ...; start: 0 = of the untrained
    policy, too."""
    RunDirectory(run.path).make()
    (run.path / "config.yaml").write_text(run.config_file.read_text())
    lines = [{"step": 100 * i, OBJECTIVE: value} for i, value in enumerate(success, start)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.path / "metrics.jsonl").write_text(text)
    last = success[-1] if success else None
    RunDirectory(run.path).write_status(status, success_mean=last)  # type: ignore[arg-type]


def test_nothing_is_pruned_by_what_it_can_untrained(study: Callable[..., Study]) -> None:
    first, board = study(), Board(())
    runs = first.trials(board, cores=1)
    for _ in range(3):
        run = next(runs)
        went(run, "finished", 0.5, 0.5, start=0)
        first.unpromising(run)
        board.show(run, Standing("finished", success=0.5))
    begun, trained = next(runs), next(runs)
    went(begun, "running", 0.1, start=0)
    assert first.unpromising(begun) == ""
    went(trained, "running", 0.1, 0.1, start=0)
    assert "pruned at step 100" in first.unpromising(trained)


def test_a_trial_below_the_median_is_pruned_and_a_second_call_knows_it_all(
    study: Callable[..., Study], tmp_path: Path
) -> None:
    first, board = study(), Board(())
    runs = first.trials(board, cores=1)
    for success in (0.4, 0.8):
        run = next(runs)
        went(run, "finished", 0.1, success)
        assert first.unpromising(run) == "", "two are to finish first"
        board.show(run, Standing("finished", success=success))
    good, bad, broken = next(runs), next(runs), next(runs)
    went(good, "running", 0.1, 0.7)
    went(bad, "running", 0.1, 0.5)
    went(broken, "failed", 0.9)
    assert first.unpromising(good) == ""
    assert first.unpromising(bad) == (
        "pruned at step 200: eval/success_mean 0.500 is below the median of the finished trials"
    )
    for run in (bad, broken):
        RunDirectory(run.path).update_status("pruned" if run is bad else "failed", "because")

    # Killed here: Optuna has been told of neither.
    second, board = study(), Board(())
    assert next(second.trials(board, cores=1)).name == good.name
    states = [trial.state.name for trial in second._study.trials]
    assert states == ["COMPLETE", "COMPLETE", "RUNNING", "RUNNING", "RUNNING"]
    assert {name: row.now.state for name, row in board.rows.items()} == {
        "trial_000": "finished",
        "trial_001": "finished",
        "trial_002": "waiting",
    }
    again = list(zip(range(2), second.trials(board, cores=1), strict=False))
    assert [run.name for _, run in again] == ["trial_002", "trial_005"]
    states = [trial.state.name for trial in second._study.trials]
    assert states[:5] == ["COMPLETE", "COMPLETE", "RUNNING", "PRUNED", "FAIL"]
    best = second.finished()
    assert [success for _, success, _ in best] == [0.8, 0.4]
    chosen = best[0][2]
    stored = load_yaml(tmp_path / "sweep/trial_001.yaml")
    assert stored.agent.actor_lr == chosen["agent.actor_lr"]
    assert list(stored.agent.betas) == chosen["agent.betas"]
    assert stored.agent.smto.name == chosen["agent.smto.name"]
    assert stored.network.width in (8, 16, 24)


def test_calls_of_one_study_suggest_different_trials(study: Callable[..., Study]) -> None:
    """The first ones are random: a second call must not draw the first call's again."""
    one = next(study().trials(Board(()), cores=1)).config.agent.actor_lr
    later = study()
    runs = later.trials(Board(()), cores=1)
    assert next(runs).config.agent.actor_lr == one, "it is still open"
    assert next(runs).config.agent.actor_lr != one


def test_a_study_keeps_its_settings_and_its_space(study: Callable[..., Study]) -> None:
    study()
    study()
    with pytest.raises(ValueError, match=r"agent\.gamma = 0\.5: .* started with .*--name"):
        study(**{"agent.gamma": 0.5})


def one_trial(root: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    line = [TOY, "--root", str(root), "--set", *tiny_settings(LONG)]
    (trial,) = expand(parse_options(line))
    trial.write_config()
    return trial


def test_a_run_that_is_pruned_says_so_and_is_no_failure(
    tmp_path: Path, run_mtrl: Mtrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = one_trial(tmp_path, monkeypatch)
    board = Board([run])
    with StopRequest() as request:
        run_local(
            iter([run]),
            SweepOptions(config=TOY),
            Share(1, 1),
            board,
            request,
            lambda run: "below the others" if has_checkpoint(run.path)() else "",
        )
    assert board.rows[run.name].now.state == "pruned"
    read = read_run(run.path)
    assert (read.state, read.status["reason"]) == ("pruned", "below the others")
    assert 0 < read.step < read.total_steps
    assert "pruned" in run_mtrl("runs", tmp_path).stdout


def test_an_error_of_the_engine_leaves_no_run_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = one_trial(tmp_path, monkeypatch)

    def fail(trial: Trial) -> str:
        if has_checkpoint(trial.path)():
            raise OSError("the journal cannot be written")
        return ""

    with StopRequest() as request, pytest.raises(OSError, match="journal"):
        run_local([trial], SweepOptions(config=TOY), Share(1, 1), Board([trial]), request, fail)
    assert not psutil.pid_exists(pid_of(trial.path))
    assert read_run(trial.path).state == "died"


@pytest.mark.usefixtures("no_pictures")
def test_a_killed_study_continues(run_mtrl: Mtrl, tmp_path: Path) -> None:
    """The example of docs/tune.md, smaller; trials are runs that the other commands read."""
    (text,) = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs/tune.md").read_text(), re.DOTALL)
    (tmp_path / "space.yaml").write_text(text)
    line = ["tune", TOY, "--space", tmp_path / "space.yaml", "--root", tmp_path, "--trials", 2]
    line += ["--set", *(word for word in tiny_settings() if word.partition("=")[0] not in text)]
    folder = tmp_path / "toy_tune"
    first = run_mtrl.start(*line)
    try:
        saved = has_checkpoint(folder / "trial_000")
        wait_for(lambda: saved() or first.poll() is not None, 300, "a checkpoint")
        other = run_mtrl(*line)
        first.kill()
        first.communicate(timeout=60)
    finally:
        first.kill()
    assert other.returncode == 2
    assert "is in use by another `mtrl tune`" in other.stderr

    for _ in range(2):  # the second time, all has been done
        done = run_mtrl(*line)
        assert done.returncode == 0, done.stderr
        assert "2 finished" in done.stderr
        assert f"mtrl report {folder}" in done.stdout
    runs = [read_run(path) for path in find_runs([folder])]
    assert [run.path.name for run in runs] == ["trial_000", "trial_001"]
    assert {run.state for run in runs} == {"finished"}
    assert len({run.config["agent.actor_lr"] for run in runs}) == 2
    best = max(runs, key=lambda run: run.success_mean)
    assert read_best(folder) == best.config["agent.actor_lr"]
    assert run_mtrl("report", folder, "--out", tmp_path / "report").returncode == 0
    assert "trial_001" in (tmp_path / "report/report.html").read_text()


def read_best(folder: Path) -> float:
    config = load_yaml(folder / "best.yaml")
    assert (config.name, config.run_dir) == ("toy_tune_best", "")
    assert os.fspath(config.run_path) == "runs/toy_tune_best/" + f"{config.method}/seed_1"
    return config.agent.actor_lr
