"""What each architecture costs: full MT-SAC updates, relative to the plain network.

    python scripts/bench_networks.py                               # all networks, m = 10
    python scripts/bench_networks.py --markdown docs/networks.md   # replace the table there

Updates of 3 x 400, twin critics, 128 samples per task, random data, by `unitary` and by `pcgrad`.
Each takes turns with the plain network and `unitary`, so that a busy machine slows both; the ratio
is the median over the turns. Arithmetic: the floating-point operations of the matrix products of
an update by `unitary`, over the plain network's; the compiler is off.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from bench_smto import ACTION, OBSERVATION, make_batch, seconds
from marked_table import replace_table
from torch.utils.flop_counter import FlopCounterMode

from mtrl.agent import Agent
from mtrl.benchmarks import BENCHMARKS
from mtrl.config import AgentConfig, Config, EnvConfig, NetworkConfig, SmtoConfig
from mtrl.device.setup import choose_device
from mtrl.networks import available_networks, describe_network
from mtrl.networks.registry import DEFAULT
from mtrl.replay import Batch

METHODS = ("unitary", "pcgrad")


def make_agent(network: str, method: str, m: int, device: torch.device) -> Agent:
    config = Config(
        env=EnvConfig(tasks=BENCHMARKS["MT50"][:m]),
        network=NetworkConfig(architecture=network),
        agent=AgentConfig(smto=SmtoConfig(method)),
    )
    return Agent(config, OBSERVATION, ACTION, device)


def arithmetic(agent: Agent, batch: Batch) -> int:
    with FlopCounterMode(display=False) as counter:
        agent.update(batch)
    return int(counter.get_total_flops())


def ratio(agent: Agent, plain: Agent, batch: Batch, budget: float) -> float:
    """Take turns for about `budget` seconds; three turns at least."""
    seconds(agent, batch)
    ratios: list[float] = []
    end = time.perf_counter() + budget
    while len(ratios) < 3 or time.perf_counter() < end:
        base = seconds(plain, batch)
        ratios.append(seconds(agent, batch) / base)
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=10, help="m")
    parser.add_argument("--networks", nargs="+", default=list(available_networks()))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--minutes", type=float, default=2.0, help="about how long to measure")
    parser.add_argument("--note", default="", help="of the machine, e.g. that it was busy")
    parser.add_argument("--markdown", type=Path, help="file with the marked place for the table")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for network in options.networks:
        describe_network(network)  # unknown names are refused before the work begins
    device = choose_device(options.device)
    plain, batch = (
        make_agent(DEFAULT, "unitary", options.tasks, device),
        make_batch(options.tasks, device),
    )
    plain_flop = arithmetic(plain, batch)
    budget = 60 * options.minutes / len(options.networks) / len(METHODS)
    lines = [
        "| network | arithmetic | " + " | ".join(f"time, `{method}`" for method in METHODS) + " |",
        "|---" * (2 + len(METHODS)) + "|",
    ]
    print("\n".join(lines), flush=True)
    for network in options.networks:
        agents = [make_agent(network, method, options.tasks, device) for method in METHODS]
        cells = [f"{arithmetic(agents[0], batch) / plain_flop:.2f}"]
        cells += [f"{ratio(agent, plain, batch, budget):.2f}" for agent in agents]
        lines.append(f"| `{network}` | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    fastest = 1e3 * min(seconds(plain, batch) for _ in range(4))
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    text = (
        f"An update's arithmetic and time over those of `{DEFAULT}` by `unitary`, m = "
        f"{options.tasks}, not compiled; torch {torch.__version__}, {where}"
        f"{', ' + options.note if options.note else ''}; fastest `{DEFAULT}` update: "
        f"{fastest:.0f} ms.\n\n" + "\n".join(lines)
    )
    if options.markdown:
        replace_table(options.markdown, "bench_networks", text)


if __name__ == "__main__":
    main()
