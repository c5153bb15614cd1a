"""The whole training loop, as configured: speed, overlap, and hours for the full protocol.

    python bench/train.py                               # MT10 and MT50, a few methods
    python bench/train.py --configs quickstart --methods unitary pcgrad
    python bench/train.py --configs mt10 --envs-per-task 8 32   # for many cores
    python bench/train.py --markdown docs/performance.md

Each row is `mtrl bench` of one preset and method: real environments, workers and updates. With
other environments per task the updates per transition stay the preset's. Hours are the preset's
total steps at the speed seen, without evaluations. Overlap: the longer of
simulation and learner over the time both took together, 1 = the shorter one costs nothing.
Memory: the learner's peak (tensors on a GPU, else the process), the replay when it is full.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from device import machine, set_up
from harness import known, make_parser, run
from mtrl.commands.bench import Measurement, measure
from mtrl.config import Config
from mtrl.device.setup import set_up_learner
from mtrl.envs.vector import make_vector_env
from mtrl.options.command_line import load_config
from mtrl.report.markdown import Table
from mtrl.schema import with_values
from mtrl.smto import describe

METHODS = ("unitary", "pcgrad", "mgda", "cagrad")
COLUMNS = (
    *("preset", "environments", "method", "env steps/s", "updates/s", "simulation, ms"),
    *("learner, ms", "vector step, ms", "overlap", "of the matrix rate", "learner, MiB"),
    *("replay, MiB", "hours for the preset"),
)


def with_copies(config: Config, copies: int) -> dict[str, Any]:
    """Settings for so many environments per task, and the same updates per transition."""
    rate = config.agent.updates_per_step * copies / config.train.envs_per_task
    return {"train.envs_per_task": copies, "agent.updates_per_step": rate}


def cells(config: Config, m: Measurement) -> list[str]:
    hours = config.train.total_steps / m.env_steps_per_s / 3600
    times = m.busiest_worker_ms, m.learner_ms, m.step_ms
    return [
        *(config.name, str(config.num_envs), f"`{config.agent.smto.name}`"),
        *(f"{m.env_steps_per_s:,.0f}", f"{m.updates_per_s:,.1f}"),
        *(f"{ms:.1f}" for ms in times),
        *(f"{m.overlap:.2f}", f"{m.product_share:.0%}"),
        *(f"{m.learner_mib:,.0f}", f"{m.replay_mib:,.0f}", f"{hours:,.1f}"),
    ]


def main() -> None:
    parser = make_parser(__file__, __doc__, device="auto", seconds=20.0)
    parser.add_argument("--configs", nargs="+", default=["mt10", "mt50"])
    parser.add_argument("--methods", nargs="+", type=known(describe), default=METHODS)
    parser.add_argument("--envs-per-task", type=int, nargs="+", help="default: the preset's")
    options = parser.parse_args()
    device = set_up(options.device)
    table = Table(*COLUMNS, intro=f"{machine(device)}.")
    for copies, name in itertools.product(options.envs_per_task or [None], options.configs):
        config = load_config(name)
        settings = with_copies(config, copies or config.train.envs_per_task)
        config = with_values(config, {"learner.device": options.device, **settings})
        set_up_learner(config.learner)
        # The workers are the same for all methods.
        with make_vector_env(config, config.train.envs_per_task) as envs:
            for method in options.methods:
                torch.compiler.reset()  # or one process may compile only so many agents
                chosen = with_values(config, {"agent.smto.name": method})
                table.add(*cells(chosen, measure(chosen, envs, options.seconds, rare=False)))
    table.publish(options.markdown, options.csv)


if __name__ == "__main__":
    run(main)
