"""How many runs should share a GPU: updates per second of several learners at once.

    python scripts/bench_sharing.py                            # 1, 4 and 8, without and with MPS
    python scripts/bench_sharing.py --learners 1 2 --seconds 5 --markdown docs/performance.md

Each learner is a process with an agent of its own; its updates are those of `bench_learner.py`, on
random data. NVIDIA's multi-process service (MPS) lets kernels of several processes run at the same
time; without it they take turns. The script starts a daemon of its own, in a temporary folder, and
ends it; it changes no setting of the device.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from marked_table import replace_table

CONTROL = "nvidia-cuda-mps-control"
PATIENCE_S = 120.0  # for all learners to be ready
HEAD = (
    "| learners | MPS | updates/s of each | updates/s in all | over one alone |\n"
    + "|---" * 5
    + "|"
)


class Work(NamedTuple):
    benchmark: str
    width: int
    method: str
    precision: str
    mode: str
    device: str
    seconds: float


def learn(work: Work, barrier: Barrier, rates: multiprocessing.Queue[float]) -> None:
    """One process: updates for the given time, from the moment at which all are ready."""
    import torch
    from bench_learner import make_agent, prepare, seconds, use
    from bench_smto import make_batch

    from mtrl.benchmarks import benchmark_tasks
    from mtrl.device.setup import choose_device

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    use(work.precision)
    device = choose_device(work.device)
    batch = make_batch(len(benchmark_tasks(work.benchmark)), device)
    agent = make_agent(work.benchmark, work.width, work.method, work.precision, device)
    update = prepare(agent, batch, work.mode)
    often = max(1, min(200, int(0.05 / seconds(update, batch, 3))))
    barrier.wait(PATIENCE_S)
    started, updates = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < work.seconds:
        seconds(update, batch, often)
        updates += often
    rates.put(updates / passed)


def measure(learners: int, work: Work) -> list[float]:
    """Updates per second of each."""
    spawn = multiprocessing.get_context("spawn")
    barrier, rates = spawn.Barrier(learners), spawn.Queue()
    processes = [
        spawn.Process(target=learn, args=(work, barrier, rates), daemon=True)
        for _ in range(learners)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S + work.seconds)
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


def rows(counts: list[int], work: Work, with_mps: bool) -> Iterator[str]:
    alone: float | None = None
    for mps in (False, True) if with_mps else (False,):
        for count in counts:
            if mps and count == 1:
                continue  # it shares with nobody
            if mps:
                with service():
                    rates = measure(count, work)
            else:
                rates = measure(count, work)
            total = sum(rates)
            alone = alone or (total if count == 1 else None)
            ratio = f"{total / alone:.2f}" if alone else ""
            shared = "yes" if mps else "no"
            yield f"| {count} | {shared} | {total / count:,.0f} | {total:,.0f} | {ratio} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--learners", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--benchmark", default="MT10")
    parser.add_argument("--width", type=int, default=400)
    parser.add_argument("--method", default="unitary")
    parser.add_argument("--precision", default="tf32", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--mode", help="default: captured, on a CPU eager")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    parser.add_argument("--seconds", type=float, default=5.0, help="watched for each row")
    parser.add_argument("--markdown", type=Path, help="file with the marked place for the table")
    options = parser.parse_args()
    work = Work(
        options.benchmark,
        options.width,
        options.method,
        options.precision,
        options.mode or ("eager" if options.device == "cpu" else "captured"),
        options.device,
        options.seconds,
    )
    with_mps = options.device != "cpu" and shutil.which(CONTROL) is not None
    what = f"{work.benchmark}, width {work.width}, `{work.method}` {work.precision}, {work.mode}.\n"
    print(what, HEAD, sep="\n", flush=True)
    lines: list[str] = []
    for line in rows(options.learners, work, with_mps):
        print(line, flush=True)
        lines.append(line)
    if not with_mps:
        print(f"\nWithout MPS: there is no {CONTROL} here.")
    if options.markdown:
        replace_table(options.markdown, "bench_sharing", "\n".join([what, HEAD, *lines]))


if __name__ == "__main__":
    main()
