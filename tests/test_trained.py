"""Runs and checkpoints that come from elsewhere: another machine, another run, another program."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import PCGRAD, Mtrl, final_state, metrics, succeeded
from test_cli import refused

from mtrl.agent import Agent
from mtrl.commands import main as cli
from mtrl.config import Config, load_yaml
from mtrl.options.command_line import continued
from mtrl.run import checkpoint
from mtrl.run.checkpoint import CheckpointError
from mtrl.schema import build
from mtrl.smto.base import continue_stream

THERE = "cuda:99"
"""A device of another machine: no machine that runs tests has a hundred."""


def edit(run: Path, **learner: str) -> None:
    """Change settings of the learner in config.yaml."""
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["learner"] |= learner
    (run / "config.yaml").write_text(yaml.safe_dump(content))


def resave(path: Path, **changes: Any) -> None:
    """A checkpoint with other values in the agent's state."""
    state = checkpoint.load(path)
    state["agent"] |= changes
    checkpoint.save(path, state)


@pytest.fixture
def from_cuda(reference: Path, tmp_path: Path) -> Path:
    """A run as a machine with CUDA leaves it: settings, and random states of 16 bytes."""
    run = tmp_path / "from_cuda"
    shutil.copytree(reference, run)
    edit(run, device=THERE, precision="tf32", capture="on", compile="off")
    stream = torch.arange(16, dtype=torch.uint8)
    for path in (run / "checkpoints").glob("*.pt"):
        resave(path, exploration=stream, generator=stream + 1)
    return run


# -- the device -----------------------------------------------------------------------------------


def test_a_policy_trained_on_cuda_is_used_without(
    from_cuda: Path, reference: Path, run_mtrl: Mtrl, tmp_path: Path
) -> None:
    shown = [run_mtrl("evaluate", run, "--json") for run in (reference, from_cuda)]
    for done in shown:
        succeeded(done)
    assert shown[0].stdout == shown[1].stdout
    assert shown[0].stderr == ""
    assert shown[1].stderr.count("\n") == 1
    assert (
        f"note: {THERE}, where the run was trained, is not here; evaluating on " in shown[1].stderr
    )
    asked = run_mtrl("evaluate", from_cuda, "--json", "--device", "cpu", "--video")
    succeeded(asked)
    assert asked.stderr == ""
    assert list((from_cuda / "videos").glob("*/grid.mp4"))
    succeeded(run_mtrl("export", from_cuda, "--out", tmp_path / "policy.pt2"))


def test_a_device_that_is_not_here_is_refused_where_somebody_asks_for_it(
    from_cuda: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(from_cuda)
    before = {path: path.read_bytes() for path in from_cuda.rglob("*") if path.is_file()}
    refused(["evaluate", run, "--device", "cuda:98"], capsys, "device = 'cuda:98'", "CUDA devices")
    refused(["evaluate", run, "--device", "gpu"], capsys, "device = 'gpu'", "auto, cpu, cuda")
    refused(["evaluate", run, "--device", "cuda:-1"], capsys, "device = 'cuda:-1'")
    longer = ["resume", run, "--train.total-steps", "2000"]
    refused(longer, capsys, f"learner.device = '{THERE}'", "CUDA devices", "cpu")
    after = {path: path.read_bytes() for path in from_cuda.rglob("*") if path.is_file()}
    assert after == before


def test_a_run_continues_on_another_device(from_cuda: Path, run_mtrl: Mtrl) -> None:
    steps = final_state(from_cuda)["step"]
    longer = ("--train.total-steps", 1760, "--learner.device", "cpu")
    done = run_mtrl("resume", from_cuda, *longer)
    succeeded(done)
    assert "the checkpoint is from another kind of device" in done.stderr
    assert "tf32" not in done.stderr
    assert "learner.capture" not in done.stderr
    learner = load_yaml(from_cuda / "config.yaml").learner
    assert (learner.device, learner.precision, learner.capture) == ("cpu", "fp32", "off")
    assert metrics(from_cuda)[-1]["step"] == 1760
    assert steps == 1600
    # From here on it is a run of this device.
    again = run_mtrl("resume", from_cuda, "--train.total-steps", 1840)
    succeeded(again)
    assert "another kind of device" not in again.stderr


def test_a_run_that_takes_any_device_continues_without_being_told(
    from_cuda: Path, run_mtrl: Mtrl
) -> None:
    edit(from_cuda, device="auto", precision="fp32", capture="off", threads=1)
    done = run_mtrl("resume", from_cuda, "--train.total-steps", 1680)
    succeeded(done)
    if not torch.cuda.is_available():
        assert "the checkpoint is from another kind of device" in done.stderr


def test_a_new_device_decides_again_what_a_device_decides() -> None:
    def config(**learner: Any) -> Config:
        made: Config = build(Config, {"learner": learner})
        return made

    stored = config(device="cuda", precision="tf32", capture="on", compile="off")
    here = config(device="cpu", precision="tf32", capture="on", compile="off")
    assert continued(stored, here) == config(device="cpu")
    assert continued(stored, stored) == stored
    asked = config(device="cpu", precision="bf16", capture="on", compile="on")
    assert continued(stored, asked) == config(device="cpu", precision="bf16", compile="on")
    exact = config(device="cuda", precision="fp32", capture="on")
    assert continued(exact, config(device="cpu", precision="fp32", capture="on")) == config(
        device="cpu", precision="fp32"
    )


def test_a_stream_of_another_device_is_followed_by_one_of_its_own() -> None:
    own, other = torch.Generator().manual_seed(3), torch.Generator()
    assert continue_stream(other, own.get_state())
    assert torch.equal(torch.rand(9, generator=own), torch.rand(9, generator=other))
    drawn = []
    for seed in (0, 0, 1):
        assert not continue_stream(other, torch.full((16,), seed, dtype=torch.uint8))
        drawn.append(torch.rand(9, generator=other))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# -- checkpoints that do not belong ---------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(run_mtrl: Mtrl, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a larger network."""
    run = tmp_path_factory.mktemp("wide") / "run"
    short = ("--train.total-steps", 480, "--evaluation.every", 0, "--checkpoint.every", 80)
    succeeded(run_mtrl.toy(run, "--network.width", 24, *short))
    return run


@pytest.fixture(scope="module")
def supervised(run_mtrl: Mtrl, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("supervised") / "run"
    short = ("--train.epochs", 1, "--learner.threads", 1, "--learner.device", "cpu")
    succeeded(run_mtrl("supervised", "supervised_digits", "--run-dir", run, *short))
    return run


def step_file(run: Path) -> Path:
    return checkpoint.newest_first(run / "checkpoints")[0]


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_checkpoint_that_does_not_fit_is_one_line(
    command: str,
    reference: Path,
    wide: Path,
    supervised: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    foreign, listed = tmp_path / "foreign.pt", tmp_path / "list.pt"
    torch.save({"model": torch.zeros(3)}, foreign)
    checkpoint.save(listed, [1, 2])  # type: ignore[arg-type]  # nothing that mtrl writes
    for path, code, expected in (
        (
            step_file(wide),
            2,
            "actor.body.hidden.0.linear.weight has shape (1, 6, 24) there, (1, 6, 16) here",
        ),
        (step_file(supervised), 2, "it is a checkpoint of mtrl supervised"),
        (supervised / "checkpoints/best.pt", 2, "it is a checkpoint of mtrl supervised"),
        (foreign, 1, "is damaged, or none of mtrl's"),
        (listed, 2, "it is a checkpoint of something else"),
        (tmp_path, 2, "must be best, latest or a checkpoint file"),
    ):
        line = [command, str(reference), "--checkpoint", str(path)]
        refused(line, capsys, str(path), expected, code=code)
    early = tmp_path / "early"
    shutil.copytree(reference, early)
    (early / "checkpoints/best.pt").unlink()
    refused([command, str(early)], capsys, "checkpoint = 'best': there is none before an evalua")
    for path in (supervised, step_file(supervised)):
        refused([command, str(path)], capsys, f"RUN = '{path}'", "is a run of mtrl supervised")
    assert not (tmp_path / "policy.pt2").exists()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("wide", "actor.body.hidden.0.linear.weight has shape (1, 6, 24) there"),
        ("supervised", "it is a checkpoint of mtrl supervised"),
        ("best", "holds the policy alone"),
    ],
)
def test_resuming_from_a_checkpoint_that_does_not_fit_deletes_nothing(
    source: str,
    expected: str,
    reference: Path,
    wide: Path,
    supervised: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    early = checkpoint.step_path(run / "checkpoints", 80)
    files = {"wide": step_file(wide), "supervised": step_file(supervised)}
    shutil.copyfile(files.get(source, run / "checkpoints/best.pt"), early)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    line = ["resume", str(early), "--train.total-steps", "2000"]
    refused(line, capsys, expected, code=1)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after == before


def test_resuming_from_a_file_outside_a_run_and_from_a_supervised_one(
    reference: Path, supervised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loose = tmp_path / "loose.pt"
    shutil.copyfile(step_file(reference), loose)
    refused(["resume", str(loose)], capsys, "not the checkpoint of a run")
    refused(["resume", str(step_file(supervised))], capsys, "name its directory")


def test_a_foreign_newest_checkpoint_is_one_line(
    reference: Path, wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    shutil.copyfile(step_file(wide), checkpoint.step_path(run / "checkpoints", 9999))
    refused(
        ["resume", str(run)],
        capsys,
        "actor.body.hidden.0.linear.weight has shape (1, 6, 24)",
        code=1,
    )
    refused(["evaluate", str(run), "--checkpoint", "latest"], capsys, "does not fit this run")


def test_an_agent_refuses_the_state_of_another_and_stays_as_it_was(reference: Path) -> None:
    config = load_yaml(reference / "config.yaml")
    agent = Agent(config, 2, 2, torch.device("cpu"))
    weights = agent.policy.actor.body.hidden[0].linear.weight.clone()
    state = final_state(reference)["agent"]
    for part, changed in (
        ("log_alpha", torch.zeros(7)),
        ("critic_smto", {"age": 3}),
        ("actor", {}),
        ("critic", {**state["critic"], "more": torch.zeros(1)}),
    ):
        with pytest.raises(CheckpointError, match=rf"{part}.* there, .* here"):
            agent.load_state_dict(state | {part: changed})
    with pytest.raises(CheckpointError, match="it has no target_critic"):
        agent.load_state_dict({k: v for k, v in state.items() if k != "target_critic"})
    assert torch.equal(agent.policy.actor.body.hidden[0].linear.weight, weights)
    agent.load_state_dict(state)
    assert PCGRAD[1] == config.agent.smto.name


# -- where a policy is exported to ----------------------------------------------------------------


def test_export_to_what_cannot_be_written(
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = str(reference)
    refused(["export", run, "--out", str(tmp_path)], capsys, f"out = '{tmp_path}'", "is a folder")
    (tmp_path / "file").write_text("")
    refused(["export", run, "--out", str(tmp_path / "file/p.pt2")], capsys, "is a file, not a")
    monkeypatch.setenv("HOME", str(tmp_path))
    cli.main(["export", run, "--out", "~/new/policy.pt2"])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["policy.pt2"]
