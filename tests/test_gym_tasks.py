"""Gymnasium environments of a user's own as tasks."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import yaml
from conftest import REPOSITORY, TINY, Mtrl, final_state, metrics

from mtrl.commands import main as cli
from mtrl.config import Config
from mtrl.envs.gym_tasks import GymTask, dimensions
from mtrl.envs.success import TaskError, is_solved
from mtrl.envs.vector import VectorEnv, WorkerError
from mtrl.options.plugins import load_plugins

PLUGIN = '''
import gymnasium
import numpy as np

class Countdown(gymnasium.Env):
    """Ends after a number of steps that the start decides: episodes end at different times."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-3.0, 5.0, (1,), np.float32)

    def __init__(self, scale):
        self.scale = scale

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.start = int(self.np_random.integers(3, 9))
        return self._observation(), {}

    def step(self, action):
        self.left -= 1
        info = {"is_success": bool(action[0] > 1.0), "action": float(action[0])}
        return self._observation(), self.scale * float(action[0]), self.left == 0, False, info

    def _observation(self):
        return np.array([self.left, self.start], np.float32)

class WithSpaces(Countdown):
    def __init__(self, observation, action, success=0.0, extra=None):
        super().__init__(1)
        self.observation_space, self.action_space, self.success = observation, action, success
        self.extra = extra

    def step(self, action):
        outcome = super().step(np.ravel(action))
        return *outcome[:4], {"success": self.success if self.left < 3 else None}

    def _observation(self):
        return self.observation_space.low if self.extra is None else self.extra

Box, float32 = gymnasium.spaces.Box, np.float32
SEEN, DONE = Box(-1, 1, (2,), float32), Box(-1, 1, (1,), float32)
WIDE = np.array([1, 2, 3], float32)
for name, arguments in {
    "whole": (SEEN, Box(0, 10, (1,), np.int64)),
    "pixels": (SEEN, Box(0, 255, (2,), np.uint8)),
    "unbounded": (SEEN, Box(-np.inf, np.inf, (1,), float32)),
    "half": (SEEN, Box(0, np.inf, (1,), float32)),
    "fixed": (SEEN, Box(-WIDE, np.array([1, -2, 3], float32))),
    "matrix": (SEEN, Box(-1, 1, (2, 2), float32)),
    "none": (SEEN, Box(-1, 1, (0,), float32)),
    "discrete": (SEEN, gymnasium.spaces.Discrete(3)),
    "blind": (Box(-1, 1, (0,), float32), DONE),
    "number": (gymnasium.spaces.Discrete(3), DONE),
    "parts": (gymnasium.spaces.Dict(a=SEEN), DONE),
    "narrow": (SEEN, DONE, 0.0, np.zeros(1, float32)),
    "double": (Box(-np.inf, np.inf, (3,), np.float64), Box(0, 5, (2,), np.float64)),
    "half-precision": (SEEN, Box(0, 5, (2,), np.float16)),
    "image": (Box(0, 255, (2, 3), np.uint8), Box(0, 5, (2,), float32)),
    "silent": (SEEN, DONE, None),
    "nan": (SEEN, DONE, float("nan")),
    "inf": (SEEN, DONE, np.array([np.inf])),
    "words": (SEEN, DONE, "no"),
}.items():
    keys = dict(zip(("observation", "action", "success", "extra"), arguments))
    gymnasium.register(f"spaces-{name}-v0", WithSpaces, kwargs=keys)

for scale in (1, 10, 100):
    gymnasium.register(f"countdown-{scale}-v0", Countdown, kwargs={"scale": scale})
'''
TASKS = tuple(f"countdown-{scale}-v0" for scale in (1, 10, 100))


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "countdown.py"
    path.write_text(PLUGIN)
    load_plugins(dataclasses.replace(Config(), plugins=(str(path),)))
    return path


def test_a_goal_is_a_start(plugin: Path) -> None:
    task = GymTask(TASKS[0], num_goals=20, seed=3)
    starts = [task.reset(options={"goal": goal})[0].tolist() for goal in range(20)]
    again = [task.reset(options={"goal": goal})[0].tolist() for goal in range(20)]
    assert starts == again
    assert len({tuple(start) for start in starts}) > 3
    other = GymTask(TASKS[0], num_goals=20, seed=4)
    assert starts != [other.reset(options={"goal": goal})[0].tolist() for goal in range(20)]
    with pytest.raises(ValueError, match=r"0\.\.19"):
        task.reset(options={"goal": 20})


def test_actions_success_and_horizon(plugin: Path) -> None:
    task = GymTask(TASKS[1], horizon=3)
    task.reset(options={"goal": 0})
    for action, expected in ((-1.0, -3.0), (0.0, 1.0), (1.0, 5.0)):
        _, reward, _, truncated, info = task.step(np.array([action], np.float32))
        assert info["action"] == pytest.approx(expected)
        assert reward == pytest.approx(10 * expected)
        assert info["success"] is (expected > 1.0)
    assert truncated
    assert task.action_space == gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (["Pendulum-v1", "MountainCarContinuous-v0"], "the spaces of Pendulum-v1 and"),
        (["CartPole-v1"], "must be a Box"),
        (["Pendulum-v1", "toy-east"], "cannot be mixed"),
        (["Pendulum-v1", "Pendulum-v77"], "unknown task 'Pendulum-v77'"),
    ],
)
def test_tasks_that_do_not_fit(
    tasks: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    toy = str(REPOSITORY / "configs/toy.yaml")
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", toy, *TINY, "--run-dir", str(run), "--env.tasks", *tasks])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("mtrl: env.tasks = ")
    assert expected in message
    assert not run.exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("whole", "not continuous"),
        ("pixels", "not continuous"),
        ("unbounded", "component 0 lies in [-inf, inf]"),
        ("half", "component 0 lies in [0.0, inf]"),
        ("fixed", "component 1 lies in [-2.0, -2.0]"),
        ("matrix", "shape must be (k,)"),
        ("none", "empty"),
        ("discrete", "must be a Box"),
        ("blind", "empty"),
        ("number", "must be a Box"),
        ("parts", "must be a Box"),
    ],
)
def test_spaces_that_cannot_work_are_refused_by_the_tasks_name(
    plugin: Path, name: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", str(REPOSITORY / "configs/toy.yaml"), *TINY, "--run-dir", str(tmp_path / "r")]
    with pytest.raises(SystemExit) as caught:
        cli.main([*line, "--plugins", str(plugin), "--env.tasks", TASKS[0], f"spaces-{name}-v0"])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"task spaces-{name}-v0 has " in message
    assert expected in message
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("name", "size"), [("double", 3), ("half-precision", 2), ("image", 6)])
def test_other_boxes_work(plugin: Path, name: str, size: int) -> None:
    task = GymTask(f"spaces-{name}-v0")
    assert dimensions((f"spaces-{name}-v0",)) == (size, 2)
    task.reset()
    for action, expected in ((-1.0, 0.0), (1.0, 5.0), (0.0, 2.5)):
        observation, reward, *_ = task.step(np.array([action, 0.0], np.float32))
        assert observation.shape == (size,)
        assert reward == pytest.approx(expected, rel=2e-3)  # float16 has 11 bits


def test_an_observation_is_never_stretched(plugin: Path) -> None:
    with pytest.raises(TaskError, match=r"spaces-narrow-v0 returns 1 observations; .* has 2"):
        GymTask("spaces-narrow-v0").reset()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, False),
        ({"success": None, "is_success": True}, True),
        ({"success": None}, False),
        ({"success": 0.0, "is_success": True}, False),
        ({"success": np.array([1.0])}, True),
        ({"is_success": np.bool_(True)}, True),
    ],
)
def test_what_counts_as_success(said: dict, expected: bool) -> None:
    assert is_solved("task", said) is expected


@pytest.mark.parametrize("name", ["nan", "inf", "words"])
def test_a_success_that_is_no_number_stops_a_worker(plugin: Path, name: str) -> None:
    task = f"spaces-{name}-v0"
    factory = functools.partial(GymTask, task, plugins=(str(plugin),))
    with VectorEnv([TASKS[0], task], [factory] * 2, 2, 1, workers=1) as envs:
        envs.reset([0, 0])

        def play() -> None:
            for _ in range(9):
                envs.send(np.zeros((2, 1), np.float32), [0, 0])
                envs.receive()

        with pytest.raises(WorkerError, match=rf"failed: task {task}: info\['success'\] is ") as no:
            play()
    assert "\n" not in str(no.value)


def test_a_success_that_is_no_number_is_an_error_in_training_and_evaluation(
    plugin: Path, run_mtrl: Mtrl, tmp_path: Path
) -> None:
    task, run = "spaces-nan-v0", tmp_path / "run"
    toy = ("--plugins", plugin, "--env.tasks", task, "--protocol", "none")
    few = ("--train.total-steps", 200, "--train.warmup-steps", 100, "--checkpoint.every", 100)
    refused = run_mtrl.toy(run, *toy, *few)
    assert refused.returncode == 1
    wanted = rf"tasks: {task}\) failed: task {task}: info\['success'\] is nan;"
    assert re.search(wanted, refused.stderr)
    assert "Traceback" not in refused.stderr
    assert not run.exists(), "it has learned nothing, and is in nobody's way"

    # A run whose environment says so only now.
    good = run_mtrl.toy(tmp_path / "good", *toy[:3], "spaces-silent-v0", *toy[4:], *few)
    assert good.returncode == 0, good.stderr
    config = yaml.safe_load((tmp_path / "good/config.yaml").read_text())
    config["env"]["tasks"] = [task]
    (tmp_path / "good/config.yaml").write_text(yaml.safe_dump(config))
    evaluated = run_mtrl("evaluate", tmp_path / "good", "--json")
    assert evaluated.returncode == 1
    assert re.search(wanted, evaluated.stderr)
    assert evaluated.stdout == ""


def test_training_and_resume_where_episodes_end_at_different_times(
    plugin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ["--plugins", str(plugin), "--env.tasks", *TASKS, "--replay.batch-size", "48"]
    options += ["--train.total-steps", "960", "--checkpoint.every", "480"]
    line = ["train", str(REPOSITORY / "configs/toy.yaml"), *TINY, "--run-dir", str(run), *options]
    cli.main(line)
    state = final_state(run, 960)
    assert min(state["episodes"]) > 320 // 20, "episodes end before the horizon"
    assert len(set(state["episodes"])) > 1
    logged = [line for line in metrics(run) if f"train/reward_std/{TASKS[0]}" in line]
    deviations = [logged[-1][f"train/reward_std/{name}"] for name in TASKS]
    assert deviations == sorted(deviations)
    capsys.readouterr()

    cli.main(["resume", str(run / "checkpoints/step_000000000480.pt")])
    shown = capsys.readouterr().err
    assert "resumed at step 480" in shown
    assert "new episodes start" in shown
    assert json.loads((run / "status.json").read_text())["status"] == "finished"
    assert metrics(run)[-1]["step"] == 960


def test_the_example_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    run = tmp_path / "run"
    short = "--train.total-steps 600 --train.warmup-steps 300 --env.horizon 20 --network.width 16"
    short += " --checkpoint.every 300 --evaluation.final-episodes-per-task 1 --env.workers 1"
    short += " --learner.threads 1 --learner.device cpu --replay.batch-size 48 --logging.every 150"
    cli.main(["train", "examples/pendulums.yaml", *short.split(), "--run-dir", str(run)])
    evaluated = [line for line in metrics(run) if "eval/success_mean" in line]
    assert [line["step"] for line in evaluated] == [0, 600]
    for gravity in ("light", "usual", "heavy"):
        # Pendulum's costs: pi^2 + 0.1 8^2 + 0.001 2^2 a step at most.
        assert -20 * 16.3 <= evaluated[0][f"eval/return/pendulum-{gravity}-v0"] < 0


def test_dimensions_of_gymnasiums_own_mujoco_tasks() -> None:
    assert dimensions(("HalfCheetah-v5", "Walker2d-v5")) == (17, 6)
