"""What each multi-task optimiser costs: full MT-SAC updates, relative to unitary scalarisation.

    python bench/smto.py                            # all methods, m = 2, 10, 50
    python bench/smto.py --quick                    # a first look, less than a minute
    python bench/smto.py --csv docs/smto.csv        # then bench/draw.py

An update is critic, actor, temperature and targets of the published network (3 x 400, twin critic),
128 samples per task, random data; not compiled (bench/learner.py has that). Method and unitary take
turns, so that a busy machine slows both; the ratio is the median over the turns, beside it the
quartiles. `m backward passes` is PCGrad with the task gradients computed as in published code: one
backward per task and loss.
"""

from __future__ import annotations

import time
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import updates
from device import machine, peak_memory, seconds, set_up
from harness import known, make_parser, run, take_turns
from mtrl.agent import Agent
from mtrl.gradients.layers import Layers, TaskLoss
from mtrl.networks.layers import Term
from mtrl.replay import Batch
from mtrl.report.markdown import Table
from mtrl.smto import available, describe
from updates import make_batch

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
    if method != LOOP:
        return updates.make_agent(method, m, device)
    agent = updates.make_agent("pcgrad", m, device)
    for objective in (agent.critic, agent.actor):
        objective.gradients = one_backward_per_task
    return agent


def measure(method: str, unitary: Agent, batch: Batch, budget: float) -> Cost:
    """Take turns with unitary for about `budget` seconds."""
    device = unitary.device
    agent = make_agent(method, unitary.num_tasks, device)
    works = [partial(seconds, device, partial(each.update, batch)) for each in (agent, unitary)]
    memory = peak_memory(device, works[0])  # of the first update
    fewest = 1 if method == LOOP else 3
    mine, base = take_turns(works, time.perf_counter() + budget, fewest=fewest).T
    low, median, high = np.quantile(mine / base, (0.25, 0.5, 0.75), method="weibull")
    return Cost(median, low, high, memory)


def main() -> None:
    parser = make_parser(__file__, __doc__, device="auto", threads=None, minutes=8.0)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 10, 50], help="values of m")
    parser.add_argument(
        "--methods",
        nargs="+",
        type=known(lambda name: name == LOOP or describe(name)),
        help="default: all, and the loop",
    )
    parser.add_argument("--quick", action="store_true", help="m = 2 and 10, a few methods")
    options = parser.parse_args()
    device = set_up(options.device, options.threads)
    tasks, minutes = options.tasks, options.minutes
    methods = options.methods or [*available(), LOOP]
    if options.quick:
        tasks, minutes = [2, 10], 0.5
        methods = options.methods or ["unitary", "rlw_normal", "pcgrad", "mgda", LOOP]

    costs: dict[tuple[str, int], Cost] = {}
    fastest = []
    for m in tasks:
        unitary, batch = make_agent("unitary", m, device), make_batch(m, device)
        update_s = min(seconds(device, partial(unitary.update, batch)) for _ in range(4))
        fastest.append(f"{1e3 * update_s:.0f} ms (m = {m})")
        budget = 60 * minutes * m**0.5 / sum(k**0.5 for k in tasks) / len(methods)
        for method in methods:
            cost = costs[method, m] = measure(method, unitary, batch, budget)
            print(
                f"m = {m:2}  {method:18} {cost.median:6.2f}x  ({cost.low:.2f}-{cost.high:.2f})  "
                f"{cost.memory:6.0f} MiB",
                flush=True,
            )
    intro = (
        f"Time of a full MT-SAC update over that of `unitary` in the same run, median "
        f"(quartiles), and peak memory of an update; {machine(device)}; fastest `unitary` update: "
        f"{', '.join(fastest)}."
    )
    print()
    columns = [f"m = {m}" for m in tasks] + [f"MiB, m = {m}" for m in tasks]
    table = Table("method", "needs", *columns, intro=intro)
    for method in methods:
        needs = "m gradients" if method == LOOP else describe(method).needs
        mine = [costs[method, m] for m in tasks]
        times = [f"{cost.median:.2f} ({cost.low:.2f}-{cost.high:.2f})" for cost in mine]
        table.add(f"`{method}`", needs, *times, *(f"{cost.memory:.0f}" for cost in mine))
    table.publish(options.markdown, options.csv)


if __name__ == "__main__":
    run(main)
