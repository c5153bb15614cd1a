"""Equal seeds give equal runs, and an interrupted run equals an uninterrupted one, bit for bit."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    PATIENCE,
    PCGRAD,
    REPOSITORY,
    TINY_OPTIONS,
    Mtrl,
    differences,
    evaluations,
    final_state,
    metrics,
    steps_shown,
    succeeded,
    wait_for,
)

import mtrl
from mtrl.agent import Agent
from mtrl.commands import main as cli
from mtrl.config import load_yaml
from mtrl.envs.vector import VectorEnv
from mtrl.evaluation import Evaluated, Evaluator, Policy
from mtrl.networks.policy import stored_dimensions
from mtrl.replay import Batch, create_replay
from mtrl.run import checkpoint

META_WORLD = (
    "--env.horizon 50 --checkpoint.every 600 --logging.every 600 --evaluation.every 600 "
    "--evaluation.episodes-per-task 1 --evaluation.final-episodes-per-task 1 "
    "--train.warmup-steps 200 --agent.updates-per-step 0.25 --network.width 16 "
    "--replay.batch-size 32 --learner.threads 1 --learner.device cpu"
)


COMPILED = (
    *("--learner.compile", "on", "--network.depth", 1),  # a layer takes 20 s to compile
    # Compiled up to its method, and with it.
    *("--agent.critic-smto.name", "pcgrad", "--agent.actor-smto.name", "unitary"),
    *("--train.envs-per-task", 2, "--checkpoint.every", 800),
    # What keeps more than the networks: returns of episodes, bins, several steps per sample.
    *("--critic.kind", "categorical", "--critic.ensemble", "mean", "--agent.n-step", 3),
    *("--replay.reward-normalization", "return_range"),
)


RARE = (
    *("--agent.actor-every", 3, "--agent.noise-repeat", 4, "--agent.optimizer", "muon"),
    *("--agent.resets", 3, "--replay.reward-normalization", "mean_reward"),
    *("--critic.kind", "popart", "--network.task-encoding", "learned", "--checkpoint.keep", 9),
    *("--network.architecture", "paco", "--network.options", "sets=2", "reset_above=3"),
)
"""What keeps state of its own, and that no preset has."""


@pytest.fixture(scope="module")
def runs(run_mtrl: Mtrl, tmp_path_factory: pytest.TempPathFactory, reference: Path) -> Path:
    """Runs to compare with `reference`, and two on Meta-World; the first legs of resumed ones."""
    folder = tmp_path_factory.mktemp("runs")

    def toy(name: str, *options: object) -> tuple[object, ...]:
        return run_mtrl.toy_line(folder / name, *PCGRAD, *options)

    def compiled(name: str, *options: object) -> tuple[object, ...]:
        return run_mtrl.toy_line(folder / name, *COMPILED, *options)

    def meta_world(name: str, steps: int, *more: str) -> tuple[object, ...]:
        options = [*META_WORLD.split(), "--train.total-steps", steps, "--run-dir", folder / name]
        return ("train", REPOSITORY / "configs/smoke.yaml", *options, *more)

    half = ("--train.total-steps", 800)
    for line in (
        toy("half", *half),
        toy("seed_2", "--seed", 2),
        toy("no_evaluation", "--evaluation.every", 0),
        meta_world("mw_half", 600),
        meta_world("mw", 1200),
        meta_world("mw_upstream", 1200, "--env.no-fast"),
        compiled("compiled"),
        toy("rare", *RARE),
    ):
        done = run_mtrl(*line)
        succeeded(done)
        assert "torch.compile failed" not in done.stderr
    succeeded(run_mtrl.process(*toy("again", "--checkpoint.keep", 9)))
    assert final_state(folder / "half", 800)["step"] == 800
    succeeded(run_mtrl("resume", folder / "half", "--train.total-steps", 1600))
    succeeded(run_mtrl("resume", folder / "mw_half", "--train.total-steps", 1200))
    shutil.copytree(folder / "compiled", folder / "compiled_half")
    at_half = checkpoint.step_path(folder / "compiled_half/checkpoints", 800)
    done = run_mtrl.process("resume", at_half)
    succeeded(done)
    assert "resumed at step 800" in done.stderr
    assert "torch.compile failed" not in done.stderr
    return folder


def assert_equal_runs(run: Path, other: Path, step: int = 1600) -> None:
    assert differences(final_state(run, step), final_state(other, step)) == []
    assert metrics(run) == metrics(other)


def test_equal_seeds_give_equal_runs(runs: Path, reference: Path) -> None:
    assert_equal_runs(runs / "again", reference)


def test_other_seed_differs(runs: Path, reference: Path) -> None:
    different = differences(final_state(runs / "seed_2"), final_state(reference))
    assert any("actor" in path for path in different)
    assert any("critic" in path for path in different)
    assert any("replay" in path for path in different)


def test_evaluating_does_not_change_the_training(runs: Path, reference: Path) -> None:
    without, evaluated = final_state(runs / "no_evaluation"), final_state(reference)
    for part in ("agent", "replay", "episodes", "recent_success", "recent_returns"):
        assert differences(without[part], evaluated[part]) == []
    assert sum("eval/success_mean" in line for line in metrics(runs / "no_evaluation")) == 1


def test_training_changes_the_networks(reference: Path) -> None:
    """Or equality of runs would say nothing."""
    earlier, later = final_state(reference, 1200), final_state(reference)
    different = differences(earlier["agent"], later["agent"])
    for part in ("actor", "critic", "target", "optimizer", "temperature", "generator", "smto"):
        assert any(part in path for path in different), f"{part} did not change: {different}"


def test_resumed_equals_uninterrupted(runs: Path, reference: Path) -> None:
    assert_equal_runs(runs / "half", reference)


def test_resumed_equals_uninterrupted_compiled_with_two_environments_per_task(
    runs: Path,
) -> None:
    assert_equal_runs(runs / "compiled_half", runs / "compiled")
    state = final_state(runs / "compiled")
    m = len(state["recent_success"])
    assert state["episodes"] == [10] * 2 * m
    assert state["replay"]["added"] == 1600 // m
    assert load_yaml(runs / "compiled" / "config.yaml").learner.compile == "on"


def test_compiled_equals_eager_in_the_state_of_a_run(runs: Path) -> None:
    """With the run's shapes, for which all is compiled already."""
    config = load_yaml(runs / "compiled" / "config.yaml")
    state = final_state(runs / "compiled")
    dimensions, cpu = stored_dimensions(state["agent"]), torch.device("cpu")
    replay = create_replay(config, *dimensions, cpu)
    replay.load_state_dict(state["replay"])
    eager, compiled = (Agent(config, *dimensions, cpu) for _ in range(2))
    for agent in (eager, compiled):
        agent.load_state_dict(copy.deepcopy(state["agent"]))
        for part in agent.parts.values():
            part.optimizer.scale(1.0)

    def batch(seed: int) -> Batch:
        samples, generator = config.replay.batch_size // config.num_tasks, torch.Generator()
        return replay.sample(samples, generator.manual_seed(seed), eager.temperature.alpha())

    compiled.compile(batch(0))
    start = networks(eager)
    assert torch.equal(start, networks(compiled)), "compiling changes nothing"
    for drawn in map(batch, range(20)):
        for one, two in zip(eager.update(drawn), compiled.update(drawn), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(networks(eager), networks(compiled), rtol=1e-3, atol=1e-4)
    assert not torch.equal(networks(eager), start)


def networks(agent: Agent) -> torch.Tensor:
    modules = agent.networks.named.values()
    return torch.cat([p.detach().flatten() for module in modules for p in module.parameters()])


def test_resumed_equals_uninterrupted_with_resets_and_what_else_is_rare(
    runs: Path, tmp_path: Path
) -> None:
    """From the checkpoint of a step at which the networks were reset."""
    run = tmp_path / "run"
    shutil.copytree(runs / "rare", run)
    cli.main(["resume", str(checkpoint.step_path(run / "checkpoints", 400))])
    assert_equal_runs(run, runs / "rare")


def test_what_was_trained_until_a_reset_is_what_is_evaluated_and_saved_there(
    run_mtrl: Mtrl, tmp_path: Path
) -> None:
    short = ("--train.total-steps", 800, "--train.warmup-steps", 200, "--evaluation.every", 400)
    for name, resets in (("with", 1), ("without", 0)):
        succeeded(run_mtrl.toy(tmp_path / name, *PCGRAD, *short, "--agent.resets", resets))
    states = [final_state(tmp_path / name, 400)["agent"] for name in ("with", "without")]
    assert differences(*states) == []
    first, second = (evaluations(tmp_path / name) for name in ("with", "without"))
    assert first[:2] == second[:2], "at 0 and at 400"
    later = [final_state(tmp_path / name, 800)["agent"] for name in ("with", "without")]
    assert any("critic" in path for path in differences(*later))
    done = run_mtrl("resume", tmp_path / "with", "--train.total-steps", 1600)
    succeeded(done)
    assert "agent.resets = 1 follows the new length" in done.stderr


def test_resumed_equals_uninterrupted_on_meta_world(runs: Path) -> None:
    assert_equal_runs(runs / "mw_half", runs / "mw", 1200)


def test_the_fast_simulation_gives_the_same_training(runs: Path) -> None:
    assert_equal_runs(runs / "mw_upstream", runs / "mw", 1200)


def test_tensorboard_of_a_resumed_run_has_every_step_once(runs: Path, reference: Path) -> None:
    for run in (runs / "half", reference):
        assert steps_shown(run, "train/reward_std/toy-east") == [400, 800, 1200, 1600]


def test_killed_run_resumes_to_the_same_end(
    run_mtrl: Mtrl, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    process = run_mtrl.start(*run_mtrl.toy_line(run, *PCGRAD))
    try:
        wait_for(lambda: checkpoint.newest_first(run / "checkpoints"), PATIENCE, "a checkpoint")
        os.kill(process.pid, signal.SIGSTOP)  # not finished, however slow this process is
        # Two processes must never write one run.
        with pytest.raises(SystemExit) as caught:
            cli.main(["resume", str(run)])
        assert caught.value.code == 2
        assert "in use by another process" in capsys.readouterr().err
        assert process.poll() is None
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 1200, "train/alpha/toy-east": 0.5}\n{"step": 1600, "trai')
    done = run_mtrl("resume", run)
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stderr
    assert_equal_runs(run, reference)


def test_run_killed_before_its_first_checkpoint_starts_over(
    run_mtrl: Mtrl, reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    late = ("--checkpoint.every", 1600)
    process = run_mtrl.start(*run_mtrl.toy_line(run, *PCGRAD, *late))
    try:
        wait_for((run / "status.json").exists, PATIENCE, "running")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
    assert checkpoint.newest_first(run / "checkpoints") == []
    done = run_mtrl("resume", run)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(run, reference)


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(
    run_mtrl: Mtrl, reference: Path, tmp_path: Path
) -> None:
    """Any damage is found: see `test_checkpoint`."""
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    newest = checkpoint.step_path(run / "checkpoints", 1600)
    content = newest.read_bytes()
    middle = len(content) // 2
    newest.write_bytes(content[:middle] + bytes(range(100)) + content[middle + 100 :])
    checkpoint.save(run / "checkpoints/best.pt", {"step": 1600, "agent": {}})
    done = run_mtrl("resume", run)
    assert done.returncode == 0, done.stderr
    assert "warning" in done.stderr
    assert newest.name in done.stderr
    assert "resumed at step 1,200" in done.stderr
    assert "best.pt is of step 1,600, which the run has yet to reach again" in done.stderr
    assert_equal_runs(run, reference)


def test_resume_from_an_earlier_checkpoint_deletes_the_later_ones(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    later = checkpoint.step_path(run / "checkpoints", 1600)
    # The same training again, so the same files: only the message tells that it went back.
    cli.main(["resume", str(checkpoint.step_path(run / "checkpoints", 1200))])
    shown = capsys.readouterr().err
    assert f"{later} is later and was deleted" in shown
    assert "resumed at step 1,200" in shown
    assert_equal_runs(run, reference)
    with pytest.raises(SystemExit) as caught:
        cli.main(["resume", str(run / "checkpoints" / "best.pt")])
    assert caught.value.code == 1
    assert "the policy alone" in capsys.readouterr().err
    assert later.exists()


def test_an_evaluation_under_way_is_made_again_from_the_checkpoint_of_its_step(
    runs: Path, reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "again", run)
    # Written when the evaluation of its step had begun; metrics.jsonl already has the result.
    goals = [[0, 1]] * 4
    assert final_state(run, 800)["evaluating"] == {"step": 800, "agent": None, "goals": goals}
    cli.main(["resume", str(checkpoint.step_path(run / "checkpoints", 800))])
    assert_equal_runs(run, reference)
    best = "checkpoints/best.pt"
    assert differences(checkpoint.load(run / best), checkpoint.load(reference / best)) == []
    assert steps_shown(run, "eval/success_mean") == [0, 800, 1600], "once each"


def test_resume_if_exists_starts_then_goes_on_and_refuses_other_settings(
    run_mtrl: Mtrl, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def train(*options: str) -> None:
        cli.main([str(word) for word in run_mtrl.toy_line(run, *PCGRAD, *options)])

    run.mkdir()
    (run / ".lock").touch()  # killed before it wrote its configuration
    train("--resume-if-exists", "--train.total-steps", "800")
    assert "started" in capsys.readouterr().err
    train("--resume-if-exists")
    assert "resumed at step 800" in capsys.readouterr().err
    assert_equal_runs(run, reference)
    for option, key in (("--agent.gamma=0.8", "agent.gamma"), ("--overwrite", "resume_if_exists")):
        with pytest.raises(SystemExit) as caught:
            train("--resume-if-exists", option)
        assert caught.value.code == 2
        assert f"mtrl: {key} = " in capsys.readouterr().err
    assert_equal_runs(run, reference)


def test_checkpoint_grows_with_what_the_replay_holds(reference: Path) -> None:
    """The preset's 40,000 slots are 4% full: empty ones need not be written."""
    stored = final_state(reference)["replay"]["storage"]
    bytes_held = stored.numel() * stored.element_size()
    size = checkpoint.step_path(reference / "checkpoints", 1600).stat().st_size
    assert size < bytes_held + 200_000


def test_a_run_that_is_stopped_does_not_wait_for_an_evaluation(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 50 tasks it takes a minute, which who sends a SIGTERM may not have. It is made again."""

    class Stop(mtrl.Callback):
        def on_log(self, step: int, values: dict[str, float]) -> bool:
            return step >= 1200

    def never(self: Evaluator, policy: Policy, envs: VectorEnv, goals: np.ndarray) -> Evaluated:
        calls.append(len(calls))
        if len(calls) == 1:
            return run_evaluation(self, policy, envs, goals)
        while True:  # until its workers end
            envs.check()
            time.sleep(0.01)

    run_evaluation = Evaluator._run
    calls: list[int] = []
    run, settings = tmp_path / "run", {"agent.smto.name": "pcgrad"}
    settings |= TINY_OPTIONS
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "_run", never)
        stopped = mtrl.train("toy", settings, run_dir=run, callbacks=[Stop()])
    assert stopped.state == "stopped"
    state = final_state(run, 1200)
    assert state["evaluating"]["step"] == 800
    assert [line["step"] for line in evaluations(run)] == [0]
    cli.main(["resume", str(run)])
    assert_equal_runs(run, reference)
    best = "checkpoints/best.pt"
    assert differences(checkpoint.load(run / best), checkpoint.load(reference / best)) == []
    assert steps_shown(run, "eval/success_mean") == [0, 800, 1600], "once each"
