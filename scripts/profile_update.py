"""Where the time of an update goes: the operations of the plain loop and of ours, as PyTorch's
profiler sees them.

    python scripts/profile_update.py                       # MT10, width 400
    python scripts/profile_update.py --markdown docs/performance.md
    python scripts/profile_update.py --trace traces        # also Chrome traces, one per row

The updates are those of `bench_learner.py`. `busy`: the share of the wall time that lies inside an
operation (on CUDA: inside a kernel); the rest is Python and waiting for launches. The profiler
itself costs a few microseconds per operation, so the times are a little above the benchmark's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_learner import Impossible, PlainLoop, machine, make_agent, prepare
from bench_smto import make_batch
from marked_table import replace_table
from torch.profiler import ProfilerActivity, profile

from mtrl.benchmarks import benchmark_tasks
from mtrl.device.setup import choose_device
from mtrl.replay import Batch

UPDATES = 10
SHOWN = 6  # operations per row
FUSED = "compiled loops"


def measure(name: str, update: Callable[[Batch], object], batch: Batch, trace: Path | None) -> str:
    """One row of the table."""
    device = batch.rewards.device.type
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    for _ in range(3):
        update(batch)
    with profile(activities=activities) as profiler:
        started = time.perf_counter()
        for _ in range(UPDATES):
            update(batch)
        if device == "cuda":
            torch.cuda.synchronize()
        wall = time.perf_counter() - started
    if trace is not None:
        profiler.export_chrome_trace(str(trace / f"{name.replace(', ', '_').strip('`')}.json"))
    spent: dict[str, float] = {}
    calls = 0
    for event in profiler.key_averages():
        own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        if own > 0 and not event.key.startswith("cuda"):  # cudaLaunchKernel etc. are the host's
            fused = event.key.startswith(("graph_", "triton_", "## Call Compiled"))
            name_of = FUSED if fused else f"`{event.key.removeprefix('aten::')}`"
            spent[name_of] = spent.get(name_of, 0.0) + own / 1e6
            calls += event.count
    total = sum(spent.values())
    top = sorted(spent, key=lambda key: -spent[key])[:SHOWN]
    shares = ", ".join(f"{key} {spent[key] / total:.0%}" for key in top)
    row = (
        f"| {name} | {1e3 * wall / UPDATES:.1f} | {calls / UPDATES:.0f} | {total / wall:.0%} "
        f"| {shares} |"
    )
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--benchmark", default="MT10")
    parser.add_argument("--width", type=int, default=400)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--trace", type=Path, help="folder for Chrome traces (chrome://tracing)")
    parser.add_argument("--markdown", type=Path, help="file with the marked place for the table")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.trace:
        options.trace.mkdir(parents=True, exist_ok=True)
    device = choose_device(options.device)
    if device.type == "cpu":
        from torch._inductor import config as inductor

        inductor.cpp.enable_kernel_profile = True  # names for compiled loops
    m = len(benchmark_tasks(options.benchmark))
    batch = make_batch(m, device)
    lines = [
        "| update | ms | operations | busy | most of the busy time |",
        "|---" * 5 + "|",
        measure("plain loop", PlainLoop(m, options.width, device).update, batch, options.trace),
    ]
    precision = "tf32" if device.type == "cuda" else "fp32"
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    modes = ["eager", "compiled"] + ["captured"] * (device.type == "cuda")
    for method in ("unitary", "pcgrad"):
        for kind in (precision, "bf16"):
            arguments = (options.benchmark, options.width, method, kind, device)
            name = f"`{method}` {kind}"
            for mode in modes:
                try:
                    update = prepare(make_agent(*arguments), batch, mode)
                except Impossible as reason:
                    print(f"{name}, {mode}: {reason}")
                else:
                    lines.append(measure(f"{name}, {mode}", update, batch, options.trace))
    if options.markdown:
        text = f"{options.benchmark}, width {options.width}; {machine(device)}.\n\n"
        replace_table(options.markdown, "profile_update", text + "\n".join(lines))


if __name__ == "__main__":
    main()
