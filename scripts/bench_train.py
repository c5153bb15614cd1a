"""The whole training loop, as configured: speed, overlap, and hours for the full protocol.

    python scripts/bench_train.py                               # MT10 and MT50, a few methods
    python scripts/bench_train.py --configs quickstart --methods unitary pcgrad
    python scripts/bench_train.py --configs mt10 --envs-per-task 8 32   # for many cores
    python scripts/bench_train.py --markdown docs/performance.md

Each row is `mtrl bench` of one preset and method: real environments, workers and updates. With
other environments per task the updates per transition stay the preset's. Hours are the preset's
total steps at the speed seen, without evaluations. Overlap: the longer of
simulation and learner over the time both took together, 1 = the shorter one costs nothing.
Memory: the learner's peak (tensors on a GPU, else the process), the replay when it is full.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import platform
from pathlib import Path

import torch
from marked_table import replace_table

from mtrl.commands.bench import Measurement, measure
from mtrl.config import Config
from mtrl.device.setup import set_up_learner
from mtrl.envs.vector import make_vector_env
from mtrl.options.command_line import load_config


def with_method(config: Config, method: str) -> Config:
    smto = dataclasses.replace(config.agent.smto, name=method)
    return dataclasses.replace(config, agent=dataclasses.replace(config.agent, smto=smto))


def with_copies(config: Config, copies: int) -> Config:
    """With this many environments per task, and the same updates per transition."""
    rate = config.agent.updates_per_step * copies / config.train.envs_per_task
    return dataclasses.replace(
        config,
        agent=dataclasses.replace(config.agent, updates_per_step=rate),
        train=dataclasses.replace(config.train, envs_per_task=copies),
    )


def row(config: Config, method: str, m: Measurement) -> str:
    hours = config.train.total_steps / m.env_steps_per_s / 3600
    return (
        f"| {config.name} | {config.num_envs} | `{method}` | {m.env_steps_per_s:,.0f} | "
        f"{m.updates_per_s:,.1f} | "
        f"{m.busiest_worker_ms:.1f} | {m.learner_ms:.1f} | {m.step_ms:.1f} | {m.overlap:.2f} | "
        f"{m.product_share:.0%} | {m.learner_mib:,.0f} | {m.replay_mib:,.0f} | {hours:,.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--configs", nargs="+", default=["mt10", "mt50"])
    parser.add_argument("--methods", nargs="+", default=["unitary", "pcgrad", "mgda", "cagrad"])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument("--envs-per-task", type=int, nargs="+", help="default: the preset's")
    parser.add_argument("--seconds", type=float, default=20.0, help="watched for each row")
    parser.add_argument("--markdown", type=Path, help="file with the marked place for the table")
    options = parser.parse_args()
    lines = [
        "| preset | environments | method | env steps/s | updates/s | simulation, ms | "
        "learner, ms | vector step, ms | overlap | of the matrix rate | learner, MiB | "
        "replay, MiB | hours for the preset |",
        "|---" * 13 + "|",
    ]
    print("\n".join(lines), flush=True)
    for copies, name in itertools.product(options.envs_per_task or [None], options.configs):
        config = load_config(name)
        learner = dataclasses.replace(config.learner, device=options.device)
        config = dataclasses.replace(config, learner=learner)
        config = with_copies(config, copies or config.train.envs_per_task)
        device = set_up_learner(config)
        # The workers are the same for all methods.
        with make_vector_env(config, config.train.envs_per_task) as envs:
            for method in options.methods:
                torch.compiler.reset()  # or one process may compile only so many agents
                chosen = with_method(config, method)
                measured = measure(chosen, envs, options.seconds, rare=False)
                lines.append(row(chosen, method, measured))
                print(lines[-1], flush=True)
    if options.markdown:
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        text = f"torch {torch.__version__}, {where}, {torch.get_num_threads()} CPU threads.\n\n"
        replace_table(options.markdown, "bench_train", text + "\n".join(lines))


if __name__ == "__main__":
    main()
