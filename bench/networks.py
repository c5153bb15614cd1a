"""What each architecture costs: full MT-SAC updates, relative to the plain network.

    python bench/networks.py                               # all networks, m = 10
    python bench/networks.py --markdown docs/networks.md   # replace the table there

Updates of 3 x 400, twin critics, 128 samples per task, random data, by `unitary` and by `pcgrad`,
compiled as in a long run. Each takes turns with the plain network and `unitary`, so that a busy
machine slows both; the ratio is the median over the turns. Arithmetic: the floating-point
operations of the matrix products of an update by `unitary`, over the plain network's.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from device import machine, seconds, set_up
from harness import known, make_parser, run, take_turns
from mtrl.agent import Agent
from mtrl.networks import available_networks, describe_network
from mtrl.networks.registry import DEFAULT
from mtrl.replay import Batch
from mtrl.report.markdown import Table
from updates import MODES, Update, make_agent, make_batch, prepare

METHODS = ("unitary", "pcgrad")


def arithmetic(agent: Agent, batch: Batch) -> int:
    with FlopCounterMode(display=False) as counter:
        agent.update(batch)
    return int(counter.get_total_flops())


def ratio(
    update: Update, plain: Update, batch: Batch, device: torch.device, budget: float
) -> float:
    """Take turns for about `budget` seconds."""
    works = [partial(seconds, device, partial(each, batch)) for each in (update, plain)]
    works[0]()
    mine, base = take_turns(works, time.perf_counter() + budget).T
    return float(np.median(mine / base))


def main() -> None:
    parser = make_parser(__file__, __doc__, device="auto", threads=None, minutes=2.0)
    parser.add_argument("--tasks", type=int, default=10, help="m")
    parser.add_argument(
        "--networks", nargs="+", type=known(describe_network), default=available_networks()
    )
    parser.add_argument("--mode", choices=MODES, default="compiled")
    parser.add_argument("--note", default="", help="of the machine, e.g. that it was busy")
    options = parser.parse_args()
    m, device = options.tasks, set_up(options.device, options.threads)
    plain, batch = make_agent("unitary", m, device), make_batch(m, device)
    plain_flop = arithmetic(plain, batch)
    plain_update = prepare(plain, batch, options.mode)
    fastest = min(seconds(device, partial(plain_update, batch)) for _ in range(4))
    budget = 60 * options.minutes / len(options.networks) / len(METHODS)
    intro = (
        f"An update's arithmetic and time over those of `{DEFAULT}` by `unitary`, m = {m}, "
        f"{options.mode}; {machine(device)}{', ' + options.note if options.note else ''}; fastest "
        f"`{DEFAULT}` update: {1e3 * fastest:.0f} ms."
    )
    times = [f"time, `{method}`" for method in METHODS]
    table = Table("network", "arithmetic", *times, intro=intro)
    for network in options.networks:
        agents = [make_agent(method, m, device, architecture=network) for method in METHODS]
        flop = arithmetic(agents[0], batch)
        updates = [prepare(agent, batch, options.mode) for agent in agents]
        ratios = [ratio(update, plain_update, batch, device, budget) for update in updates]
        table.add(f"`{network}`", f"{flop / plain_flop:.2f}", *(f"{value:.2f}" for value in ratios))
    table.publish(options.markdown, options.csv)


if __name__ == "__main__":
    run(main)
