"""What the learner runs on and how: device, threads, precision, compiled or not."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Literal
from warnings import filterwarnings

import torch

from mtrl.config import Config, DeviceConfig, LearnerConfig
from mtrl.schema import ConfigError

COMPILE_FROM = {"cpu": 20_000, "cuda": 100_000}
"""Updates of a run that are worth half a minute of compilation."""
THREADS = torch.get_num_threads()
COMPILES_BACKWARD = (2, 11)  # the first PyTorch that compiles a function with a backward in it


def choose_device(name: str, key: str = "learner.device") -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:i` -> device; ConfigError, at `key`, if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(key, name, "must be auto, cpu, cuda or cuda:i")
    if device.type == "cuda" and not 0 <= (device.index or 0) < torch.cuda.device_count():
        have = f"this machine has {torch.cuda.device_count()} CUDA devices"
        raise ConfigError(key, name, f"{have}; auto and cpu work on any")
    return device


def device_here(name: str) -> str:
    """A run's `learner.device` where this machine has it, else `auto`."""
    try:
        choose_device(name)
    except ConfigError:
        return "auto"
    return name


def set_up_learner(learner: DeviceConfig) -> torch.device:
    """Threads and floating-point mode of this process, whatever an earlier run of it has set;
    -> the learner's device."""
    # l2 lets weights on constant inputs (Meta-World pads with zeros) decay into denormal numbers,
    # which make matrix products 200 times slower. Later threads inherit the mode.
    torch.set_flush_denormal(True)
    threads = THREADS if learner.threads == "auto" else learner.threads
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    device = choose_device(learner.device)
    precision = learner.precision if isinstance(learner, LearnerConfig) else "fp32"
    tf32 = device.type == "cuda" and precision in ("auto", "tf32")
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    # The compiler would recommend TF32 where another precision was chosen.
    filterwarnings("ignore", message="TensorFloat32 tensor cores")
    return device


def settle(config: Config, device: torch.device) -> tuple[Config, list[str]]:
    """`learner.precision`, `.compile` and `.capture` as this run on this machine has them, and
    warnings."""
    precision, warnings = config.learner.precision, []
    if precision == "auto":
        precision = "tf32" if device.type == "cuda" else "fp32"
    elif device.type == "cpu" and (
        precision == "tf32" or (precision == "bf16" and not _has_bf16())
    ):
        warnings = [
            f"this CPU has no {precision} matrix products; continuing with learner.precision fp32"
        ]
        precision = "fp32"
    capture: Literal["on", "off"] = "off"
    if device.type == "cuda":
        capture = "off" if config.learner.capture == "off" else "on"
    elif config.learner.capture == "on":
        warnings.append("learner.capture = on needs a CUDA device; continuing without")
    learner = dataclasses.replace(
        config.learner,
        precision=precision,
        compile=_decide_compile(config, device),
        capture=capture,
    )
    return dataclasses.replace(config, learner=learner), warnings


def _has_bf16() -> bool:
    """Does this CPU multiply bf16 in hardware? Emulated, it is slower than fp32."""
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(words)


def _torch_version() -> tuple[int, ...]:
    return tuple(int(number) for number in torch.__version__.split(".")[:2])


def _decide_compile(config: Config, device: torch.device) -> Literal["on", "off"]:
    if config.learner.compile != "auto":
        return config.learner.compile
    possible = (
        config.total_updates >= COMPILE_FROM[device.type]
        and _torch_version() >= COMPILES_BACKWARD
        and shutil.which(os.environ.get("CXX", "g++")) is not None
    )
    return "on" if possible else "off"
