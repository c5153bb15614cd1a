"""Where the time of an update goes: operations of the plain loop and of ours, by the profiler.

    python bench/profile_update.py                       # MT10, width 400
    python bench/profile_update.py --markdown docs/performance.md
    python bench/profile_update.py --trace traces        # also Chrome traces, one per row

The updates are those of `learner.py`. `busy`: the share of the wall time that lies inside an
operation (on CUDA: inside a kernel); the rest is Python and waiting for launches. The profiler
itself costs a few microseconds per operation, so the times are a little above the benchmark's.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from baselines import PlainLoop
from device import machine, seconds, set_up
from harness import make_parser, run
from mtrl.config.benchmarks import BENCHMARKS, benchmark_tasks
from mtrl.replay import Batch
from mtrl.report.markdown import Table
from updates import Impossible, Update, make_agent, make_batch, prepare, use

METHODS = "unitary", "pcgrad"
UPDATES = 10
SHOWN = 6  # operations per row
FUSED = "compiled loops"


def measure(update: Update, batch: Batch, trace: Path | None) -> list[str]:
    """Cells of a row; trace: a file for the profiler's own."""
    device = batch.rewards.device
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    once = partial(update, batch)
    seconds(device, once, 3)
    with profile(activities=activities) as profiler:
        wall = seconds(device, once, UPDATES) * UPDATES
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    spent: dict[str, float] = {}
    calls = 0
    for event in profiler.key_averages():
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        if own > 0 and not event.key.startswith("cuda"):  # cudaLaunchKernel etc. are the host's
            fused = event.key.startswith(("graph_", "triton_", "## Call Compiled"))
            name = FUSED if fused else f"`{event.key.removeprefix('aten::')}`"
            spent[name] = spent.get(name, 0.0) + own / 1e6
            calls += event.count
    total = sum(spent.values())
    top = sorted(spent, key=lambda key: -spent[key])[:SHOWN]
    shares = ", ".join(f"{key} {spent[key] / total:.0%}" for key in top)
    return [
        f"{1e3 * wall / UPDATES:.1f}", f"{calls / UPDATES:.0f}", f"{total / wall:.0%}", shares
    ]  # fmt: skip


def main() -> None:
    parser = make_parser(__file__, __doc__, device="auto", threads=None)
    parser.add_argument("--benchmark", default="MT10", choices=BENCHMARKS)
    parser.add_argument("--width", type=int, default=400)
    parser.add_argument("--trace", type=Path, help="folder for Chrome traces (chrome://tracing)")
    options = parser.parse_args()
    device = set_up(options.device, options.threads)
    if device.type == "cpu":
        from torch._inductor import config as inductor

        inductor.cpp.enable_kernel_profile = True  # names for compiled loops
    m = len(benchmark_tasks(options.benchmark))
    batch = make_batch(m, device)
    intro = f"{options.benchmark}, width {options.width}; {machine(device)}."
    columns = "update", "ms", "operations", "busy", "most of the busy time"
    table = Table(*columns, intro=intro)

    def add(name: str, update: Update) -> None:
        trace: Path | None = None
        if options.trace:
            options.trace.mkdir(parents=True, exist_ok=True)
            trace = options.trace / f"{name.replace(', ', '_').replace('`', '')}.json"
        table.add(name, *measure(update, batch, trace))

    precision = "tf32" if device.type == "cuda" else "fp32"
    use(precision)
    add("plain loop", PlainLoop(m, options.width, device).update)
    modes = ["eager", "compiled"] + ["captured"] * (device.type == "cuda")
    for method, kind, mode in itertools.product(METHODS, (precision, "bf16"), modes):
        name = f"`{method}` {kind}, {mode}"
        agent = make_agent(method, m, device, width=options.width, precision=kind)
        try:
            update = prepare(agent, batch, mode)
        except Impossible as reason:
            print(f"{name}: {reason}")
        else:
            add(name, update)
    table.publish(options.markdown, options.csv)


if __name__ == "__main__":
    run(main)
