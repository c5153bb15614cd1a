"""The grid of a sweep; the local engine on real runs, killed and stopped on purpose."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import signal
import statistics
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import (
    ENVIRONMENT,
    REPOSITORY,
    Mtrl,
    differences,
    evaluations,
    final_state,
    tiny_settings,
    wait_for,
)

from mtrl.commands import main as cli
from mtrl.config import load_yaml
from mtrl.options.command_line import continued, load_config
from mtrl.run import checkpoint
from mtrl.run.state import Standing, standing
from mtrl.schema import ConfigError, dump_yaml, flatten, with_values
from mtrl.sweep.board import Board
from mtrl.sweep.grid import Trial, expand, find_stored, parse_seeds, refuse_changes
from mtrl.sweep.local import Share, divide, run_local, visible_gpus
from mtrl.sweep.options import SweepOptions, parse_options
from mtrl.sweep.process import StopRequest, attempt, outcome

TOY = str(REPOSITORY / "configs/toy.yaml")
LONG = "train.total_steps=40_000"  # too short to be compiled


def names(*words: str) -> list[str]:
    return [run.name for run in expand(parse_options([TOY, *words]))]


# -- the grid -----------------------------------------------------------------------------------


def test_grid_is_methods_times_settings_times_seeds() -> None:
    line = "--methods unitary pcgrad --seeds 0..1 7 --set agent.actor_l2=0,1e-4 agent.gamma=0.8"
    runs = expand(parse_options([TOY, *line.split(), "--name", "study", "--root", "out"]))
    assert len(runs) == 2 * 2 * 3
    assert [run.name for run in runs[:5]] == [
        "agent.actor_l2=0/unitary/seed_0",
        "agent.actor_l2=0/pcgrad/seed_0",
        "agent.actor_l2=0.0001/unitary/seed_0",
        "agent.actor_l2=0.0001/pcgrad/seed_0",
        "agent.actor_l2=0/unitary/seed_1",
    ]
    for run in runs:
        config = run.config
        assert config.agent.gamma == 0.8
        assert config.agent.actor_l2 == (1e-4 if "=0.0001" in run.name else 0.0)
        assert (config.method, f"seed_{config.seed}") == tuple(run.name.split("/")[1:])
        assert Path(config.run_dir) == run.path == Path("out/study", run.name).resolve()
    assert len({run.path for run in runs}) == len(runs)


def test_without_settings_that_vary_directories_are_those_of_train() -> None:
    line = ["--methods", "unitary", "--seeds", "3", "--set", "agent.gamma=0.8"]
    run = expand(parse_options([TOY, *line]))[0]
    assert run.path == Path("runs/toy/unitary/seed_3").resolve()
    assert names() == ["unitary/seed_1"], "the configuration's own method and seed"


def test_a_grid_point_is_what_train_makes_of_the_same_options(tmp_path: Path) -> None:
    """Methods' files and options included."""
    from mtrl.options.command_line import load_config, with_overrides

    source = tmp_path / "base.yaml"
    source.write_text("agent: {smto: {name: cagrad, options: {c: 0.9}}}")
    cases = {
        ("kurin/pcgrad", "agent.gamma"): 0.9,
        ("kurin/mgda", "agent.actor_l2"): 0.5,
        ("cagrad", "agent.smto.options.update_every"): 2,
        ("pcgrad", "agent.tau"): 0.1,
    }
    for (method, key), value in cases.items():
        line = ["--methods", method, "--set", f"{key}={value}"]
        (run,) = expand(parse_options([str(source), *line]))
        assert run.name == f"{method}/seed_1"
        file = [method] if "/" in method else []
        words = [] if file else ["--agent.smto.name", method]
        if key.endswith("update_every"):
            words += ["--agent.smto.options", f"update_every={value}"]
        else:
            words += [f"--{key}", str(value)]
        expected = flatten(with_overrides(load_config(str(source), *file), "test", words))
        assert flatten(run.config) == expected | {"run_dir": str(run.path)}


def test_sweep_file_and_command_line_on_top(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("env: {benchmark: toy, horizon: 20}\nprotocol: none")
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "config: mine.yaml\nname: study\nmethods: [unitary, mgda]\nseeds: 0..1\nparallel: 3\n"
        "set:\n  replay.batch_size: [32, 64]\n"
        "  env.tasks: [[toy-east, toy-west]]\n  checkpoint.every: 400\n"
    )
    options = parse_options([str(file), "--methods", "pcgrad", "--set", "replay.batch_size=16"])
    assert options.parallel == 3
    runs = expand(options)
    assert [run.name for run in runs] == ["pcgrad/seed_0", "pcgrad/seed_1"]
    assert runs[0].config.env.tasks == ("toy-east", "toy-west")
    assert runs[0].config.replay.batch_size == 16
    assert runs[0].folder.name == "study"


def test_values_are_those_of_a_configuration_file(tmp_path: Path) -> None:
    line = "learner.compile=on,off agent.max_grad_norm=None agent.smto.options.weights=[1e-3,1,1,1]"
    runs = expand(parse_options([TOY, "--methods", "fixed", "--set", *line.split()]))
    assert [run.config.learner.compile for run in runs] == ["on", "off"]
    assert {run.config.agent.max_grad_norm for run in runs} == {None}
    assert runs[0].config.agent.smto.options == {"weights": [0.001, 1, 1, 1]}
    file = tmp_path / "sweep.yaml"
    file.write_text("config: toy\nset: {agent.gamma: 0.9, agent.gamma: 0.8}")
    with pytest.raises(ConfigError, match=r"sweep\.yaml.*key 'agent.gamma' stands twice"):
        parse_options([str(file)])


def test_set_given_twice_counts_twice() -> None:
    line = ["--set", "agent.gamma=0.8", "--seeds", "1", "--set", "agent.tau=0.1"]
    assert parse_options([TOY, *line]).set == {"agent.gamma": [0.8], "agent.tau": [0.1]}


def test_a_key_given_twice_has_all_its_values() -> None:
    line = "--set replay.batch_size=8 --set replay.batch_size=16,32 --set=replay.batch_size=64"
    assert parse_options([TOY, *line.split()]).set == {"replay.batch_size": [8, 16, 32, 64]}
    line = "--methods mgda --seeds 1 --methods=pcgrad --seeds 2..3 --seeds=5"
    options = parse_options([TOY, *line.split()])
    assert options.methods == ("mgda", "pcgrad")
    assert options.seeds == ("1", "2..3", "5")


@pytest.mark.parametrize(
    ("setting", "folders"),
    [
        ("agent.actor_l2=1e-4,0.0001,1.0e-4", [""]),
        ("agent.actor_l2=0,1e-4,0.0001,0.0", ["agent.actor_l2=0/", "agent.actor_l2=0.0001/"]),
        (
            "agent.smto.options.c=0,0.0,0.5e0,0.50",
            ["agent.smto.options.c=0/", "agent.smto.options.c=0.5/"],
        ),
        ("replay.batch_size=[],32", None),
        ("env.tasks=[toy-east],[toy-east]", [""]),
    ],
)
def test_equal_values_are_one_run(setting: str, folders: list[str] | None) -> None:
    line = ["--methods", "cagrad", "--set", setting]
    if folders is None:
        with pytest.raises(ConfigError, match="an integer"):
            names(*line)
    else:
        assert names(*line) == [f"{folder}cagrad/seed_1" for folder in folders]


def test_a_method_with_and_without_a_papers_settings() -> None:
    line = ["--methods", "pcgrad", "kurin/pcgrad", "--seeds", "1"]
    assert names(*line) == ["pcgrad/seed_1", "kurin/pcgrad/seed_1"]
    same = ["--set", "agent.actor_l2=3e-4", "--methods", "kurin/unitary", "unitary"]
    assert names(*same) == ["kurin/unitary/seed_1"], "of equal runs, one"


def test_a_plugin_registers_the_environments_of_a_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    (run,) = expand(parse_options(["examples/pendulums.yaml"]))
    assert run.config.plugins == (str(REPOSITORY / "examples/pendulums.py"),)


def test_seeds() -> None:
    assert parse_seeds(["0..2", "7", "9,10"]) == [0, 1, 2, 7, 9, 10]


REFUSED = {
    "unknown method": ("--methods pcgrd", ["agent.smto.name = 'pcgrd'", "did you mean 'pcgrad'"]),
    "unknown key": ("--set agent.gama=1", ["agent.gama", "did you mean 'gamma'"]),
    "key below a value": ("--set agent.gamma.x=1", ["agent.gamma.x", "no keys of its own"]),
    "wrong type": ("--set network.width=wide", ["network.width = 'wide'", "an integer"]),
    "impossible value": ("--set agent.gamma=0.9,2", ["agent.gamma = 2.0", "[0, 1)"]),
    "method by --set": ("--set agent.smto.name=mgda", ["agent.smto.name", "--methods"]),
    "seed by --set": ("--set seed=1,2", ["seed", "--seeds"]),
    "not key=value": ("--set agent.gamma", ["agent.gamma", "key=value"]),
    "words for seeds": ("--seeds one", ["seeds = 'one'", "0..9"]),
    "backward range": ("--seeds 9..0", ["seeds = '9..0'", "ends before it begins"]),
    "seed of 64 bits": (f"--seeds 1 {2**64}", [f"seeds = '{2**64}'", f"at most {2**63 - 1}"]),
    "seeds without end": ("--seeds 0..4000000000", ["seeds = '0..4000000000'", "at most 10,000"]),
    "neither on nor off": (
        "--set learner.compile=on,maybe",
        ["learner.compile = 'maybe'", "auto, on, off"],
    ),
    "seed twice": ("--seeds 0..3 2", ["seeds", "seed 2 twice"]),
    "method twice": ("--methods mgda mgda", ["methods = 'mgda mgda'", "has mgda twice"]),
    "no room": ("--parallel 0", ["parallel = 0", "at least 1"]),
    "part of two GPUs": ("--gpus-per-run 1.5", ["gpus_per_run = 1.5", "whole number"]),
    "an unknown option": ("--seed 1", ["--seed = '1': unknown option; did you mean '--seeds'?"]),
    "not a number": ("--parallel two", ["parallel = 'two': must be an integer or one of auto"]),
    "to continue": ("--resume-if-exists", ["--resume-if-exists", "the same command continues"]),
    "to start again": ("--overwrite", ["--overwrite", "give another --name"]),
    "parallel on Ray": ("--engine ray --parallel 2", ["parallel = 2", "local engine"]),
}


@pytest.mark.parametrize(("line", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_impossible_sweeps_are_refused_in_a_line(
    line: str, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", TOY, *line.split(), "--root", str(tmp_path), "--no-estimate"]
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    streams = capsys.readouterr()
    assert caught.value.code == 2
    for part in expected:
        assert part in " ".join((streams.err + streams.out).replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_cannot_be_made_is_refused_before_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as caught:
        cli.main(["sweep", TOY, "--root", str(tmp_path / "file"), "--no-estimate"])
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert said == f"mtrl: root = '{tmp_path}/file/toy': cannot be made: Not a directory\n"


def test_dry_run_shows_the_grid_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "--methods unitary mgda --seeds 0..9 --set agent.actor_l2=0,1e-4 --dry-run --no-estimate"
    with pytest.raises(SystemExit) as caught:
        cli.main(["sweep", TOY, *line.split(), "--root", str(tmp_path)])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "40 runs" in shown
    assert "2 method(s) x 10 seed(s) x 2 agent.actor_l2" in shown
    assert "goals" in shown
    assert list(tmp_path.iterdir()) == []


# -- directories --------------------------------------------------------------------------------


def stored_run(root: Path, *words: str, **status: Any) -> Trial:
    """A run's directory as `mtrl train` leaves it."""
    (run,) = expand(parse_options([TOY, "--root", str(root), *words]))
    run.write_config()
    run.path.mkdir(parents=True)
    run.config_file.rename(run.path / "config.yaml")
    (run.path / "status.json").write_text(json.dumps(status))
    return run


def test_a_grown_grid_finds_its_runs_by_their_settings(tmp_path: Path) -> None:
    """Folders are named after what varied when they were made, or by somebody else."""
    done = {"status": "finished", "step": 9, "total_steps": 9}
    folder = tmp_path / "toy"
    for value, place in (("1e-4", "agent.actor_l2=1e-4/unitary/seed_1"), ("3e-4", "moved")):
        run = stored_run(tmp_path, "--set", f"agent.actor_l2={value}", **done)
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        run.path.rename(folder / place)
    stored_run(tmp_path, **done)  # the configuration's own value, 0
    begun = stored_run(tmp_path, "--seeds", "2", status="stopped")  # a copy that came less far
    begun.path.rename(folder / "a copy")
    stored_run(tmp_path, "--seeds", "2", **done).path.rename(folder / "moved too")

    values = "agent.actor_l2=0.0001,0,3.0e-4,1e-3"
    grid = expand(parse_options([TOY, "--root", str(tmp_path), "--set", values]))
    found, broken = find_stored(grid)
    assert [run.name for run in found] == [
        "agent.actor_l2=1e-4/unitary/seed_1",
        "unitary/seed_1",
        "moved",
        "agent.actor_l2=0.001/unitary/seed_1",
    ]
    assert [standing(run.path).state for run in found] == ["finished"] * 3 + ["waiting"]
    assert [run.config.agent.actor_l2 for run in found] == [1e-4, 0.0, 3e-4, 1e-3]
    assert broken == {}
    (second,) = find_stored(expand(parse_options([TOY, "--root", str(tmp_path), "--seeds", "2"])))[
        0
    ]
    assert second.name == "moved too"


def test_a_broken_configuration_does_not_stop_a_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in "123":
        stored_run(tmp_path, "--seeds", seed, status="finished")
    folder = tmp_path / "toy/unitary"
    (folder / "seed_2/config.yaml").write_text("")
    (folder / "seed_3").rename(folder / "elsewhere")
    (folder / "elsewhere/config.yaml").write_text("seed: {")
    line = ["sweep", TOY, "--root", str(tmp_path), "--no-estimate", "--seeds", "1..3"]
    for option, code in (("--dry-run", 0), ("--no-dry-run", 1)):
        seeds = ["1..3"] if option == "--dry-run" else ["1..2"]
        with pytest.raises(SystemExit) as caught:
            cli.main([*line[:-1], *seeds, option])
        assert caught.value.code == code
        streams = capsys.readouterr()
        assert "unitary/seed_2 is broken and left alone: CONFIG" in streams.out
        assert "unitary/elsewhere is broken and left alone: CONFIG" in streams.out
        assert "1 finished, 1 broken" in streams.out + streams.err
    assert (folder / "seed_2/config.yaml").read_text() == ""
    assert not (tmp_path / "toy/sweep/unitary/seed_2.yaml").exists()


def test_changed_configuration_is_refused_by_name(tmp_path: Path) -> None:
    stored_run(tmp_path, status="finished")
    (same,) = expand(parse_options([TOY, "--root", str(tmp_path)]))
    refuse_changes(same)
    (other,) = expand(parse_options([TOY, "--root", str(tmp_path), "--set", "agent.gamma=0.5"]))
    with pytest.raises(ConfigError, match=r"agent\.gamma = 0\.5: .*unitary/seed_1 .* with 0\.9"):
        refuse_changes(other)


def test_what_a_machine_lacked_is_no_change(tmp_path: Path) -> None:
    """A run says what it had in its place."""
    wanted = ("--set", "learner.precision=bf16", "learner.capture=on")
    run = stored_run(tmp_path, *wanted, status="stopped")
    had = {"learner.precision": "fp32", "learner.capture": "off"}
    had_config = with_values(load_yaml(run.path / "config.yaml"), had)
    (run.path / "config.yaml").write_text(dump_yaml(had_config))
    (again,) = expand(parse_options([TOY, "--root", str(tmp_path), *wanted]))
    refuse_changes(again)
    (found,), _ = find_stored([dataclasses.replace(again, name="elsewhere")])
    assert found.path == run.path
    stored = load_yaml(run.path / "config.yaml")
    assert continued(stored, again.config).learner == stored.learner
    (other,) = expand(parse_options([TOY, "--root", str(tmp_path)]))
    fixed = dataclasses.replace(
        other, config=with_values(other.config, {"learner.precision": "tf32"})
    )
    refuse_changes(fixed)


def test_what_a_directory_says(tmp_path: Path) -> None:
    run = stored_run(tmp_path, status="running", step=400, total_steps=1600, elapsed_s=2.0)
    assert standing(tmp_path / "nothing").state == "waiting"
    with open(run.path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert standing(run.path).state == "running"
        assert standing(run.path).step == 400
    assert standing(run.path).state == "died", "no process holds it"
    before = Standing("waiting")
    killed = outcome(run, -signal.SIGKILL, before)
    assert (killed.state, killed.reason) == ("died", "ended by SIGKILL")
    assert outcome(run, -signal.SIGTERM, before).state == "died", "before it could say anything"
    new = dataclasses.replace(run, name="new")
    assert outcome(new, 128 + signal.SIGTERM, before).state == "stopped"
    assert outcome(new, 128 + signal.SIGHUP, before).state == "stopped"
    assert outcome(new, -signal.SIGKILL, before).state == "died"
    run.log_file.write_text("some warning\nmtrl: learner.device = 'cuda': not here\n")
    refused = outcome(run, 2, before)
    assert (refused.state, refused.reason) == ("failed", "learner.device = 'cuda': not here")
    (run.path / "status.json").write_text(json.dumps({"status": "failed", "reason": "earlier"}))
    again = outcome(run, 1, standing(run.path))
    assert again.reason == refused.reason, "a retry that could not begin says why"
    assert outcome(run, 1, before).reason == "earlier", "the run itself has said it"
    for state in ("finished", "failed", "stopped", "pruned"):
        (run.path / "status.json").write_text(json.dumps({"status": state, "reason": "r"}))
        assert standing(run.path).state == state


@contextmanager
def held(trial: Trial) -> Iterator[None]:
    """As by another process."""
    with open(trial.path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_another_process_holds_is_waited_for(stopped: bool, tmp_path: Path) -> None:
    """And reported as that process leaves it, or left alone if the sweep is stopped meanwhile."""
    trial = stored_run(tmp_path, status="running", step=400)
    told: list[Standing] = []
    requests: list[int] = []
    with ThreadPoolExecutor() as pool, held(trial):
        after = pool.submit(attempt, trial, stopping=lambda: len(requests), tell=told.append)
        wait_for(lambda: bool(told), 60, "a word")
        if stopped:
            requests.append(1)
            assert after.result(60) == Standing("waiting", "another process holds it")
        failed = {"status": "failed", "reason": "disk full", "step": 800}
        (trial.path / "status.json").write_text(json.dumps(failed))
    assert told == [Standing("waiting", "another process holds it")]
    if not stopped:
        assert after.result(60) == Standing("failed", "disk full", step=800)
    assert not trial.log_file.exists(), "nothing was started"


def test_what_another_process_holds_takes_no_place(tmp_path: Path) -> None:
    first = stored_run(tmp_path, "--seeds", "1", status="running")
    second = stored_run(tmp_path, "--seeds", "2", status="finished", success_mean=0.5)
    board = Board([first, second])
    with ThreadPoolExecutor() as pool, held(first):
        options = (SweepOptions(config=TOY), Share(1, 1), board, StopRequest())
        engine = pool.submit(run_local, [first, second], *options)
        wait_for(lambda: board.count("finished") == 1, 60, "the second run")
        assert board.rows[second.name].now.success == 0.5
        wait_for(lambda: bool(board.rows[first.name].now.reason), 60, "the first run's turn")
        assert board.count("waiting") == 1
        (first.path / "status.json").write_text(json.dumps({"status": "finished"}))
    engine.result()
    assert board.count("finished") == 2


def test_division_of_a_machine() -> None:
    options = SweepOptions(config=TOY)
    gpus = ("0", "1")
    assert divide(options, 16, ()).parallel == 8
    assert divide(options, 1, ()).parallel == 1
    shared = divide(options, 64, gpus)
    assert (shared.parallel, shared.cores) == (8, 8)
    assert [shared.gpus.count(name) for name in gpus] == [4, 4]
    few_cores = divide(options, 4, gpus)
    assert (few_cores.parallel, few_cores.gpus) == (2, ("0", "1"))
    whole = divide(SweepOptions(config=TOY, gpus_per_run=2), 64, ("0", "1", "2", "3"))
    assert whole.gpus == ("0,1", "2,3")
    for share, count, load in ((0.4, 2, 2), (0.3, 8, 3), (0.75, 4, 1), (1.0, 3, 1)):
        names = tuple(map(str, range(count)))
        runs = divide(SweepOptions(config=TOY, gpus_per_run=share), 64, names)
        assert [runs.gpus.count(name) for name in names] == [load] * count
        assert load * share <= 1.0, "no GPU is given out more than once"
    odd = divide(SweepOptions(config=TOY, gpus_per_run=2), 64, ("0", "1", "2"))
    assert odd.gpus == ("0,1",)
    many = divide(SweepOptions(config=TOY, parallel=5, gpus_per_run=0), 4, gpus)
    assert (many.parallel, many.cores, many.gpus) == (5, 1, ())


@pytest.mark.parametrize(
    ("said", "gpus"), [("-1", ()), ("", ()), ("2, 0", ("2", "0")), ("1,-1,0", ("1",))]
)
def test_hidden_gpus_are_none(
    said: str, gpus: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert visible_gpus(load_config(TOY)) == gpus


def test_time_left_is_not_foretold_by_a_warm_up() -> None:
    """A run of 3,600 s, one that only just began, two to come; one at a time."""
    runs = expand(parse_options([TOY, "--seeds", "1..4"]))
    warmup = runs[0].config.train.warmup_steps
    board = Board(runs, parallel=1)
    rows = list(board.rows.values())
    rows[1].now = Standing("running", step=warmup, total=10 * warmup, seconds=1.0)
    assert "left" not in board.summary()
    rows[0].now = Standing("finished", step=10 * warmup, total=10 * warmup, seconds=3600.0)
    assert "about 3.0 h left" in board.summary()
    more = Board((), parallel=1, total=6)
    more.rows = board.rows
    assert "about 5.0 h left" in more.summary(), "two are still to be added"


# -- real runs ----------------------------------------------------------------------------------


@pytest.fixture
def sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run `mtrl sweep` in this process; -> exit code and what it printed."""
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)

    def run(*words: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main(["sweep", *sweep_line(tmp_path, *words)])
        streams = capfd.readouterr()
        assert "Traceback" not in streams.err + streams.out
        return int(caught.value.code or 0), streams.out + streams.err

    return run


def sweep_line(root: Path, *words: object) -> list[str]:
    line = [TOY, "--root", root, "--no-estimate", "--set", *tiny_settings(*words)]
    return list(map(str, line))


def pid_of(run: Path) -> int:
    """Of the process that last wrote the run's status."""
    return int(json.loads((run / "status.json").read_text())["pid"])


def has_checkpoint(run: Path) -> Callable[[], bool]:
    return lambda: bool(checkpoint.newest_first(run / "checkpoints"))


def test_killed_run_and_killed_driver_lose_nothing(
    run_mtrl: Mtrl, sweep: Callable[..., tuple[int, str]], tmp_path: Path, reference: Path
) -> None:
    grid = ("--methods", "pcgrad", "--seeds", "1..2", "--parallel", 2)
    folder = tmp_path / "toy"
    first = folder / "pcgrad/seed_1"
    driver = run_mtrl.start("sweep", *sweep_line(tmp_path, *grid))
    try:
        wait_for(has_checkpoint(first), 300, "a checkpoint")
        victim = pid_of(first)
        os.kill(victim, signal.SIGKILL)
        wait_for(
            lambda: standing(first).state == "running" and pid_of(first) != victim,
            300,
            "the killed run going on",
        )
        runs = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
        _, errors = driver.communicate(timeout=60)
    finally:
        driver.kill()
    assert re.search(r"pcgrad/seed_1: died(, success \S+)?: ended by SIGKILL", errors)
    _, alive = psutil.wait_procs(runs, timeout=60)
    assert alive == [], "runs end with their sweep"
    assert any(standing(folder / name).state != "finished" for name in names(*map(str, grid)))

    code, shown = sweep(*grid)
    assert code == 0, shown
    assert "2 finished" in shown
    table = re.findall(r"^ pcgrad +2 of 2 +(\S+) +(\S+)", shown, re.MULTILINE)
    success = [standing(folder / f"pcgrad/seed_{seed}").success or 0.0 for seed in (1, 2)]
    assert table == [(f"{statistics.mean(success):.3f}", f"{statistics.stdev(success):.3f}")]
    assert f"mtrl report {folder}" in shown
    states = [json.loads(f.read_text()) for f in sorted(folder.glob("*/seed_?/status.json"))]
    assert [state["status"] for state in states] == ["finished"] * 2
    assert differences(final_state(first), final_state(reference)) == []
    assert evaluations(first) == evaluations(reference)
    stored = load_yaml(first / "config.yaml")
    assert flatten(stored) == flatten(load_yaml(reference / "config.yaml")) | {
        "run_dir": stored.run_dir
    }

    code, shown = sweep(*grid)
    assert (code, "2 finished" in shown, "running" in shown) == (0, True, False)
    after = [json.loads(f.read_text()) for f in sorted(folder.glob("*/seed_?/status.json"))]
    assert after == states, "finished runs are not touched"


def test_a_run_that_fails_at_its_start_is_in_nobodys_way(
    sweep: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, shown = sweep("--set", "replay.capacity=100_000_000_000")
    assert code == 1
    assert "unitary/seed_1 failed: replay.capacity = 100000000000 needs" in shown
    assert not (tmp_path / "toy/unitary").exists()
    code, shown = sweep("--set", "train.total_steps=480", "evaluation.every=0")
    assert code == 0, shown


def test_failed_run_is_reported_and_not_tried_again(
    sweep: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    line = ("--set", "agent.critic_lr=1e30")
    code, shown = sweep(*line)
    assert code == 1
    assert "unitary/seed_1 failed: TrainingError: non-finite" in shown
    status = (tmp_path / "toy/unitary/seed_1/status.json").read_text()

    code, shown = sweep(*line)
    assert code == 1
    assert "non-finite" in shown
    assert "--retry-failed" in shown
    assert (tmp_path / "toy/unitary/seed_1/status.json").read_text() == status


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_stops_at_the_next_checkpoint_and_twice_at_once(
    presses: int, sweep: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    run = tmp_path / "toy/unitary/seed_1"

    def press() -> None:
        try:
            wait_for(has_checkpoint(run), 300, "a checkpoint")
        finally:
            for signum in (signal.SIGINT, signal.SIGTERM)[:presses]:  # two of a kind would merge
                os.kill(os.getpid(), signum)

    thread = threading.Thread(target=press)
    thread.start()
    code, shown = sweep("--seeds", "1", "2", "--parallel", 1, "--set", LONG)
    thread.join()
    assert code == 128 + signal.SIGINT
    ended = "stopped" if presses == 1 else "died"
    assert f"1 {ended}" in shown
    assert "1 waiting" in shown
    assert not (tmp_path / "toy/unitary/seed_2").exists()
    assert standing(run).state == ended
    status = json.loads((run / "status.json").read_text())
    latest, _ = checkpoint.load_latest(run / "checkpoints")
    if presses == 1:
        assert status["status"] == "stopped"
        assert latest is not None
        assert latest["step"] == status["step"]
    else:
        assert "SIGKILL" in shown
