"""What each method costs on the supervised networks: iterations, relative to unitary scalarisation.

    python bench/supervised.py                              # both networks, small batches
    python bench/supervised.py --problems celeba --batch 128 --device cuda
    python bench/supervised.py --markdown docs/supervised.md   # replace the table there

An iteration is forward, task gradients, method and Adam, on random images: the LeNet with two
tasks, the ResNet-18 with 40 (Cityscapes on request). Method and unitary take turns, so that a busy
machine slows both; the ratio is the median over the turns, of which expensive methods get fewer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from device import machine, peak_memory, seconds, set_up
from harness import make_parser, run, take_turns
from mtrl.report.markdown import Table
from mtrl.schema import with_values
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
    settings = {
        "smto.name": case.method,
        "smto.options": dict(case.options),
        "smto.gradient_space": case.space,
        "smto.chunk_size": case.chunk_size,
        "rotograd.enabled": case.rotograd,
        "rotograd.size": ROTATED,
    }
    config = with_values(SupervisedConfig(problem=problem), settings)
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


def timed(learner: Learner, batch: Batch, iterations: int = 1) -> Callable[[], float]:
    return partial(seconds, learner.device, partial(learner.update, batch, 0), iterations)


def measure(
    problem: ProblemName, case: Case, unitary: Learner, batch: Batch, budget: float
) -> Cost:
    """Take turns with unitary for about `budget` seconds, once at least."""
    learner = make_learner(problem, case, unitary.device)
    memory = peak_memory(unitary.device, timed(learner, batch))
    works = timed(learner, batch, case.options.get("update_every", 1)), timed(unitary, batch)
    until = time.perf_counter() + budget
    mine, base = take_turns(works, until, fewest=1, most=MOST_TURNS).T
    return Cost(float(np.median(mine / base)), memory)


def main() -> None:
    parser = make_parser(__file__, __doc__, device="auto", threads=None, minutes=4.0)
    parser.add_argument(
        "--problems", nargs="+", choices=[*BATCHES], default=["multi_mnist", "celeba"]
    )
    parser.add_argument("--batch", type=int, help="samples; default: 256, CelebA 4, Cityscapes 2")
    options = parser.parse_args()
    device = set_up(options.device, options.threads)
    budget = 60 * options.minutes / len(options.problems) / len(CASES)
    intro = (
        f"Time of an iteration over `unitary`'s, and peak memory of one; RotoGrad rotates up to "
        f"{ROTATED} channels. {machine(device)}."
    )
    columns = "problem", "method", "space", "tasks per pass", "time / unitary", "MiB"
    table = Table(*columns, intro=intro)
    for problem in options.problems:
        size = options.batch or BATCHES[problem]
        batch = make_batch(problem, size, device)
        unitary = make_learner(problem, Case("unitary", "parameters"), device)
        iteration = timed(unitary, batch)
        memory = peak_memory(device, iteration)
        base = f"1 ({1e3 * min(iteration() for _ in range(3)):.0f} ms)"
        name = f"{problem}, batch {size}"
        table.add(name, "`unitary`", "", "", base, f"{memory:.0f}")
        for case in CASES:
            cost = measure(problem, case, unitary, batch, budget)
            own = "" if case.space == "representation" else str(case.chunk_size)
            figures = f"{cost.ratio:.2f}", f"{cost.memory:.0f}"
            table.add(name, case.label, case.space, own, *figures)
    table.publish(options.markdown, options.csv)


if __name__ == "__main__":
    run(main)
