"""What the learner settles on for a run and a machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mtrl.config import Config, EnvConfig, LearnerConfig, SmtoConfig, TrainConfig
from mtrl.device import setup as learner
from mtrl.device.setup import COMPILE_FROM, settle

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LONG = Config(
    env=EnvConfig(benchmark="MT10"),
    train=TrainConfig(total_steps=10 * COMPILE_FROM["cpu"] + 5_000, warmup_steps=10),
)


def changed(section: str, **values: Any) -> Config:
    part = dataclasses.replace(getattr(LONG, section), **values)
    return dataclasses.replace(LONG, **{section: part})


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "c++"
    path.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(path))
    return path


@pytest.mark.parametrize(
    ("config", "decision"),
    [
        (LONG, "on"),
        (changed("train", total_steps=10 * COMPILE_FROM["cpu"]), "off"),
        (changed("train", envs_per_task=2), "off"),  # half as many updates
        (changed("agent", smto=SmtoConfig("pcgrad")), "on"),
        (changed("learner", compile="off"), "off"),
        (changed("agent", updates_per_step=0.1), "off"),
    ],
)
def test_compiles_where_it_pays(config: Config, decision: str, compiler: Path) -> None:
    assert settle(config, CPU)[0].learner.compile == decision


def test_a_gpu_must_save_more_updates(compiler: Path) -> None:
    assert settle(LONG, CUDA)[0].learner.compile == "off"
    longer = changed("train", total_steps=10 * COMPILE_FROM["cuda"] + 5_000)
    assert settle(longer, CUDA)[0].learner.compile == "on"


def test_does_not_compile_without_a_compiler(compiler: Path) -> None:
    compiler.unlink()
    assert settle(LONG, CPU)[0].learner.compile == "off"


def test_a_given_decision_stands(compiler: Path) -> None:
    compiler.unlink()
    settled = LearnerConfig(compile="on", precision="fp32", capture="off")
    forced = dataclasses.replace(LONG, learner=settled)
    assert settle(forced, CPU) == (forced, [])


@pytest.mark.parametrize(
    ("asked", "device", "hardware", "settled"),
    [
        ("auto", CPU, True, "fp32"),
        ("auto", CUDA, True, "tf32"),
        ("bf16", CPU, True, "bf16"),
        ("bf16", CUDA, False, "bf16"),
        ("fp32", CUDA, True, "fp32"),
    ],
)
def test_precision(
    asked: Any, device: torch.device, hardware: bool, settled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner, "_has_bf16", lambda: hardware)
    config, warnings = settle(changed("learner", precision=asked), device)
    assert (config.learner.precision, warnings) == (settled, [])


def test_a_run_sets_what_an_earlier_run_of_the_process_has_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learner, "choose_device", lambda name: CUDA)
    before = torch.get_num_threads()
    for precision, threads, expected in (
        ("tf32", 2, ("high", 2)),
        ("fp32", "auto", ("highest", learner.THREADS)),
        ("auto", 1, ("high", 1)),
        ("bf16", "auto", ("highest", learner.THREADS)),
    ):
        learner.set_up_learner(changed("learner", precision=precision, threads=threads).learner)
        found = torch.get_float32_matmul_precision(), torch.get_num_threads()
        assert found == expected
    torch.set_num_threads(before)


@pytest.mark.parametrize("asked", ["bf16", "tf32"])
def test_precision_that_the_cpu_lacks_is_named(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "_has_bf16", lambda: False)
    config, (warning,) = settle(changed("learner", precision=asked), CPU)
    assert config.learner.precision == "fp32"
    assert asked in warning
