"""What each multi-task optimiser costs: full MT-SAC updates, relative to unitary scalarisation.

    python scripts/bench_smto.py                            # all methods, m = 2, 10, 50
    python scripts/bench_smto.py --quick                    # a first look, less than a minute
    python scripts/bench_smto.py --markdown docs/smto.md    # replace the table there

An update is critic, actor, temperature and targets of the published network (3 x 400, twin
critic), 128 samples per task, random data. Method and unitary take turns, so that a busy machine
slows both; the ratio is the median over the turns, beside it the quartiles. `m backward passes`
is PCGrad with the task gradients computed as in published code: one backward per task and loss.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from marked_table import replace_table
from peak_memory import peak_memory
from torch import Tensor, nn

from mtrl.agent import Agent
from mtrl.benchmarks import BENCHMARKS
from mtrl.config import AgentConfig, Config, EnvConfig, SmtoConfig
from mtrl.device.setup import choose_device
from mtrl.gradients.layers import Layers, TaskLoss
from mtrl.networks.layers import Term
from mtrl.replay import Batch
from mtrl.smto import available, describe

OBSERVATION, ACTION, SAMPLES = 39, 4, 128
LOOP = "m backward passes"


class Cost(NamedTuple):
    median: float
    low: float
    high: float
    """Time of an update over unitary's: median and quartiles."""
    memory: float
    """Most memory an update holds on top of the agent, MiB."""


def one_backward_per_task(task_loss: TaskLoss, network: nn.Module, *inputs: Tensor) -> Layers:
    """The slow way to `layer_gradients`."""
    losses, auxiliary = task_loss(network, *inputs)
    parameters = list(network.parameters())
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    terms = (torch.stack([g.flatten() for g in column]) for column in zip(*rows, strict=True))
    return Layers(
        losses.detach(),
        auxiliary.detach(),
        tuple(Term(None, rows[None, :, None]) for rows in terms),
    )


def make_agent(method: str, m: int, device: torch.device) -> Agent:
    options = {"weights": [1.0] * m} if method == "fixed" else {}
    name = "pcgrad" if method == LOOP else method
    config = Config(
        env=EnvConfig(tasks=BENCHMARKS["MT50"][:m]),
        agent=AgentConfig(smto=SmtoConfig(name, options)),
    )
    agent = Agent(config, OBSERVATION, ACTION, device)
    if method == LOOP:
        for objective in (agent.critic, agent.actor):
            objective.gradients = one_backward_per_task
    return agent


def make_batch(m: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(m, SAMPLES, *shape, generator=generator).to(device)

    zeros = torch.zeros(m, SAMPLES, device=device)
    fields = normal(OBSERVATION), normal(ACTION).tanh(), normal(), normal(OBSERVATION)
    return Batch(*fields, zeros, torch.full_like(zeros, 0.99))


def seconds(agent: Agent, batch: Batch) -> float:
    started = time.perf_counter()
    agent.update(batch)
    if agent.device.type == "cuda":
        torch.cuda.synchronize(agent.device)
    return time.perf_counter() - started


def measure(method: str, unitary: Agent, batch: Batch, budget: float, most: int) -> Cost:
    """Take turns with unitary for about `budget` seconds."""
    agent = make_agent(method, unitary.num_tasks, unitary.device)
    memory = peak_memory(agent.device, lambda: seconds(agent, batch))  # of the first update
    ratios: list[float] = []
    started = time.perf_counter()
    fewest = 1 if method == LOOP else 3
    while len(ratios) < most:
        spent = time.perf_counter() - started
        if len(ratios) >= fewest and spent * (1 + 1 / len(ratios)) > budget:
            break
        base = seconds(unitary, batch)
        ratios.append(seconds(agent, batch) / base)
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return Cost(median, low, high, memory)


def table(methods: Sequence[str], tasks: Sequence[int], costs: dict[tuple[str, int], Cost]) -> str:
    head = [f"m = {m}" for m in tasks] + [f"MiB, m = {m}" for m in tasks]
    lines = [f"| method | needs | {' | '.join(head)} |", "|---" * (2 + len(head)) + "|"]
    for method in methods:
        needs = "m gradients" if method == LOOP else describe(method).needs
        cells = []
        for m in tasks:
            cost = costs[method, m]
            cells.append(f"{cost.median:.2f} ({cost.low:.2f}-{cost.high:.2f})")
        cells += [f"{costs[method, m].memory:.0f}" for m in tasks]
        lines.append(f"| `{method}` | {needs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 10, 50], help="values of m")
    parser.add_argument("--methods", nargs="+", help="default: all, and the loop")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--minutes", type=float, default=8.0, help="about how long to measure")
    parser.add_argument("--quick", action="store_true", help="m = 2 and 10, a few methods")
    parser.add_argument("--markdown", type=Path, help="file with the marked place for the table")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    tasks, minutes = options.tasks, options.minutes
    methods = options.methods or [*available(), LOOP]
    if options.quick:
        tasks, minutes = [2, 10], 0.5
        methods = options.methods or ["unitary", "rlw_normal", "pcgrad", "mgda", LOOP]
    for method in methods:
        if method != LOOP:
            describe(method)  # unknown names are refused before the work begins

    costs: dict[tuple[str, int], Cost] = {}
    unitary_ms = []
    for m in tasks:
        unitary, batch = make_agent("unitary", m, device), make_batch(m, device)
        unitary_ms.append(1e3 * min(seconds(unitary, batch) for _ in range(4)))
        budget = 60 * minutes * m**0.5 / sum(k**0.5 for k in tasks) / len(methods)
        for method in methods:
            cost = costs[method, m] = measure(method, unitary, batch, budget, most=100)
            print(
                f"m = {m:2}  {method:18} {cost.median:6.2f}x  ({cost.low:.2f}-{cost.high:.2f})  "
                f"{cost.memory:6.0f} MiB",
                flush=True,
            )
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    base = ", ".join(f"{ms:.0f} ms (m = {m})" for m, ms in zip(tasks, unitary_ms, strict=True))
    text = (
        f"Time of a full MT-SAC update over that of `unitary` in the same run, median "
        f"(quartiles), and peak memory of an update; torch {torch.__version__}, {where}; fastest "
        f"`unitary` update: {base}.\n\n{table(methods, tasks, costs)}"
    )
    print(f"\n{text}")
    if options.markdown:
        replace_table(options.markdown, "bench_smto", text)


if __name__ == "__main__":
    main()
