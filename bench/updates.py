"""Updates of MT-SAC on random data, in every way in which a run makes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mtrl.agent import Agent
from mtrl.config import AgentConfig, Config, EnvConfig, LearnerConfig, NetworkConfig, SmtoConfig
from mtrl.config.benchmarks import MT50
from mtrl.device.compilation import Compilation
from mtrl.device.cuda_graph import WARM_UPS, CapturedUpdate
from mtrl.networks.registry import DEFAULT
from mtrl.replay import Batch

OBSERVATION, ACTION = 39, 4
SAMPLES, DEPTH = 128, 3
PRECISIONS = ("fp32", "tf32", "bf16")
MODES = ("eager", "compiled", "captured", "compiled+captured")

Update = Callable[[Batch], object]


def make_agent(
    method: str,
    m: int,
    device: torch.device,
    *,
    architecture: str = DEFAULT,
    width: int = 400,
    precision: Any = "auto",
) -> Agent:
    options = {"weights": [1.0] * m} if method == "fixed" else {}
    config = Config(
        env=EnvConfig(tasks=MT50[:m]),
        network=NetworkConfig(architecture=architecture, width=width, depth=DEPTH),
        agent=AgentConfig(smto=SmtoConfig(method, options)),
        learner=LearnerConfig(precision=precision),
    )
    return Agent(config, OBSERVATION, ACTION, device)


def make_batch(m: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(m, SAMPLES, *shape, generator=generator).to(device)

    zeros = torch.zeros(m, SAMPLES, device=device)
    fields = normal(OBSERVATION), normal(ACTION).tanh(), normal(), normal(OBSERVATION)
    return Batch(*fields, zeros, torch.full_like(zeros, 0.99))


def use(precision: str) -> None:
    """Of fp32 matrix products on CUDA; on a CPU it changes nothing."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


class Impossible(RuntimeError):
    """A way to make updates that does not work here; says why."""


def prepare(agent: Agent, batch: Batch, mode: str, patience: float | None = None) -> Update:
    """A function that makes one update the given way; patience: seconds for the compiler."""
    if "compiled" in mode:
        compilation = Compilation(partial(agent.compile, batch))
        compilation.join(patience)
        if compilation.is_alive():
            raise Impossible("not compiled within the time")
        if compilation.failure:
            raise Impossible(f"not compiled: {compilation.failure}")
    return captured(agent, batch) if "captured" in mode else agent.update


def captured(agent: Agent, batch: Batch) -> Update:
    for part in agent.parts.values():
        part.optimizer.make_capturable()
    reasons: list[str] = []
    update = CapturedUpdate(
        lambda: torch.stack(agent.update(batch)),
        [part.smto for part in agent.parts.values()],
        agent.generators,
        agent.device,
        warn=reasons.append,
    )
    for _ in range(WARM_UPS + 2):  # the first step of a method may differ from the others
        update()
    if not update.is_captured:
        cause = reasons[0].split(": ", 1)[-1] if reasons else "its steps differ, or wait"
        raise Impossible(f"not captured: {cause}")
    return lambda _: update()
