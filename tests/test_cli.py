"""The command line as users meet it: bad input, listings, a whole toy run, a real smoke run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, TINY, Mtrl, succeeded
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtrl.commands import main as cli
from mtrl.config import Config, load_yaml
from mtrl.gradients.diagnostics import GradientMetrics
from mtrl.options.command_line import with_overrides
from mtrl.run import checkpoint
from mtrl.smto import available, create

TOY = str(REPOSITORY / "configs/toy.yaml")
TOY_TASKS = ("toy-east", "toy-north", "toy-west", "toy-south")


def words(text: str) -> str:
    """Without the boxes and line breaks that a terminal's width brings."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str], *expected: str, code: int = 2
) -> str:
    """Run the command in this process; it must end with `code` and say all of `expected`."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    streams = capsys.readouterr()
    message = words(streams.err + streams.out)
    assert caught.value.code == code, message
    assert "Traceback" not in message
    for part in expected:
        assert part in message, f"{part!r} is not in: {message}"
    return message


@pytest.fixture
def no_run(tmp_path: Path) -> list[str]:
    """Options for runs that must not come to be."""
    return ["--run-dir", str(tmp_path / "run")]


BAD_OPTIONS = {
    "unknown option": (
        "--agent.gama 0.9",
        ["--agent.gama = '0.9': unknown option; did you mean '--agent.gamma'?", "--help"],
    ),
    "a word beside the options": ("--seed 1 2", ["word = '2'", "options begin with `--`"]),
    "no value": ("--agent.gamma --seed 1", ["agent.gamma = null: needs a value: a number"]),
    "text for a number": ("--train.total-steps abc", ["train.total_steps = 'abc'", "an integer"]),
    "fraction for an integer": ("--network.width 1.5", ["network.width = '1.5'", "an integer"]),
    "not among the choices": (
        "--env.reward-version v3",
        ["env.reward_version = 'v3'", "one of v1, v2"],
    ),
    "negative batch": ("--replay.batch-size -4", ["replay.batch_size = -4", "multiple of the 4"]),
    "batch 0": ("--replay.batch-size 0", ["replay.batch_size = 0", "multiple of the 4 tasks"]),
    "batch not divisible": (
        "--replay.batch-size 30",
        ["replay.batch_size = 30", "multiple of the 4 tasks", "e.g. 32"],
    ),
    "warm-up longer than the run": (
        "--train.warmup-steps 2000",
        ["train.warmup_steps = 2000", "train.total_steps = 1600"],
    ),
    "horizon 501": ("--env.horizon 501", ["env.horizon = 501", "between 1 and 500"]),
    "horizon 0": ("--env.horizon 0", ["env.horizon = 0", "between 1 and 500"]),
    "51 goals": ("--env.num-goals 51", ["env.num_goals = 51", "between 1 and 50"]),
    "no goals": ("--env.num-goals 0", ["env.num_goals = 0", "between 1 and 50"]),
    "no workers": ("--env.workers 0", ["env.workers = 0", "at least 1"]),
    "checkpoint amid episodes": (
        "--checkpoint.every 410",
        ["checkpoint.every = 410", "multiple of", "= 80", "e.g. 400"],
    ),
    "unknown benchmark": (
        "--env.benchmark MT11",
        ["env.benchmark = 'MT11'", "MT1, ", "MT50", "did you mean 'MT1"],
    ),
    "unknown task": (
        "--env.tasks reach-v2",
        ["env.tasks", "unknown task 'reach-v2'", "did you mean 'reach-v3'"],
    ),
    "one task twice": ("--env.tasks toy-east toy-east", ["env.tasks", "only once"]),
    "toy beside Meta-World": ("--env.tasks toy-east reach-v3", ["env.tasks", "cannot be mixed"]),
    "unknown method": (
        "--agent.smto.name pcgrd",
        ["agent.smto.name = 'pcgrd'", "unitary", "did you mean 'pcgrad'"],
    ),
    "unknown method of one loss": (
        "--agent.actor-smto.name pcgrd",
        ["agent.actor_smto.name = 'pcgrd'", "did you mean 'pcgrad'"],
    ),
    "one of two numbers": ("--agent.betas 0.9", ["agent.betas = '0.9'", "a list of 2 float"]),
    "a list of nothing": ("--env.tasks --seed 2", ["env.tasks", "needs a value: a list"]),
    "unknown method that no loss has": (
        "--agent.smto.name bogus --agent.critic-smto.name mgda --agent.actor-smto.name mgda",
        ["agent.smto.name = 'bogus'", "unitary"],
    ),
    "one method by two names": (
        "--agent.smto.name nash --agent.critic-smto.name nash_mtl",
        ["agent.critic_smto.name = 'nash_mtl'", "is nash, which agent.smto.name has"],
    ),
    "a method of one loss without the options that it needs": (
        "--agent.actor-smto.name fixed",
        ["agent.actor_smto.options = {}", "method fixed: weights must be"],
    ),
    "common option beside one of a loss": (
        "--agent.smto.name cagrad --agent.smto.options cc=1 --agent.critic-smto.options c=0.5",
        ["agent.smto.options.cc = 1", "has no such option"],
    ),
    "MT1 without task": ("--env.benchmark MT1", ["env.tasks", "MT1 needs one task"]),
    "MT1 with two tasks": (
        "--env.benchmark MT1 --env.tasks reach-v3 push-v3",
        ["env.tasks", "exactly one task"],
    ),
    "too few fixed weights": (
        "--agent.smto.name fixed --agent.smto.options weights=[1,2]",
        ["agent.smto.options = {'weights': [1, 2]}", "method fixed", "4 "],
    ),
    "negative fixed weight": (
        "--agent.smto.name fixed --agent.smto.options weights=[1,2,3,-1]",
        ["agent.smto.options", "method fixed", "negative"],
    ),
    "option of another method": (
        "--agent.smto.options weights=[1,1,1,1]",
        ["agent.smto.options.weights = [1, 1, 1, 1]", "unitary has no such option", "none"],
    ),
    "misspelt option": (
        "--agent.smto.name cagrad --agent.smto.options update_evry=2",
        ["agent.smto.options.update_evry = 2", "update_every", "did you mean 'update_every'"],
    ),
    "text for an option's number": (
        "--agent.critic-smto.name cagrad --agent.critic-smto.options c=much",
        ["agent.critic_smto.options.c = 'much'", "must be a number"],
    ),
    "option out of range": (
        "--agent.smto.name rgd --agent.smto.options p=0",
        ["agent.smto.options = {'p': 0}", "method rgd", "p must be"],
    ),
    "option of the temperature's method": (
        "--agent.temperature-smto.name pcgrad --agent.temperature-smto.options p=1",
        ["agent.temperature_smto.options.p = 1", "update_every"],
    ),
    "an option that the run sets": (
        "--agent.smto.name pcgrad --agent.smto.options seed=3",
        ["agent.smto.options.seed = 3", "no such option"],
    ),
    "an option without a value": (
        "--agent.smto.name rgd --agent.smto.options p",
        ["agent.smto.options = 'p'", "'p' is not key=value"],
    ),
    "negative interval": ("--diagnostics.every -1", ["diagnostics.every = -1", "zero (off)"]),
    "no chunk": ("--agent.chunk-size 0", ["agent.chunk_size = 0", "at least 1"]),
    "missing plug-in": (
        "--plugins no/such.py",
        ["plugins = 'no/such.py'", "no such file"],
    ),
    "gamma 1": ("--agent.gamma 1.0", ["agent.gamma = 1.0", "[0, 1)"]),
    "negative lr": ("--agent.actor-lr -1e-3", ["agent.actor_lr = -0.001", "positive"]),
    "infinite lr": ("--agent.critic-lr inf", ["agent.critic_lr = inf", "finite"]),
    "nan l2": ("--agent.actor-l2 nan", ["agent.actor_l2 = nan", "finite"]),
    "negative seed": ("--seed -1", ["seed = -1", "zero or positive"]),
    "seed of 64 bits": (f"--seed {2**64 - 1}", [f"seed = {2**64 - 1}", f"at most {2**63 - 1}"]),
    "seed of 33 bits on Meta-World": (
        f"--env.tasks reach-v3 --seed {2**32} --replay.batch-size 32",
        [f"seed = {2**32}", f"at most {2**32 - 1}"],
    ),
    "neither on nor off": (
        "--learner.compile maybe",
        ["learner.compile = 'maybe': must be one of auto, on, off"],
    ),
    "neither true nor false": ("--env.fast=maybe", ["env.fast = 'maybe'", "true or false"]),
    "an option's value twice": (
        "--agent.smto.name rgd --agent.smto.options p=0.1 --agent.smto.options p=0.2",
        ["agent.smto.options = 'p=0.1 p=0.2'", "'p' stands twice"],
    ),
    "a switch as a word": (
        "--agent.smto.name fixed --agent.smto.options weights=[1,on,1,1]",
        ["agent.smto.options.weights = [1, 'on', 1, 1]", "a list of float"],
    ),
    "both ways at once": (
        "--overwrite --resume-if-exists",
        ["resume_if_exists = true", "cannot be combined with overwrite"],
    ),
    "device of another machine": (
        "--learner.device cuda:77",
        ["learner.device = 'cuda:77'", "CUDA devices"],
    ),
    "unknown device": ("--learner.device tpu", ["learner.device = 'tpu'", "auto, cpu, cuda"]),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_option(case: str, no_run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options, expected = BAD_OPTIONS[case]
    refused(["train", TOY, *TINY, *no_run, *options.split()], capsys, *expected)


def test_values_on_the_command_line_are_those_of_a_file() -> None:
    def parsed(line: str) -> Config:
        return with_overrides(Config(), "test", line.split())

    options = "--agent.smto.name fixed --agent.smto.options weights=[1e-3,[1e-4,010]]"
    assert parsed(options).agent.smto.options == {"weights": [0.001, [0.0001, 10]]}
    twice = "--agent.smto.options a=1 --agent.tau 0.1 --agent.smto.options=b=off"
    assert parsed(twice).agent.smto.options == {"a": 1, "b": "off"}
    for word in ("off", "False", "no"):
        line = f"--learner.compile {word} --env.fast {word} --network.layer_norm={word}"
        config = parsed(line)
        assert config.learner.compile == "off"
        assert not config.env.fast
        assert not config.network.layer_norm
    config = parsed("--learner.compile true --network.layer-norm yes --env.no-fast --logging.csv")
    assert config.learner.compile == "on"
    assert config.network.layer_norm
    assert not config.env.fast
    assert config.logging.csv
    for word in ("None", "null", "~"):
        line = f"--agent.max-grad-norm {word} --agent.critic-smto.name {word} --protocol {word}"
        assert parsed(line) == dataclasses.replace(Config(), protocol="none")
    config = parsed("--agent.max-grad-norm 1e-3 --env.workers 3 --agent.actor-smto.name pcgrad")
    assert (config.agent.max_grad_norm, config.env.workers) == (0.001, 3)


@pytest.mark.parametrize("case", ["horizon 0", "unknown method", "unknown device"])
def test_bad_option_leaves_no_run_directory(
    case: str, tmp_path: Path, no_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Or the corrected command would be told that its run exists already."""
    refused(["train", TOY, *TINY, *no_run, *BAD_OPTIONS[case][0].split()], capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("agent: {gama: 0.9}", ["agent.gama = 0.9", "unknown key", "did you mean 'gamma'"]),
        ("train: {total_steps: abc}", ["train.total_steps = 'abc'", "an integer"]),
        ("env: {horizon: [", ["config.yaml", "not valid YAML", "line 1"]),
        ("- env\n- agent", ["mapping"]),
        ("just text", ["'just text'", "mapping"]),
        ("\0", ["config.yaml", "not valid YAML"]),
    ],
)
def test_bad_yaml(
    text: str,
    expected: list[str],
    tmp_path: Path,
    no_run: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    refused(["train", str(tmp_path / "config.yaml"), *no_run], capsys, *expected)
    assert not (tmp_path / "run").exists()


def test_config_that_is_not_text(
    tmp_path: Path, no_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    refused(["train", str(tmp_path / "config.yaml"), *no_run], capsys, "config.yaml")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "trian configs/toy.yaml",
            ["'trian'", "train, resume, evaluate, bench, runs, report", "mean 'train'"],
        ),
        ("train", ["train needs a configuration"]),
        ("train --seed 3", ["configuration first", "--seed"]),
        ("train toy.yml", ["CONFIG = 'toy.yml'", "no such file or preset"]),
        ("train no/such.yaml", ["CONFIG = 'no/such.yaml'", "no such file or preset", "toy"]),
        ("train toi", ["CONFIG = 'toi'", "did you mean 'toy'"]),
        ("resume", ["resume needs a run directory"]),
        ("resume no/such/run", ["RUN_DIR = 'no/such/run'", "not a run directory"]),
        ("evaluate", ["evaluate needs a run directory"]),
        ("evaluate no/such/run", ["RUN_DIR = 'no/such/run'", "not a run directory"]),
        ("train supervised_digits", ["supervised_digits.yaml': is for `mtrl supervised`"]),
        ("sweep supervised_digits", ["is for `mtrl supervised`", "docs/supervised.md"]),
        ("bench supervised_digits", ["is for `mtrl supervised`"]),
        ("supervised toy", ["toy.yaml': is for `mtrl train`"]),
        ("list", ["list needs one of tasks, benchmarks, methods, networks, presets"]),
        ("list task", ["tasks, benchmarks, methods, networks, presets", "'task'"]),
    ],
)
def test_bad_command_line(
    line: str, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(line.split(), capsys, *expected)


def test_overwrite_spares_what_is_not_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    refused(
        ["train", TOY, *TINY, "--run-dir", str(tmp_path), "--overwrite"],
        capsys,
        f"run_dir = '{tmp_path}'",
        "not a run directory",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_run_dir_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    path.write_text("content")
    for option in ([], ["--overwrite"]):
        refused(["train", TOY, *TINY, "--run-dir", str(path), *option], capsys, str(path))
    assert path.read_text() == "content"


def test_real_process_exits_2_without_traceback(run_mtrl: Mtrl) -> None:
    done = run_mtrl.process("train", TOY, "--agent.smto.name", "pcgrd")
    assert done.returncode == 2
    assert done.stderr.startswith("mtrl: agent.smto.name = 'pcgrd'")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_replay_that_does_not_fit_says_how_much_it_needs(run_mtrl: Mtrl, tmp_path: Path) -> None:
    done = run_mtrl.toy(tmp_path / "run", "--replay.capacity", "10_000_000_000_000")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "replay.capacity" in done.stderr
    sizes = re.findall(r"([\d.]+) GiB", done.stderr)
    # 10^13 transitions of 2 + 2 + 1 + 2 + 1 floats of 4 bytes
    assert float(sizes[0]) == pytest.approx(10**13 * 8 * 4 / 2**30, rel=1e-3)
    assert len(sizes) == 2, "what is free is said too"


def test_help_and_version(capsys: pytest.CaptureFixture[str], run_mtrl: Mtrl) -> None:
    done = run_mtrl.process("--help")
    assert done.returncode == 0
    for command in ("train", "resume", "evaluate", "list"):
        assert f"mtrl {command}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2
    capsys.readouterr()
    cli.main(["bench", "--help"])
    assert "what a vector step spends its time on" in capsys.readouterr().out
    cli.main(["--version"])
    assert re.fullmatch(r"mtrl \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["list", "tasks"])
    tasks = capsys.readouterr().out.split()
    assert sum(task.endswith("-v3") for task in tasks) == 50
    assert set(TOY_TASKS) <= set(tasks)
    assert len(tasks) == len(set(tasks))

    cli.main(["list", "benchmarks"])
    sizes = {}
    for line in capsys.readouterr().out.splitlines():
        if match := re.match(r"(\w+) \((\d+) tasks\): (.*)", line):
            sizes[match[1]] = int(match[2])
            assert len(match[3].split(", ")) == sizes[match[1]]
            assert set(match[3].split(", ")) <= set(tasks)
    assert sizes == {"MT10": 10, "MT25": 25, "MT50": 50, "toy": 4}

    cli.main(["list", "methods"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    heads = [line for line in text.splitlines() if re.match(r"\w.*: needs ", line)]
    assert [re.split(r"[ :]", line)[0] for line in heads] == list(available())
    shown = {line.split(":")[0]: line for line in heads}
    assert "needs losses" in shown["unitary (or mean)"]
    assert "needs gramian" in shown["pcgrad"]
    assert shown["graddrop (or gradient_sign_dropout)"].endswith("needs jacobian")
    assert shown["famo"].endswith("needs positive losses")
    cagrad = words(text).split("cagrad: ")[1].split(": needs")[0]
    assert f"c={create('cagrad', 2).c}" in cagrad
    assert "seed=" not in text, "the run sets it"

    cli.main(["list", "presets"])
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert {path.stem for path in (REPOSITORY / "configs").glob("*.yaml")} <= listed


# -- a whole toy run ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy_run(run_mtrl: Mtrl, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "toy"
    succeeded(run_mtrl.toy(path, "--env.num-goals", 2))
    return path


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def series(run: Path) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value)]} from metrics.jsonl."""
    points = defaultdict(list)
    for record in records(run):
        for tag, value in record.items():
            if tag != "step":
                points[tag].append((int(record["step"]), value))
    return dict(points)


def tensorboard_series(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_config_of_the_run_reproduces_it(toy_run: Path) -> None:
    config = load_yaml(toy_run / "config.yaml")
    assert config.train.total_steps == 1600, "command-line overrides are in it"
    assert config.agent.gamma == 0.9, "the preset's values are in it"
    assert config.agent.tau == 0.005, "the defaults are in it"
    text = (toy_run / "config.yaml").read_text()
    assert "tau: 0.005" in text
    assert "num_goals: 2" in text


def test_environment_and_status(toy_run: Path) -> None:
    environment = json.loads((toy_run / "environment.json").read_text())
    for package in ("torch", "metaworld", "mujoco", "numpy"):
        assert re.match(r"\d+\.\d+", environment["versions"][package])
    status = json.loads((toy_run / "status.json").read_text())
    assert status["status"] == "finished"
    assert status["reason"] == ""
    assert status["step"] == status["total_steps"] == 1600


def test_metrics_hold_the_documented_tags(toy_run: Path) -> None:
    tags = series(toy_run)
    for prefix in (
        "train/critic_loss",
        "train/actor_loss",
        "train/alpha",
        "train/episode_success",
        "train/episode_return",
        "train/reward_std",
        "smto/critic/weight",
        "smto/actor/weight",
        "eval/success",
        "eval/return",
    ):
        for task in TOY_TASKS:
            assert f"{prefix}/{task}" in tags
    for loss in ("critic", "actor"):
        for name in GradientMetrics._fields:
            assert f"gradients/{loss}/{name}" in tags
    for tag in ("eval/success_mean", "time/env_steps_per_s", "time/updates_per_s", "time/eval_s"):
        assert tag in tags
    assert "memory/learner_mib" in tags
    for tag, points in tags.items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), f"{tag} has steps out of order or twice"
        assert all(math.isfinite(value) for _, value in points), tag
    assert [step for step, _ in tags["eval/success_mean"]] == [0, 800, 1600]
    assert [step for step, _ in tags["train/reward_std/toy-east"]] == [400, 800, 1200, 1600]
    # Random actions until step 400: no update, hence no loss, before it.
    assert [step for step, _ in tags["train/critic_loss/toy-east"]] == [800, 1200, 1600]


def test_metrics_agree_with_each_other(toy_run: Path) -> None:
    tags = series(toy_run)
    for index in range(3):
        per_task = [tags[f"eval/success/{task}"][index][1] for task in TOY_TASKS]
        assert tags["eval/success_mean"][index][1] == pytest.approx(sum(per_task) / 4)
    for task in TOY_TASKS:
        assert {value for _, value in tags[f"smto/critic/weight/{task}"]} == {0.25}
    # Rewards of the four tasks are scaled 0.1 : 1 : 10 : 100, and stored raw.
    deviations = [tags[f"train/reward_std/{task}"][-1][1] for task in TOY_TASKS]
    for small, large in itertools.pairwise(deviations):
        assert 3 < large / small < 30


def test_heat_maps_at_every_evaluation(toy_run: Path) -> None:
    events = EventAccumulator(str(toy_run), size_guidance={"images": 0})
    events.Reload()
    for loss in ("critic", "actor"):
        images = events.Images(f"gradients/{loss}/cosine")
        assert [image.step for image in images] == [800, 1600]
        assert min(image.width for image in images) > 100


def test_tensorboard_equals_metrics(toy_run: Path) -> None:
    truth, shown = series(toy_run), tensorboard_series(toy_run)
    assert truth.keys() == shown.keys()
    for tag, points in truth.items():
        assert [step for step, _ in shown[tag]] == [step for step, _ in points]
        values = [value for _, value in shown[tag]]
        assert values == pytest.approx([value for _, value in points], rel=1e-5)


def test_checkpoints_of_the_run(toy_run: Path) -> None:
    names = {path.name for path in (toy_run / "checkpoints").iterdir()}
    assert names == {"best.pt", "step_000000001200.pt", "step_000000001600.pt"}
    best = checkpoint.load(toy_run / "checkpoints/best.pt")
    scores = dict(series(toy_run)["eval/success_mean"])
    assert scores[best["step"]] == max(scores.values())


def evaluate(run_mtrl: Mtrl, run: Path, *options: object) -> dict[str, Any]:
    done = run_mtrl("evaluate", run, "--json", *options)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_evaluate_agrees_with_the_run(toy_run: Path, run_mtrl: Mtrl) -> None:
    """Two goals exist, so 50 episodes are the same two as in the run's final evaluation."""
    tags = series(toy_run)
    latest = evaluate(run_mtrl, toy_run, "--checkpoint", "latest")
    assert latest["step"] == 1600
    assert latest["episodes_per_task"] == 2
    assert latest["method"] == "unitary"
    assert latest["success_mean"] == tags["eval/success_mean"][-1][1]
    for task in TOY_TASKS:
        assert latest["success"][task] == tags[f"eval/success/{task}"][-1][1]
        assert latest["return"][task] == pytest.approx(tags[f"eval/return/{task}"][-1][1])


def test_evaluate_best_and_file(toy_run: Path, run_mtrl: Mtrl) -> None:
    scores = dict(series(toy_run)["eval/success_mean"])
    best = evaluate(run_mtrl, toy_run)
    assert best["success_mean"] == max(scores.values()) == scores[best["step"]]
    path = toy_run / "checkpoints/step_000000001200.pt"
    chosen = evaluate(run_mtrl, path, "--episodes-per-task", 1)
    assert chosen["step"] == 1200
    assert chosen["episodes_per_task"] == 1
    done = run_mtrl("evaluate", path.name, "--episodes-per-task", 1, "--json", cwd=path.parent)
    found = json.loads(done.stdout)
    assert found == chosen | {"checkpoint": path.name}, "named from inside its folder"


def test_evaluate_refuses_bad_options(toy_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(toy_run)
    missing = str(toy_run / "checkpoints/none.pt")
    refused(["evaluate", run, "--checkpoint", missing], capsys, "none.pt", "a checkpoint file")
    refused(["evaluate", run, "--checkpoint", f"{run}/config.yaml"], capsys, "damaged", code=1)
    refused(["evaluate", run, "--episodes-per-task", "0"], capsys, "episodes_per_task = 0")
    refused(["evaluate", run, "--episodes", "x"], capsys, "--episodes")
    best = f"{run}/checkpoints/best.pt"
    refused(["evaluate", best, "--checkpoint", "latest"], capsys, "is a checkpoint already")
    alone = f"{run}/metrics.jsonl"
    refused(["evaluate", alone], capsys, f"RUN_DIR = '{alone}'", "not the checkpoint of a run")


def test_resume_refuses_other_settings(toy_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (toy_run / "config.yaml").read_bytes()
    run = str(toy_run)
    refused(["resume", run, "--agent.gamma", "0.8"], capsys, "agent.gamma = 0.8", "0.9")
    refused(["resume", run, "--seed", "2"], capsys, "seed = 2", "keeps seed = 1")
    refused(
        ["resume", run, "--train.total-steps", "800"],
        capsys,
        "train.total_steps = 800",
        "only be raised",
        "1600",
    )
    assert (toy_run / "config.yaml").read_bytes() == before


def test_existing_run_is_kept_without_overwrite(
    toy_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in toy_run.rglob("*") if path.is_file()}
    refused(
        ["train", TOY, *TINY, "--run-dir", str(toy_run)],
        capsys,
        f"run_dir = '{toy_run}'",
        "--overwrite",
        "mtrl resume",
    )
    after = {path: path.read_bytes() for path in toy_run.rglob("*") if path.is_file()}
    assert after == before


def test_overwrite_replaces_the_run(run_mtrl: Mtrl, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 9\n")
    (run / "metrics.jsonl").write_text('{"step": 80, "old": 1}\n')
    (run / "checkpoints").mkdir()
    old = run / "checkpoints/step_000000009999.pt"
    old.write_bytes(b"old")
    options = ["--train.total-steps", 480, "--evaluation.every", 0, "--overwrite"]
    done = run_mtrl.toy(run, *options)
    assert done.returncode == 0, done.stderr
    assert not old.exists()
    assert load_yaml(run / "config.yaml").seed == 1
    assert "old" not in series(run)
    assert records(run)[-1]["step"] == 480


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_run_dir_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    refused(["train", TOY, *TINY, "--run-dir", str(tmp_path / "run")], capsys, "cannot be made")


def test_smoke_preset_trains_on_real_meta_world(run_mtrl: Mtrl, tmp_path: Path) -> None:
    run, half = tmp_path / "smoke", ("--train.total-steps", 2000, "--evaluation.every", 1000)
    done = run_mtrl("train", REPOSITORY / "configs/smoke.yaml", "--run-dir", run, *half)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "reach-v3" in done.stdout
    shown = tensorboard_series(run)
    for task in ("reach-v3", "drawer-close-v3"):
        assert [step for step, _ in shown[f"eval/success/{task}"]] == [0, 1000, 2000]
        assert all(0 <= value <= 1 for _, value in shown[f"eval/success/{task}"])
        assert shown[f"train/reward_std/{task}"][-1][1] > 0
    assert series(run).keys() == shown.keys()
