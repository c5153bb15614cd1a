"""What each method costs on the supervised networks: iterations, relative to unitary scalarisation.

    python scripts/bench_supervised.py                              # both networks, small batches
    python scripts/bench_supervised.py --problems celeba --batch 128 --device cuda
    python scripts/bench_supervised.py --markdown docs/supervised.md   # replace the table there

An iteration is forward, task gradients, method and Adam, on random images: the LeNet with two
tasks, the ResNet-18 with 40 (Cityscapes on request). Method and unitary take turns, so that a busy
machine slows both; the ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch
from bench_smto import status_mib

from mtrl.learner import choose_device
from mtrl.supervised.config import SupervisedConfig
from mtrl.supervised.data import Batch
from mtrl.supervised.learner import Learner
from mtrl.supervised.problems import make_problem

BEGIN, END = "<!-- bench_supervised: begin -->", "<!-- bench_supervised: end -->"
BATCHES = {"multi_mnist": 256, "celeba": 8, "cityscapes": 2}


class Case(NamedTuple):
    method: str
    space: str
    options: dict[str, int] = {}  # noqa: RUF012 - never changed
    chunk_size: int = 1

    @property
    def label(self) -> str:
        options = "".join(f" {key}={value}" for key, value in self.options.items())
        return f"`{self.method}{options}`"


CASES = (
    Case("rlw_dirichlet", "parameters"),
    Case("mgda", "representation"),
    Case("imtl", "representation"),
    Case("graddrop", "representation"),
    Case("pcgrad", "representation"),
    Case("pcgrad", "parameters"),
    Case("pcgrad", "parameters", {}, 8),
    Case("pcgrad", "parameters", {"update_every": 10}),
    Case("graddrop", "parameters"),
)


class Cost(NamedTuple):
    ratio: float
    """Median time over unitary's; of the mean over a whole period, where weights are reused."""
    memory: float
    """Peak memory on top of what is held between iterations, MiB."""


def make_learner(problem: str, case: Case, device: torch.device) -> Learner:
    config = SupervisedConfig(problem=problem)  # type: ignore[arg-type]
    smto = dataclasses.replace(
        config.smto,
        name=case.method,
        options=dict(case.options),
        gradient_space=case.space,  # type: ignore[arg-type]
        chunk_size=case.chunk_size,
    )
    config = dataclasses.replace(config, smto=smto)
    return Learner(config, make_problem(config), 1_000_000, device)


def make_batch(problem: str, size: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    tasks = SupervisedConfig(problem=problem).num_tasks  # type: ignore[arg-type]
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


def peak_memory(learner: Learner, batch: Batch) -> float:
    """MiB of an iteration; the first has been made, Adam's moments exist."""
    gc.collect()
    if learner.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(learner.device)
        held = torch.cuda.memory_allocated(learner.device)
        seconds(learner, batch)
        return (torch.cuda.max_memory_allocated(learner.device) - held) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to the present
    before = status_mib("VmRSS")
    seconds(learner, batch)
    return max(status_mib("VmHWM") - before, 0.0)


def measure(problem: str, case: Case, unitary: Learner, batch: Batch, turns: int) -> Cost:
    learner = make_learner(problem, case, unitary.device)
    period = case.options.get("update_every", 1)
    seconds(learner, batch, period)
    memory = peak_memory(learner, batch) if period == 1 else float("nan")
    ratios = []
    for _ in range(turns):
        base = seconds(unitary, batch)
        ratios.append(seconds(learner, batch, period) / base)
    return Cost(statistics.median(ratios), memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--problems", nargs="+", choices=[*BATCHES], default=["multi_mnist", "celeba"]
    )
    parser.add_argument("--batch", type=int, help="samples; default: 256, CelebA 8, Cityscapes 2")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--turns", type=int, default=5, help="measurements per method")
    parser.add_argument("--markdown", type=Path, help="file with the marked place for the table")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
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
        seconds(unitary, batch)
        base = min(seconds(unitary, batch) for _ in range(3))
        memory = peak_memory(unitary, batch)
        name = f"{problem}, batch {size}"
        lines.append(f"| {name} | `unitary` | | | 1 ({1e3 * base:.0f} ms) | {memory:.0f} |")
        for case in CASES:
            cost = measure(problem, case, unitary, batch, options.turns)
            own = "" if case.space == "representation" else str(case.chunk_size)
            shown = "" if cost.memory != cost.memory else f"{cost.memory:.0f}"
            lines.append(
                f"| {name} | {case.label} | {case.space} | {own} | {cost.ratio:.2f} | {shown} |"
            )
            print(lines[-1], flush=True)
    table = "\n".join(lines)
    text = f"torch {torch.__version__}, {where}, {options.turns} turns.\n\n{table}"
    print(f"\n{text}")
    if options.markdown:
        page = options.markdown.read_text()
        before, rest = page.split(BEGIN)
        after = rest.split(END)[1]
        options.markdown.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
