"""How many runs should share a GPU: updates per second of several learners at once.

    python bench/sharing.py                            # 1, 4 and 8, without and with MPS
    python bench/sharing.py --learners 1 2 --seconds 5 --markdown docs/performance.md

Each learner is a process with an agent of its own; its updates are those of `learner.py`, on
random data. NVIDIA's multi-process service (MPS) lets kernels of several processes run at the same
time; without it they take turns. The script starts a daemon of its own, in a temporary folder, and
ends it; it changes no setting of the device.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import subprocess
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing.synchronize import Barrier
from tempfile import TemporaryDirectory

from harness import make_parser, run
from mtrl.config.benchmarks import BENCHMARKS, benchmark_tasks
from mtrl.report.markdown import Table

CONTROL = "nvidia-cuda-mps-control"
PATIENCE_S = 120.0  # for all learners to be ready


def learn(options: Namespace, barrier: Barrier, rates: multiprocessing.Queue[float]) -> None:
    """One process: updates for the given time, from the moment at which all are ready."""
    from device import seconds, set_up
    from updates import make_agent, make_batch, prepare, use

    device = set_up(options.device, threads=1)
    use(options.precision)
    m = len(benchmark_tasks(options.benchmark))
    batch = make_batch(m, device)
    agent = make_agent(options.method, m, device, width=options.width, precision=options.precision)
    update = partial(prepare(agent, batch, options.mode), batch)
    often = max(1, min(200, int(0.05 / seconds(device, update, 3))))
    barrier.wait(PATIENCE_S)
    started, updates = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < options.seconds:
        seconds(device, update, often)
        updates += often
    rates.put(updates / passed)


def measure(learners: int, options: Namespace) -> list[float]:
    """Updates per second of each."""
    spawn = multiprocessing.get_context("spawn")
    barrier, rates = spawn.Barrier(learners), spawn.Queue()
    processes = [
        spawn.Process(target=learn, args=(options, barrier, rates), daemon=True)
        for _ in range(learners)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S + options.seconds)
    if any(process.exitcode for process in processes):
        raise RuntimeError("a learner failed; its error is above")
    return [rates.get(timeout=10) for _ in processes]


@contextmanager
def service() -> Iterator[None]:
    """An MPS daemon for the processes that are started meanwhile."""
    with TemporaryDirectory() as folder:
        variables = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        os.environ.update(variables)
        try:
            subprocess.run([CONTROL, "-d"], check=True, timeout=20, stdin=subprocess.DEVNULL)
            yield
        finally:
            subprocess.run([CONTROL], input="quit\n", text=True, timeout=20, check=False)
            for name in variables:
                del os.environ[name]


def main() -> None:
    parser = make_parser(__file__, __doc__, device="cuda", seconds=5.0)
    parser.add_argument("--learners", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--benchmark", default="MT10", choices=BENCHMARKS)
    parser.add_argument("--width", type=int, default=400)
    parser.add_argument("--method", default="unitary")
    parser.add_argument("--precision", default="tf32", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--mode", help="default: captured, on a CPU eager")
    options = parser.parse_args()
    options.mode = options.mode or ("eager" if options.device == "cpu" else "captured")
    with_mps = options.device != "cpu" and shutil.which(CONTROL) is not None
    intro = (
        f"{options.benchmark}, width {options.width}, `{options.method}` {options.precision}, "
        f"{options.mode}."
    )
    columns = "learners", "MPS", "updates/s of each", "updates/s in all", "over one alone"
    table = Table(*columns, intro=intro)
    alone: float | None = None
    for mps, count in itertools.product((False, True) if with_mps else (False,), options.learners):
        if mps and count == 1:
            continue  # it shares with nobody
        with service() if mps else nullcontext():
            total = sum(measure(count, options))
        alone = alone or (total if count == 1 else None)
        ratio = f"{total / alone:.2f}" if alone else ""
        rates = f"{total / count:,.0f}", f"{total:,.0f}"
        table.add(str(count), "yes" if mps else "no", *rates, ratio)
    if not with_mps:
        print(f"\nWithout MPS: there is no {CONTROL} here.")
    table.publish(options.markdown, options.csv)


if __name__ == "__main__":
    run(main)
