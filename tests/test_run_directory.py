"""What a run may do to a directory, when it is written at all, and what it leaves."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import PCGRAD, REPOSITORY, TINY, Mtrl, content, metrics, steps_shown, succeeded
from test_cli import refused

from mtrl.config import load_yaml
from mtrl.config.benchmarks import TOY as TOY_TASKS
from mtrl.evaluation import Evaluations
from mtrl.files import atomic
from mtrl.run import checkpoint
from mtrl.run import environment as environment_module
from mtrl.run.directory import RunDirectory
from mtrl.run.environment import environment
from mtrl.schema import ConfigError

TOY = str(REPOSITORY / "configs/toy.yaml")
SHORT = ("--train.total-steps", 480, "--evaluation.every", 0)
BROKEN_ENVIRONMENT = """
import gymnasium


class Broken(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        raise RuntimeError("the simulator is out of order")


gymnasium.register("mine/Broken-v0", Broken)
"""


@pytest.fixture
def finished(reference: Path, tmp_path: Path) -> Path:
    run = tmp_path / "finished"
    shutil.copytree(reference, run)
    return run


# -- what is there already ------------------------------------------------------------------------


def test_a_stored_configuration_gives_no_leave_to_delete(
    run_mtrl: Mtrl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    succeeded(run_mtrl.toy(run, *SHORT, "--overwrite"))
    file = run / "config.yaml"
    assert "overwrite" not in file.read_text()
    before = content(run)
    refused(["train", str(file)], capsys, "exists already", "--overwrite")
    assert content(run) == before
    assert load_yaml(file).run_dir == str(run)


@pytest.mark.parametrize("names", [["config.yaml"], ["config.yaml", "metrics.jsonl"], ["a.txt"]])
def test_what_is_no_run_of_ours_is_left(
    names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        (tmp_path / name).write_text("# by hand\n")
    refused(["train", TOY, *TINY, "--run-dir", str(tmp_path)], capsys, f"run_dir = '{tmp_path}'")
    assert content(tmp_path) == dict.fromkeys(names, b"# by hand\n")


def test_a_run_killed_before_its_first_step_is_in_nobodys_way(
    run_mtrl: Mtrl, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = load_yaml(REPOSITORY / "configs/toy.yaml")
    left = RunDirectory(run)
    left.make()
    left.write(config)
    left.write_status("running", step=0)
    left.release()  # as when the process is killed
    (run / ".tmp-1234-status.json").write_text("{")
    succeeded(run_mtrl.toy(run, *SHORT, "--resume-if-exists"))
    assert load_yaml(run / "config.yaml").network.width == 16, "the corrected configuration"
    assert not list(run.glob(".tmp-*"))


# -- nothing is written before all is checked -----------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--replay.capacity", "100_000_000_000"), 1, "replay.capacity"),
        (("--learner.device", "cuda:77"), 2, "learner.device"),
    ],
)
def test_a_run_that_fails_before_its_first_step_leaves_nothing(
    options: tuple[str, ...],
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "new" / "run"
    line = ["train", TOY, *TINY, "--run-dir", str(run), *options]
    refused(line, capsys, said, code=code)
    assert list(tmp_path.iterdir()) == []
    run.mkdir(parents=True)
    refused(line, capsys, said, code=code)
    assert list(run.iterdir()) == [], "what was there before stays"


def test_an_environment_that_cannot_start_leaves_nothing(run_mtrl: Mtrl, tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(BROKEN_ENVIRONMENT)
    run = tmp_path / "runs" / "run"
    tasks = ("--env.tasks", "mine/Broken-v0")
    done = run_mtrl("train", TOY, *TINY, "--plugins", plugin, *tasks, "--run-dir", run)
    assert done.returncode == 1
    assert "the simulator is out of order" in done.stderr
    assert not run.parent.exists()


def test_a_failed_start_does_not_delete_what_it_was_to_replace(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(finished)
    line = ["train", TOY, *TINY, "--run-dir", str(finished), "--overwrite"]
    refused([*line, "--replay.capacity", "100_000_000_000"], capsys, "replay.capacity", code=1)
    assert content(finished) == before


def test_a_refused_resume_writes_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(finished)
    longer = ["--train.total-steps", "3200"]
    best = str(finished / "checkpoints/best.pt")
    refused(["resume", best, *longer], capsys, "the policy alone", code=1)
    assert content(finished) == before
    for path in checkpoint.newest_first(finished / "checkpoints"):
        path.write_bytes(path.read_bytes()[:-1])
    before = content(finished)
    refused(["resume", str(finished), *longer], capsys, "no checkpoint can be read", code=1)
    assert content(finished) == before


def test_an_empty_configuration_of_a_run_is_not_all_defaults(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "config.yaml").write_text("")
    refused(["resume", str(finished)], capsys, "config.yaml is empty")
    refused(["evaluate", str(finished)], capsys, "config.yaml is empty")


# -- finished stays finished ----------------------------------------------------------------------


@pytest.mark.parametrize("ended", [None, KeyboardInterrupt(), MemoryError("none left")])
@pytest.mark.parametrize("command", ["resume", "train"])
def test_a_second_look_at_a_finished_run_changes_nothing(
    command: str,
    ended: BaseException | None,
    finished: Path,
    run_mtrl: Mtrl,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if ended is not None:

        def fail(evaluations: Evaluations, step: int) -> None:
            raise ended

        monkeypatch.setattr(Evaluations, "final", fail)
    before = content(finished)
    again = run_mtrl.toy_line(finished, *PCGRAD, "--resume-if-exists")
    done = run_mtrl(*(("resume", finished) if command == "resume" else again))
    assert (done.returncode == 0) == (ended is None), done.stderr
    assert "is finished: only evaluated again" in done.stderr
    assert content(finished) == before


@pytest.mark.parametrize("more", [(), ("--train.total-steps", 2000)])
def test_a_finished_run_without_checkpoints_is_not_trained_again(
    more: tuple[object, ...], finished: Path, run_mtrl: Mtrl
) -> None:
    for path in (finished / "checkpoints").glob("step_*"):
        path.unlink()
    before = content(finished)
    done = run_mtrl("resume", finished, *more)
    assert done.returncode == 1
    assert "no checkpoint is left to continue from; the run is finished" in done.stderr
    assert content(finished) == before


def test_one_command_for_start_and_restart_with_a_file_of_a_network(
    run_mtrl: Mtrl, tmp_path: Path
) -> None:
    (tmp_path / "tasks.json").write_text(json.dumps({task: [1.0] for task in TOY_TASKS}))
    care = ("--network.architecture", "care", "--network.options", "embeddings=tasks.json")
    short = ("--train.total-steps", 480, "--evaluation.every", 0, "--resume-if-exists")
    for _ in range(2):
        done = run_mtrl(*run_mtrl.toy_line(tmp_path / "run", *care, *short), cwd=tmp_path)
        succeeded(done)
    assert "only evaluated again" in done.stderr


def test_a_finished_run_that_is_lengthened_runs(finished: Path, run_mtrl: Mtrl) -> None:
    succeeded(run_mtrl("resume", finished, "--train.total-steps", 2000))
    status = json.loads((finished / "status.json").read_text())
    assert (status["status"], status["step"]) == ("finished", 2000)
    assert load_yaml(finished / "config.yaml").train.total_steps == 2000


# -- points that are shown once -------------------------------------------------------------------


def test_a_run_that_starts_over_shows_its_points_once(finished: Path, run_mtrl: Mtrl) -> None:
    """Killed before its first checkpoint: TensorBoard's file is all that is left."""
    wanted = metrics(finished)
    shutil.rmtree(finished / "checkpoints")
    status = json.loads((finished / "status.json").read_text())
    (finished / "status.json").write_text(json.dumps(status | {"status": "running"}))
    succeeded(run_mtrl("resume", finished))
    assert len(list(finished.glob("events.out.tfevents.*"))) == 2
    assert steps_shown(finished, "train/reward_std/toy-east") == [400, 800, 1200, 1600]
    assert steps_shown(finished, "eval/success_mean") == [0, 800, 1600]
    assert metrics(finished) == wanted


# -- paths and files ------------------------------------------------------------------------------


def test_a_run_is_in_use_by_whoever_trains_it_not_by_whoever_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path)
    with open(tmp_path / ".lock", "w") as lock, monkeypatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as `is_held` does, for a moment
        patch.setattr("time.sleep", lambda seconds: lock.close())
        run.lock()
    run.release()
    with open(tmp_path / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is in use by another process"):
            run.lock()


def test_the_commit_is_this_codes_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed into an environment that lies in a repository of the user's."""
    assert environment()["cpu"]
    if (REPOSITORY / ".git").exists():
        assert len(environment()["git_commit"]) == 40
    for line in ("init -q", "-c user.name=a -c user.email=b commit -q --allow-empty -m first"):
        subprocess.run(["git", "-C", tmp_path, *line.split()], check=True)
    installed = tmp_path / ".venv/mtrl/environment.py"
    installed.parent.mkdir(parents=True)
    installed.write_text(Path(environment_module.__file__).read_text())
    monkeypatch.setattr(environment_module, "__file__", str(installed))
    assert environment()["git_commit"] == environment()["git_diff"] == ""


@pytest.mark.usefixtures("no_pictures")
def test_tilde_is_the_home_folder(
    run_mtrl: Mtrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    work = tmp_path / "elsewhere"
    work.mkdir()
    (tmp_path / "mine.yaml").write_text(
        Path(TOY).read_text().replace("protocol:", "run_dir: ~/run\nprotocol:")
    )
    short = [str(word) for word in (*TINY, *SHORT)]

    def run(*words: object) -> str:
        done = run_mtrl(*words, cwd=work)
        succeeded(done)
        return done.stdout

    run("train", "~/mine.yaml", *short)
    run("resume", "~/run")
    run("evaluate", "~/run", "--checkpoint", "~/run/checkpoints/best.pt")
    run("export", "~/run", "--out", "~/out/policy.pt2")
    run("runs", "~/")
    run("report", "~/run", "--out=~/report")
    assert (tmp_path / "out/policy.pt2").is_file()
    assert (tmp_path / "report/report.html").is_file()
    assert list(work.iterdir()) == []
    assert RunDirectory.open(tmp_path / "run")[1].run_path == tmp_path / "run"


def test_an_atomic_write_is_on_disk_before_it_takes_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    flush, replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(f"flush {'folder' if path == tmp_path else path.name[:5]}")
        flush(descriptor)

    def rename(old: Path, new: Path) -> None:
        events.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    atomic.write_atomically(tmp_path / "status.json", "one")
    assert events == ["flush .tmp-", "rename", "flush folder"]

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic.write_atomically(tmp_path / "status.json", "two")
    assert content(tmp_path) == {"status.json": b"one"}, "the old file, and nothing else"
