"""Updates per second of the learner, against a plain eager loop and the bare matrix products.

    python bench/learner.py                          # MT10 and MT50, widths 400 and 1024
    python bench/learner.py --benchmarks MT10 --widths 400 --minutes 1
    python bench/learner.py --methods unitary pcgrad mgda --modes captured eager
    python bench/learner.py --csv docs/learner.csv   # then bench/draw.py

Full MT-SAC updates of 3 hidden layers on random data, 128 samples per task. `plain loop`: separate
modules for both critics, one backward of the mean loss, torch.optim.Adam. `products`: nothing but
the matrix products of an update, in the same shapes; both in fp32, on CUDA in TF32. `compiled` and
`captured` (the whole update as one CUDA graph): as a run does it.

The most important rows come first: every list is given in that order. Several prepare themselves
at the same time, since compiling takes longest; then each is measured alone, and printed at once.
It takes turns with the products, so that a busy machine slows both; medians of the turns. None
begins when the time is over. `over the first method`: of the same benchmark, width, precision and
mode. MiB: the most that the row's agent and updates needed.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch

from baselines import PlainLoop, Products
from device import machine, peak_memory, seconds, set_up
from harness import known, make_parser, run, take_turns
from mtrl.config.benchmarks import BENCHMARKS, benchmark_tasks
from mtrl.device.compilation import exit_now
from mtrl.report.markdown import Table
from mtrl.smto import describe
from updates import MODES, PRECISIONS, Update, make_agent, make_batch, prepare, use

CHUNK_S = 0.03  # of updates that follow each other before the clock is read
MOST_S = 4.0  # of one row, unless a few turns take longer
COLUMNS = (
    *("benchmark", "width", "what", "ms", "updates/s", "over the products"),
    *("over the plain loop", "over the first method", "MiB"),
)


class Row(NamedTuple):
    benchmark: str
    width: int
    method: str
    precision: str
    mode: str

    @property
    def name(self) -> str:
        return f"`{self.method}` {self.precision}, {self.mode}"

    @property
    def shape(self) -> tuple[str, int]:
        return self.benchmark, self.width


def plan(*lists: Sequence[Any]) -> list[Row]:
    """All rows of lists of each field, the most important first: those with the fewest steps down
    the lists, where all methods after the first are one step down; of equal ones, those of an
    earlier mode."""

    def importance(row: Row) -> tuple[int, int]:
        steps = [choices.index(value) for choices, value in zip(lists, row, strict=True)]
        steps[2] = min(steps[2], 1)  # the method's
        return sum(steps), steps[-1]

    return sorted(itertools.starmap(Row, itertools.product(*lists)), key=importance)


class Shape:
    """What the rows of one benchmark and width are measured against."""

    def __init__(self, benchmark: str, width: int, device: torch.device) -> None:
        self.m, self.width, self.device = len(benchmark_tasks(benchmark)), width, device
        self.batch = make_batch(self.m, device)
        products = Products(self.m, width, device)
        self.precision = "tf32" if device.type == "cuda" else "fp32"
        use(self.precision)  # a graph keeps the precision with which it was captured
        self.products = products.captured() if device.type == "cuda" else products.update

    def timed(self, update: Update, precision: str) -> Callable[[], float]:
        """Seconds of one, of as many as a chunk holds."""

        def work(times: int) -> float:
            use(precision)
            return seconds(self.device, partial(update, self.batch), times)

        return partial(work, max(1, min(1000, int(CHUNK_S / work(1)))))

    def against_products(
        self, update: Update, precision: str, until: float, end: float
    ) -> tuple[float, float]:
        """-> median seconds of the update and of the products."""
        works = self.timed(update, precision), self.timed(self.products, self.precision)
        mine, products = np.median(take_turns(works, until, end), 0)
        return float(mine), float(products)

    def plain_loop(self, until: float, end: float) -> tuple[float, float]:
        plain = PlainLoop(self.m, self.width, self.device)
        return self.against_products(plain.update, self.precision, until, end)


class Comparison:
    """The table, and what its later rows are compared with."""

    def __init__(self, first_method: str, intro: str = "") -> None:
        self.first_method, self.table = first_method, Table(*COLUMNS, intro=intro)
        self.plain: dict[tuple[str, int], float] = {}
        """Time of the plain loop over the products'."""
        self._first: dict[tuple[object, ...], float] = {}

    def plain_loop(self, shape: tuple[str, int], plain_s: float, products_s: float) -> None:
        self.plain[shape] = plain_s / products_s
        self._add(shape, "products", products_s, products_s)
        self._add(shape, "plain loop", plain_s, products_s)

    def row(self, row: Row, update_s: float, products_s: float, mib: float) -> None:
        """Over the products: of the same turns."""
        ratio, others = update_s / products_s, (*row.shape, row.precision, row.mode)
        if row.method == self.first_method:
            self._first[others] = ratio
        first = f"{ratio / self._first[others]:.2f}" if others in self._first else ""
        self._add(row.shape, row.name, update_s, products_s, first, f"{mib:,.0f}")

    def failed(self, row: Row, reason: str) -> None:
        self.table.add(row.benchmark, str(row.width), row.name, reason.replace("|", "/"))

    def _add(
        self, shape: tuple[str, int], name: str, update_s: float, products_s: float, *more: str
    ) -> None:
        times = f"{1e3 * update_s:.2f}", f"{1 / update_s:,.1f}"
        ratio = update_s / products_s
        ratios = f"{ratio:.2f}", f"{ratio / self.plain[shape]:.2f}"
        self.table.add(shape[0], str(shape[1]), name, *times, *ratios, *more)


def measure(
    row: Row, device: torch.device, threads: int | None, end: float, pipe: Connection
) -> None:
    """One row, in a process of its own: says that it is ready, or why not; waits for its turn."""
    set_up(str(device), threads)
    made: list[Update] = []

    def make() -> None:
        use(row.precision)
        agent = make_agent(row.method, shape.m, device, width=row.width, precision=row.precision)
        made.append(prepare(agent, shape.batch, row.mode, max(end - time.perf_counter(), 0)))
        seconds(device, partial(made[0], shape.batch))

    try:
        shape = Shape(*row.shape, device)
        memory = peak_memory(device, make)
        pipe.send("")
        until = pipe.recv()
        pipe.send((*shape.against_products(made[0], row.precision, until, end), memory))
    except RuntimeError as error:  # this row's: one that does not fit into memory ends no others
        pipe.send((str(error).strip() or type(error).__name__).splitlines()[0])
    if any(thread.name == "compilation" for thread in threading.enumerate()):
        exit_now(0)  # Python's own way out waits for the compiler


class Candidate:
    """A row whose process prepares itself at once."""

    def __init__(self, row: Row, device: torch.device, threads: int | None, end: float) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.row, self._end = row, end
        self._pipe, theirs = spawn.Pipe()
        arguments = (row, device, threads, end, theirs)
        self._process = spawn.Process(target=measure, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def answer(self) -> Any:
        if not self._pipe.poll(max(self._end - time.perf_counter(), 0)):
            raise TimeoutError
        try:
            return self._pipe.recv()
        except EOFError:
            return "its process ended; its error is above"

    def go(self, until: float) -> Any:
        self._pipe.send(until)
        return self.answer()

    def leave(self) -> None:
        self._process.terminate()
        self._process.join()


def measure_all(
    rows: Sequence[Row],
    device: torch.device,
    end: float,
    processes: int = 1,
    threads: int | None = None,
    intro: str = "",
) -> Table:
    """All rows for which there is time until `end`. So many at a time prepare themselves, which is
    most of the time where they compile; then one after the other is measured alone."""
    comparison = Comparison(rows[0].method, intro)
    left = list(rows)
    try:
        while left and time.perf_counter() < end:
            wave = [Candidate(row, device, threads, end) for row in left[:processes]]
            try:
                reasons = [candidate.answer() for candidate in wave]
                for candidate, reason in zip(wave, reasons, strict=True):
                    share = min((end - time.perf_counter()) / len(left), MOST_S)
                    if candidate.row.shape not in comparison.plain:
                        shape = Shape(*candidate.row.shape, device)
                        times = shape.plain_loop(time.perf_counter() + share / 2, end)
                        comparison.plain_loop(candidate.row.shape, *times)
                    result = reason or candidate.go(time.perf_counter() + share)
                    if isinstance(result, str):
                        comparison.failed(candidate.row, result)
                    else:
                        comparison.row(candidate.row, *result)
                    left.remove(candidate.row)
            finally:
                for candidate in wave:
                    candidate.leave()
    except TimeoutError:
        pass
    if left:
        print(f"\n{len(left)} rows were not measured: the time was over.")
    return comparison.table


def main() -> None:
    parser = make_parser(__file__, __doc__, device="auto", threads=None, minutes=10.0)
    parser.add_argument("--benchmarks", nargs="+", default=["MT10", "MT50"], choices=BENCHMARKS)
    parser.add_argument("--widths", type=int, nargs="+", default=[400, 1024])
    parser.add_argument("--methods", nargs="+", default=["unitary", "pcgrad"], type=known(describe))
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, help="default: fp32 bf16, CUDA: tf32 bf16"
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        help="default: eager compiled, CUDA: compiled+captured captured eager",
    )
    parser.add_argument(
        "--processes",
        type=int,
        help="rows that prepare themselves at the same time; default: 1, CUDA: all cores",
    )
    options = parser.parse_args()
    end = time.perf_counter() + 60 * options.minutes
    device = set_up(options.device, options.threads)
    on_gpu = device.type == "cuda"
    precisions = options.precisions or (["tf32", "bf16"] if on_gpu else ["fp32", "bf16"])
    modes = options.modes or (
        ["compiled+captured", "captured", "eager"] if on_gpu else ["eager", "compiled"]
    )
    lists = options.benchmarks, options.widths, options.methods, precisions, modes
    processes = options.processes or (os.cpu_count() or 1 if on_gpu else 1)
    intro = f"{machine(device)}."
    table = measure_all(plan(*lists), device, end, processes, options.threads, intro)
    names = ["products", "plain loop"]
    names += [Row("", 0, *rest).name for rest in itertools.product(*lists[2:])]
    widths = map(str, options.widths)
    order: list[tuple[str, ...]] = [*itertools.product(options.benchmarks, widths, names)]
    table.rows.sort(key=lambda cells: order.index(cells[:3]))
    table.publish(options.markdown, options.csv)


if __name__ == "__main__":
    run(main)
