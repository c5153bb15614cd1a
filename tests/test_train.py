"""What surrounds the loop: a failing compilation, the step-size schedule."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, Mtrl, differences, final_state, succeeded

from mtrl.config import AgentConfig, load_yaml
from mtrl.gradients.schedule import schedule
from mtrl.run import checkpoint

TOY = load_yaml(REPOSITORY / "configs/toy.yaml").agent


def test_failed_compilation_falls_back_to_the_same_run(
    run_mtrl: Mtrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("the C++ compiler says no")

    options = ("--train.total-steps", 800, "--evaluation.every", 0, "--network.depth", 1)
    succeeded(run_mtrl.toy(tmp_path / "eager", *options))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    done = run_mtrl.toy(tmp_path / "run", *options, "--learner.compile", "on")
    succeeded(done)
    assert done.stderr.count("warning: torch.compile failed, continuing without: ") == 1
    assert "Traceback" not in done.stderr
    one, two = (final_state(tmp_path / name, 800) for name in ("eager", "run"))
    assert differences(one, two) == []


def test_step_sizes_of_a_lengthened_run_are_those_of_its_new_length(
    run_mtrl: Mtrl, tmp_path: Path
) -> None:
    decay = ("--agent.lr-decay", 0.25, "--checkpoint.keep", 9, "--evaluation.every", 0)
    short, full = tmp_path / "short", tmp_path / "full"
    succeeded(run_mtrl.toy(short, *decay))
    succeeded(run_mtrl.toy(full, *decay, "--train.total-steps", 2000))
    # Before step 1200, where the short run's step sizes begin to fall: as if it never was short.
    early = tmp_path / "early"
    shutil.copytree(short, early)
    start = checkpoint.step_path(early / "checkpoints", 1200)
    done = run_mtrl("resume", start, "--train.total-steps", 2000)
    succeeded(done)
    assert "lr_decay" not in done.stderr
    assert differences(final_state(early, 2000), final_state(full, 2000)) == []
    # After it: they rise again, and the run says so.
    done = run_mtrl("resume", short, "--train.total-steps", 2000)
    succeeded(done)
    assert (
        "agent.lr_decay = 0.25 follows the new length: step sizes had fallen to 0% and continue "
        "from 80%"
    ) in done.stderr
    rate = final_state(short, 2000)["agent"]["actor_optimizer"]["param_groups"][0]["lr"]
    assert rate == pytest.approx(TOY.actor_lr * 4 / 500)


def test_step_sizes_fall_linearly_to_zero(run_mtrl: Mtrl, tmp_path: Path) -> None:
    options = ("--agent.lr-decay", 0.5, "--checkpoint.keep", 9, "--evaluation.every", 0)
    succeeded(run_mtrl.toy(tmp_path / "run", *options))
    rates = {}
    for step in (800, 1200, 1600):
        agent = final_state(tmp_path / "run", step)["agent"]
        rates[step] = [
            agent[f"{name}_optimizer"]["param_groups"][0]["lr"]
            for name in ("actor", "critic", "temperature")
        ]
    full = [TOY.actor_lr, TOY.critic_lr, TOY.temperature_lr]
    # The last update before a checkpoint belongs to the vector step that begins 4 steps before.
    for step, share in ((800, 1.0), (1200, (400 + 4) / 800), (1600, 4 / 800)):
        assert rates[step] == pytest.approx([share * lr for lr in full])


@pytest.mark.parametrize(
    ("left", "linear", "cosine"),
    [(1.0, 1.0, 1.0), (0.4, 1.0, 1.0), (0.2, 0.5, 0.5), (0.1, 0.25, 0.5 - 0.125**0.5), (0, 0, 0)],
)
def test_schedules(left: float, linear: float, cosine: float) -> None:
    one, two = (AgentConfig(lr_decay=0.4, lr_schedule=kind) for kind in ("linear", "cosine"))
    assert schedule(one, left) == pytest.approx(linear)
    assert schedule(two, left) == pytest.approx(cosine)
