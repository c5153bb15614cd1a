"""What a run leaves beside its numbers: videos, TensorBoard's page, CSV, an exported policy."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import imageio.v3
import numpy as np
import pytest
import torch
from conftest import PATIENCE, PCGRAD, REPOSITORY, Mtrl, empty_charts, wait_for
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from torch.utils.tensorboard import summary

from mtrl.agent import Agent
from mtrl.commands import main as cli
from mtrl.commands.trained import open_trained
from mtrl.commands.videos import record
from mtrl.config import Config, EnvConfig, LoggingConfig, TrainConfig
from mtrl.config.benchmarks import TOY
from mtrl.envs import rendering, toy
from mtrl.envs.film import GREEN, HOLD, STRIDE
from mtrl.run.dashboard import REINFORCEMENT_LEARNING
from mtrl.run.directory import RunDirectory
from mtrl.run.recorder import Recorder
from mtrl.run.sinks import import_wandb
from mtrl.run.stopping import TrainingError
from mtrl.run.tags import per_task


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short toy run in this process, with everything on."""
    path = tmp_path_factory.mktemp("outputs") / "run"
    short = ("--train.total-steps", 480, "--evaluation.every", 480, "--logging.every", 80)
    line = Mtrl.toy_line(path, *PCGRAD, *short, "--train.video-every", 480, "--logging.csv")
    cli.main([str(word) for word in line])
    return path


def events(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run), size_guidance={"images": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


# -- videos -------------------------------------------------------------------------------------

SIZE = Config().train.video_size


def to_the_target(observations: NDArray[np.float32]) -> NDArray[np.float32]:
    """All tasks but the last: that one goes the other way."""
    targets = np.array([toy.TARGETS[name] for name in TOY], np.float32)
    actions = np.clip((targets - observations) / toy.STEP_SIZE, -1.0, 1.0)
    actions[-1] *= -1
    return actions.astype(np.float32)


def test_videos_show_each_task_until_it_is_solved(tmp_path: Path) -> None:
    config = dataclasses.replace(
        Config(), env=EnvConfig(benchmark="toy", horizon=20, num_goals=1, workers=1)
    )
    grid = record(config, to_the_target, tmp_path)
    films = {name: imageio.v3.imread(tmp_path / f"{name}.mp4") for name in TOY}
    for name, film in films.items():
        assert film.shape[1:] == (SIZE, SIZE, 3)
        corner = film[-1][2, SIZE // 2].astype(int)  # of the bar, where nothing is written
        solved = name != TOY[-1]
        assert (np.abs(corner - np.array(GREEN)).max() < 40) == solved
        assert np.abs(film[0][2, SIZE // 2].astype(int)).max() < 40, "not solved at the start"
        unsolved_length = 1 + 20 // STRIDE - 1 + HOLD
        assert (len(film) < unsolved_length) if solved else (len(film) == unsolved_length)
    tiles = imageio.v3.imread(grid)
    assert tiles.shape == (max(map(len, films.values())), 2 * SIZE, 2 * SIZE, 3)
    for index, film in enumerate(films.values()):
        row, column = divmod(index, 2)
        tile = tiles[-1][row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE]
        # Encoded twice; an ended film keeps its last picture.
        assert np.abs(tile.astype(int) - film[-1]).mean() < 8


def test_size_and_episodes_of_a_video(tmp_path: Path) -> None:
    train = TrainConfig(video_size=128, video_episodes=3)
    env = EnvConfig(benchmark="toy", horizon=20, num_goals=3, workers=1)
    record(Config(env=env, train=train), to_the_target, tmp_path)
    (solved, *_, unsolved) = (imageio.v3.imread(tmp_path / f"{name}.mp4") for name in TOY)
    assert solved.shape[1:] == unsolved.shape[1:] == (128, 128, 3)
    assert len(unsolved) == 3 * (1 + 20 // STRIDE - 1 + HOLD)
    bar = solved[:, 3, 64].astype(int)
    green = np.abs(bar - np.array(GREEN)).max(1) < 60
    assert np.count_nonzero(np.diff(green.astype(int)) == 1) == 3, "each episode is solved"


@pytest.mark.parametrize("train", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("size", 250, "must be a multiple of 16, from 128 to 1024"),
        ("size", 96, "must be a multiple of 16, from 128 to 1024"),
        ("camera", "topview", "only Meta-World's tasks have it; these are toy"),
        ("episodes", 0, "must be in 1..50, env.num_goals"),
        ("episodes", 51, "must be in 1..50, env.num_goals"),
    ],
)
def test_impossible_videos_are_refused(
    train: str,
    option: str,
    value: object,
    said: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if train == "train":
        line = (*Mtrl.toy_line(tmp_path / "new"), f"--train.video-{option}", value)
        refused(capsys, line, f"train.video_{option} = {value!r}: {said}")
    else:
        line = ("evaluate", run, "--video", f"--video-{option}", value)
        refused(capsys, line, f"video_{option} = {value!r}: {said}")
    assert not (tmp_path / "new").exists()


def test_video_options_without_a_video(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ("evaluate", run, "--video-size", 480), "video_size = 480: needs --video")


def test_meta_world_is_rendered_without_a_screen(tmp_path: Path) -> None:
    try:
        rendering.choose_renderer()
    except rendering.RenderingError as error:
        pytest.skip(str(error))
    config = dataclasses.replace(
        Config(), env=EnvConfig(tasks=("reach-v3",), horizon=2, num_goals=1)
    )
    record(config, lambda _: np.zeros((1, 4), np.float32), tmp_path)
    picture = imageio.v3.imread(tmp_path / "reach-v3.mp4")[0]
    wall, floor = picture[20:50].astype(int), picture[-30:].astype(int)
    assert wall.std((0, 1)).max() < 15, "upright: one colour above, the table and the floor below"
    assert floor.std((0, 1)).max() > 15
    red = picture[..., 0].astype(int) - picture[..., 1:].max(-1)
    assert (red > 60).mean() > 0.01, "the robot"


def test_a_machine_that_cannot_render_is_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "PROBE", "raise RuntimeError('no such display')")
    with pytest.raises(rendering.RenderingError) as caught:
        rendering.choose_renderer.__wrapped__()
    message = str(caught.value)
    assert message.startswith("cannot render: egl: RuntimeError: no such display; osmesa: ")
    assert "libosmesa6" in message


def test_videos_while_training(run: Path) -> None:
    folder = run / "videos/step_000000000480"
    names = {path.name for path in folder.iterdir()}
    assert names == {"grid.mp4", *(f"{name}.mp4" for name in TOY)}
    (shown,) = events(run).Images("videos/grid")
    assert shown.step == 480
    assert shown.encoded_image_string.startswith(b"GIF89a")


def test_the_time_of_a_video_is_in_no_speed_and_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a log line and a checkpoint are of the same step. A video takes a thousand
    seconds, on a clock of the test's own: no machine under load is as slow."""
    later = [0.0]

    def slow(*_: object) -> Path:
        later[0] += 1000.0
        raise rendering.RenderingError("none today")

    clock = types.SimpleNamespace(
        perf_counter=lambda: time.perf_counter() + later[0],
        monotonic=lambda: time.monotonic() + later[0],
    )
    for module in ("timing", "log_window"):
        monkeypatch.setattr(f"mtrl.run.{module}.time", clock)
    monkeypatch.setattr("mtrl.commands.videos.record", slow)
    options = ("--train.total-steps", 800, "--train.video-every", 400, "--logging.every", 80)
    began = time.monotonic()
    cli.main([str(word) for word in Mtrl.toy_line(tmp_path / "run", *options)])
    took = time.monotonic() - began
    lines = records(tmp_path / "run")
    videos = [line["time/video_ms"] for line in lines if "time/video_ms" in line]
    assert videos
    assert min(videos) >= 1e6
    for line in lines:
        stages = {key: value for key, value in line.items() if key.endswith("_ms")}
        assert max([v for key, v in stages.items() if key != "time/video_ms"], default=0) < 5e5
        assert line.get("time/env_steps_per_s", 0.0) < 1e6
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert 2000 <= status["elapsed_s"] <= 2000 + took + 0.1, "two videos"


def test_what_is_not_known_yet_is_not_logged(tmp_path: Path) -> None:
    """A scale of returns before the first episode has ended; JSON has no word for infinity."""
    scale = ("--replay.reward-normalization", "return_range", "--logging.every", 40)
    line = Mtrl.toy_line(tmp_path / "run", *scale, "--train.total-steps", 160)
    cli.main([str(word) for word in (*line, "--train.warmup-steps", 80)])
    assert "Infinity" not in (tmp_path / "run/metrics.jsonl").read_text()
    lines = [line for line in records(tmp_path / "run") if "train/replay_fill" in line]
    assert ["train/reward_scale_mean" in line for line in lines[:2]] == [False, True]


# -- TensorBoard, CSV, Weights & Biases ---------------------------------------------------------


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_chart_of_the_first_page_has_data(run: Path) -> None:
    tags = {tag for record in records(run) for tag in record}
    sections = REINFORCEMENT_LEARNING.charts
    assert next(iter(sections)) == "Success"
    assert empty_charts(REINFORCEMENT_LEARNING, tags) == []
    (stored,) = events(run).Tensors("custom_scalars__config__")
    expected = summary.custom_scalars(sections).value[0].tensor.string_val
    assert list(stored.tensor_proto.string_val) == list(expected)


NOT_IN_THIS_RUN = {"smto/<loss>/<certificate>", "time/compile_ms", "time/video_ms"}


def test_every_tag_has_a_formula_and_every_formula_a_tag(run: Path) -> None:
    text = (REPOSITORY / "docs/metrics.md").read_text()
    columns = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    documented = {tag for column in columns for tag in re.findall(r"`([^`]+)`", column)}
    assert documented > NOT_IN_THIS_RUN
    scalars = {tag for record in records(run) for tag in record} - {"step"}
    logged = {re.sub(r"/toy-\w+$", "/<task>", tag) for tag in scalars}
    spread = {tag.removesuffix("/<task>") for tag in logged if tag.endswith("/<task>")}
    logged -= {f"{tag}_{which}" for tag in spread for which in ("mean", "min", "max")}
    shown = events(run).Tags()
    logged |= set(shown["images"]) | {"config"}
    assert set(shown["scalars"]) == scalars
    logged = {re.sub(r"^gradients/(critic|actor)/", "gradients/<loss>/", tag) for tag in logged}
    assert logged == documented - NOT_IN_THIS_RUN


def test_the_table_of_settings_begins_with_those_that_differ(run: Path) -> None:
    """As TensorBoard reads it: of the method, the seed and every setting, none twice."""
    about = events(run)
    experiment = metadata.parse_experiment_plugin_data(
        about.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    )
    names = [info.name for info in experiment.hparam_infos]
    assert len(set(names)) == len(names)
    ordered = sorted(experiment.hparam_infos, key=lambda info: (not info.differs, info.name))
    assert [info.display_name for info in ordered[:3]] == ["method", "seed", "agent.actor_lr"]
    differing = {info.name for info in experiment.hparam_infos if info.differs}
    assert {"train.total_steps", "env.benchmark", "logging.csv"} < differing
    assert not differing & {"agent.tau", "run_dir"}
    (score, _) = (info.name.tag for info in experiment.metric_infos)
    assert score == "eval/success_mean"
    assert events(run).Scalars(score)
    session = metadata.parse_session_start_info_plugin_data(
        about.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    )
    assert session.hparams["_method"].string_value == "pcgrad"
    assert session.hparams["_seed"].number_value == 1
    assert session.hparams["agent.tau"].number_value == 0.005
    assert session.hparams["logging.csv"].bool_value
    assert "agent.max_grad_norm" not in session.hparams, "there is none"
    ended = about.SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    assert metadata.parse_session_end_info_plugin_data(ended).status == STATUS_SUCCESS


def test_mean_and_range_are_those_of_the_known_tasks() -> None:
    assert per_task("a", ("x", "y", "z"), [3.0, np.nan, 1.0]) == {
        "a/x": 3.0,
        "a/y": pytest.approx(np.nan, nan_ok=True),
        "a/z": 1.0,
        "a_mean": 2.0,
        "a_min": 1.0,
        "a_max": 3.0,
    }
    assert all(value != value for value in per_task("a", ("x",), [np.nan]).values())


def test_a_run_that_starts_again_from_zero_has_one_first_evaluation(tmp_path: Path) -> None:
    """It was killed before its first checkpoint."""
    config = Config(env=EnvConfig(benchmark="toy"), logging=LoggingConfig(csv=True))
    for measured in (0.25, 0.5):
        time.sleep(1)  # TensorBoard reads files by second and process; here both are of one process
        recorder = Recorder(RunDirectory(tmp_path), config, 0, 320, REINFORCEMENT_LEARNING)
        recorder.evaluation(0, np.full((4, 1), measured), np.zeros((4, 1)), 1.0)
        recorder.close()
    assert [record["eval/success_mean"] for record in records(tmp_path)] == [0.5]
    test_csv_equals_metrics(tmp_path)
    (shown,) = events(tmp_path).Scalars("eval/success_mean")
    assert (shown.step, shown.value) == (0, 0.5)


def test_csv_equals_metrics(run: Path) -> None:
    with open(run / "metrics.csv", newline="") as file:
        rows = [(int(r["step"]), r["tag"], float(r["value"])) for r in csv.DictReader(file)]
    expected = [
        (record["step"], tag, value)
        for record in records(run)
        for tag, value in record.items()
        if tag != "step"
    ]
    assert rows == expected


def test_a_resumed_run_has_every_step_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its process was killed, or the power failed, while it wrote."""
    with open(run / "metrics.csv", "ab") as file:
        file.write(b"560,train/alpha/toy-east,0.5\n560,trai\xff\0")
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 560, "train/alpha/toy-east": 0.5}\n{"step": 560, "tr\xff\0')
    cli.main(["resume", str(run), "--train.total-steps", "720"])  # a finished run stays as it is
    capsys.readouterr()
    test_csv_equals_metrics(run)


@pytest.fixture
def wandb_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """W&B on a machine of somebody who never logged in."""
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home/.netrc"))
    import_wandb.cache_clear()
    yield monkeypatch
    import_wandb.cache_clear()
    if "wandb" in sys.modules and hasattr(sys.modules["wandb"], "teardown"):
        sys.modules["wandb"].teardown()  # it reads its variables once


SUPERVISED = ("supervised", "supervised_digits", "--train.epochs", 1, "--learner.device", "cpu")


def refused(
    capsys: pytest.CaptureFixture[str], line: tuple[object, ...], said: str, code: int = 2
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(word) for word in line])
    assert caught.value.code == code
    message = capsys.readouterr().err
    assert message.startswith("mtrl: ")
    assert message.count("\n") == 1
    assert said in message


def offline_runs(run: Path) -> list[bytes]:
    """What the installed W&B wrote, start by start; all as the same W&B run."""
    name = (run / "wandb_id").read_text()
    folders = sorted((run / "wandb").glob("offline-run-*"))
    # W&B numbers starts within one second: -1, -2, ...
    assert all(re.search(rf"-{name}(-\d+)?$", folder.name) for folder in folders)
    return [(folder / f"run-{name}.wandb").read_bytes() for folder in folders]


def assert_logged_twice(run: Path, *tags: bytes) -> None:
    """By the first start and by the resumed one. W&B's own process may still be writing."""
    assert len(offline_runs(run)) == 2
    wait_for(
        lambda: all(tag in written for tag in tags for written in offline_runs(run)),
        PATIENCE,
        "all metrics in W&B's files",
    )


def test_a_resumed_run_continues_its_wandb_run(
    wandb_account: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the installed package, without its server."""
    wandb_account.setenv("WANDB_MODE", "offline")
    path = tmp_path / "run"
    short = ("--train.total-steps", 480, "--evaluation.every", 480, "--logging.wandb")
    cli.main([str(word) for word in Mtrl.toy_line(path, *short)])
    cli.main(["resume", str(path), "--train.total-steps", "560"])
    assert_logged_twice(path, b"eval/success/toy-east", b"environment_steps")


def test_supervised_runs_log_to_wandb(
    wandb_account: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wandb_account.setenv("WANDB_MODE", "offline")
    path = tmp_path / "run"
    cli.main([str(word) for word in (*SUPERVISED, "--run-dir", path, "--logging.wandb")])
    cli.main(["resume", str(path), "--train.epochs", "2"])
    assert_logged_twice(path, b"eval/accuracy_mean", b"environment_steps")


@pytest.mark.parametrize("kind", ["train", "supervised"])
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "cannot log in to Weights & Biases; use `wandb login`, WANDB_API_KEY or WANDB_MODE="),
        ({"WANDB_API_KEY": "short"}, "cannot log in to Weights & Biases"),
        ({"WANDB_MODE": "on"}, "cannot log in to Weights & Biases"),
    ],
    ids=["no key", "wrong key", "wrong mode"],
)
def test_wandb_without_login_loses_nothing(
    kind: str,
    variables: dict[str, str],
    said: str,
    wandb_account: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for key, value in variables.items():
        wandb_account.setenv(key, value)
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.yaml").write_text("of another run")
    begun = Mtrl.toy_line(path) if kind == "train" else (*SUPERVISED, "--run-dir", path)
    refused(capsys, (*begun, "--logging.wandb", "--overwrite"), said)
    assert [file.name for file in path.iterdir()] == ["config.yaml"]
    assert (path / "config.yaml").read_text() == "of another run"


def test_wandb_that_is_not_installed(
    wandb_account: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (*Mtrl.toy_line(tmp_path / "run"), "--logging.wandb")
    wandb_account.setitem(sys.modules, "wandb", None)
    refused(capsys, line, "logging.wandb = true: wandb is not installed; `pip install wandb`")
    folder = types.ModuleType("wandb")  # as Python imports a folder without code
    folder.__file__, folder.__path__ = None, ["/here/wandb"]
    wandb_account.setitem(sys.modules, "wandb", folder)
    refused(capsys, line, "the folder /here/wandb is not the package")
    assert not (tmp_path / "run").exists()


def test_wandb_hidden_by_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/__init__.py").touch()
    done = Mtrl(tmp_path).process(*Mtrl.toy_line(tmp_path / "run"), "--logging.wandb")
    assert done.returncode == 2
    assert f"{tmp_path}/wandb/__init__.py hides the wandb package" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["wandb"]


def test_wandb_that_fails_at_a_resume_changes_nothing_on_disk(
    wandb_account: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The server is asked before the numbers after the last checkpoint are dropped."""
    wandb_account.setenv("WANDB_MODE", "offline")
    directory = RunDirectory(tmp_path)
    directory.metrics_file.write_text('{"step": 80, "a": 1}\n{"step": 160, "a": 1}\n')
    (tmp_path / "metrics.csv").write_text("step,tag,value\n160,a,1\n")
    before = directory.metrics_file.read_text(), (tmp_path / "metrics.csv").read_text()

    def no_answer(**settings: object) -> None:
        raise import_wandb().Error("no answer\nin 90 s")

    wandb_account.setattr(import_wandb(), "init", no_answer)
    config = Config(env=EnvConfig(benchmark="toy"), logging=LoggingConfig(csv=True, wandb=True))
    with pytest.raises(TrainingError, match=r"no answer in 90 s; WANDB_MODE=offline"):
        Recorder(directory, config, 80, 320, REINFORCEMENT_LEARNING)
    after = directory.metrics_file.read_text(), (tmp_path / "metrics.csv").read_text()
    assert after == before


# -- export, completion -------------------------------------------------------------------------


def test_exported_policy_acts_as_the_agent_and_loads_as_documented(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.main(["export", str(run), "--checkpoint", "latest"])
    assert "policy.pt2" in capsys.readouterr().out
    text = (REPOSITORY / "docs/quickstart.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert example.count("\n") <= 10
    names: dict = {}
    exec(example, names)
    assert names["actions"].numpy().shape == (1, toy.ACTION_DIM), "without a gradient"
    assert tuple(names["about"]["tasks"]) == TOY

    trained = open_trained(run, "latest")
    agent = Agent(trained.config, toy.OBSERVATION_DIM, toy.ACTION_DIM, torch.device("cpu"))
    agent.load_state_dict(trained.agent_state)
    observations = torch.randn(4, 3, 2)
    tasks = torch.arange(4)[:, None].expand(4, 3)
    actions = names["policy"](observations.flatten(0, 1), tasks.flatten())
    expected = agent.act(observations, deterministic=True).flatten(0, 1)
    torch.testing.assert_close(actions, expected)
    assert (actions[:3] - actions[3:6]).abs().max() > 1e-4, "the task matters"

    policy = names["policy"]
    for kind in (torch.float64, torch.float16, torch.bfloat16):
        given = observations.flatten(0, 1).to(kind)
        same = policy(given.float(), tasks.flatten())
        for index in (torch.int64, torch.int32):
            converted = policy(given, tasks.flatten().to(index))
            assert converted.dtype == torch.float32
            assert torch.equal(converted, same)
    assert policy(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)).shape == (0, toy.ACTION_DIM)
    for wrong in (-1, 4):
        with pytest.raises(RuntimeError, match=r"tasks must be in 0\.\.3"):
            policy(torch.zeros(2, 2), torch.tensor([0, wrong]))


@pytest.fixture(scope="module")
def completion() -> str:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        cli.main(["completion", "bash"])
    return shown.getvalue()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mtrl ev", {"evaluate"}),
        ("mtrl train smok", {"smoke"}),
        ("mtrl train toy --agent.smto.n", {"--agent.smto.name"}),
        ("mtrl train toy --resume-if", {"--resume-if-exists"}),
        ("mtrl list me", {"methods"}),
        ("mtrl train toy --agent.smto.name pcg", {"pcgrad"}),
        ("mtrl train toy --agent.critic_smto.name fair", {"fairgrad"}),
        ("mtrl train toy --learner.compile ''", {"auto", "on", "off"}),
        ("mtrl train mt10_kurin kurin/pcg", {"kurin/pcgrad"}),
        ("mtrl sweep toy --methods unitary nas", {"nash_mtl"}),
        ("mtrl supervised supervised_dig", {"supervised_digits"}),
        ("mtrl evaluate runs/x --check", {"--checkpoint"}),
    ],
)
def test_completion_in_bash(completion: str, line: str, expected: set[str]) -> None:
    assert complete(completion, line) == expected


def complete(completion: str, line: str) -> set[str]:
    words = f"COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _mtrl"
    done = subprocess.run(
        ["bash", "-c", f'{completion}{words}; echo "${{COMPREPLY[@]}}"'],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_completion_knows_every_command(
    completion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["no-such-command"])
    allowed = capsys.readouterr().err.split("allowed are ")[1].split(";")[0].strip()
    assert complete(completion, "mtrl ''") == set(allowed.split(", "))
