"""What each method costs on the supervised networks: iterations, relative to unitary scalarisation.

    python scripts/bench_supervised.py                              # both networks, small batches
    python scripts/bench_supervised.py --problems celeba --batch 128 --device cuda
    python scripts/bench_supervised.py --markdown docs/supervised.md   # replace the table there

An iteration is forward, task gradients, method and Adam, on random images: the LeNet with two
tasks, the ResNet-18 with 40 (Cityscapes on request). Method and unitary take turns, so that a busy
machine slows both; the ratio is the median over the turns, of which dear methods get fewer.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from marked_table import replace_table
from peak_memory import peak_memory

from mtrl.device.setup import choose_device
from mtrl.supervised.config import ProblemName, SupervisedConfig
from mtrl.supervised.data import Batch
from mtrl.supervised.gradients import Space
from mtrl.supervised.learner import Learner
from mtrl.supervised.problems import make_problem

BATCHES: dict[ProblemName, int] = {"multi_mnist": 256, "celeba": 4, "cityscapes": 2}
MOST_TURNS = 50


class Case(NamedTuple):
    method: str
    space: Space
    options: Mapping[str, int] = MappingProxyType({})
    chunk_size: int = 1
    rotograd: bool = False

    @property
    def label(self) -> str:
        options = "".join(f" {key}={value}" for key, value in self.options.items())
        return f"`{self.method}{options}{'+rotograd' * self.rotograd}`"


CASES = (
    Case("rlw_dirichlet", "parameters"),
    Case("unitary", "parameters", rotograd=True),
    Case("mgda", "representation"),
    Case("imtl", "representation"),
    Case("graddrop", "representation"),
    Case("pcgrad", "representation"),
    Case("pcgrad", "parameters"),
    Case("pcgrad", "parameters", chunk_size=8),
    Case("pcgrad", "parameters", {"update_every": 10}),
    Case("graddrop", "parameters"),
)


class Cost(NamedTuple):
    ratio: float
    """Median time over unitary's; of the mean over a whole period, where weights are reused."""
    memory: float
    """Peak memory on top of what is held between iterations, MiB."""


ROTATED = 128
"""Channels of z that RotoGrad rotates here, where there are more."""


def make_learner(problem: ProblemName, case: Case, device: torch.device) -> Learner:
    config = SupervisedConfig(problem=problem)
    smto = dataclasses.replace(
        config.smto,
        name=case.method,
        options=dict(case.options),
        gradient_space=case.space,
        chunk_size=case.chunk_size,
    )
    rotograd = dataclasses.replace(config.rotograd, enabled=case.rotograd, size=ROTATED)
    config = dataclasses.replace(config, smto=smto, rotograd=rotograd)
    learner = Learner(config, make_problem(config), 1_000_000, device)
    for parameter in learner.network.parameters():  # Adam's moments exist before memory is measured
        parameter.grad = torch.zeros_like(parameter)
    learner.optimizer.step()
    return learner


def make_batch(problem: ProblemName, size: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    tasks = SupervisedConfig(problem=problem).num_tasks
    if problem == "cityscapes":
        images = torch.rand(size, 128, 256, 3, generator=generator)
        labels = torch.randint(-1, 7, (size, 128, 256), generator=generator)
        depth = torch.rand(size, 128, 256, generator=generator)
        return Batch(images.to(device), (labels.to(device), depth.to(device)))
    shape = (1, 28, 28) if problem == "multi_mnist" else (3, 64, 64)
    images = torch.randint(256, (size, *shape), generator=generator, dtype=torch.uint8)
    classes = 10 if problem == "multi_mnist" else 2
    targets = [torch.randint(classes, (size,), generator=generator) for _ in range(tasks)]
    return Batch(images.to(device), tuple(target.to(device) for target in targets))


def seconds(learner: Learner, batch: Batch, iterations: int = 1) -> float:
    started = time.perf_counter()
    for _ in range(iterations):
        learner.update(batch, 0)
    if learner.device.type == "cuda":
        torch.cuda.synchronize(learner.device)
    return (time.perf_counter() - started) / iterations


def measure(
    problem: ProblemName, case: Case, unitary: Learner, batch: Batch, budget: float
) -> Cost:
    """Take turns with unitary for about `budget` seconds, once at least."""
    learner = make_learner(problem, case, unitary.device)
    period = case.options.get("update_every", 1)
    memory = peak_memory(unitary.device, lambda: seconds(learner, batch))
    ratios: list[float] = []
    started = time.perf_counter()
    while len(ratios) < MOST_TURNS:
        spent = time.perf_counter() - started
        if ratios and spent * (1 + 1 / len(ratios)) > budget:
            break
        base = seconds(unitary, batch)
        ratios.append(seconds(learner, batch, period) / base)
    return Cost(statistics.median(ratios), memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--problems", nargs="+", choices=[*BATCHES], default=["multi_mnist", "celeba"]
    )
    parser.add_argument("--batch", type=int, help="samples; default: 256, CelebA 4, Cityscapes 2")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--minutes", type=float, default=4.0, help="about how long to measure")
    parser.add_argument("--markdown", type=Path, help="file with the marked place for the table")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    budget = 60 * options.minutes / len(options.problems) / len(CASES)
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    lines = [
        "| problem | method | space | tasks per pass | time / unitary | MiB |",
        "|---" * 6 + "|",
    ]
    for problem in options.problems:
        size = options.batch or BATCHES[problem]
        batch = make_batch(problem, size, device)
        unitary = make_learner(problem, Case("unitary", "parameters"), device)
        memory = peak_memory(device, lambda: seconds(unitary, batch))  # noqa: B023 - called at once
        base = min(seconds(unitary, batch) for _ in range(3))
        name = f"{problem}, batch {size}"
        lines.append(f"| {name} | `unitary` | | | 1 ({1e3 * base:.0f} ms) | {memory:.0f} |")
        for case in CASES:
            cost = measure(problem, case, unitary, batch, budget)
            own = "" if case.space == "representation" else str(case.chunk_size)
            row = [name, case.label, case.space, own, f"{cost.ratio:.2f}", f"{cost.memory:.0f}"]
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
    table = "\n".join(lines)
    text = (
        f"Time of an iteration over `unitary`'s, and peak memory of one; RotoGrad rotates up to "
        f"{ROTATED} channels. torch {torch.__version__}, {where}.\n\n{table}"
    )
    print(f"\n{text}")
    if options.markdown:
        replace_table(options.markdown, "bench_supervised", text)


if __name__ == "__main__":
    main()
