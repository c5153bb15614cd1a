"""Gymnasium environments of a user's own as tasks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from conftest import REPOSITORY, TINY, final_state, metrics

from mtrl import cli
from mtrl.config import Config
from mtrl.envs.gym_tasks import GymTask, dimensions
from mtrl.plugins import load_plugins

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
    assert [line["step"] for line in evaluated] == [600]
    for gravity in ("light", "usual", "heavy"):
        # Pendulum's costs: pi^2 + 0.1 8^2 + 0.001 2^2 a step at most.
        assert -20 * 16.3 <= evaluated[0][f"eval/return/pendulum-{gravity}-v0"] < 0


def test_dimensions_of_gymnasiums_own_mujoco_tasks() -> None:
    assert dimensions(("HalfCheetah-v5", "Walker2d-v5")) == (17, 6)
