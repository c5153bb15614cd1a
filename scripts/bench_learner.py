"""Updates per second of the learner, against a plain eager loop and the bare matrix products.

    python scripts/bench_learner.py                          # MT10 and MT50, widths 400 and 1024
    python scripts/bench_learner.py --benchmarks MT10 --widths 400 --minutes 1
    python scripts/bench_learner.py --methods unitary pcgrad mgda --modes captured eager
    python scripts/bench_learner.py --markdown docs/performance.md

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

import argparse
import itertools
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench_smto import ACTION, OBSERVATION, SAMPLES, make_batch
from marked_table import replace_table
from peak_memory import peak_memory
from torch import Tensor, nn
from torch.nn import functional as F

from mtrl.agent import Agent
from mtrl.benchmarks import benchmark_tasks
from mtrl.config import AgentConfig, Config, EnvConfig, LearnerConfig, NetworkConfig, SmtoConfig
from mtrl.device.compilation import Compilation, exit_now
from mtrl.device.cuda_graph import WARM_UPS, Captured, CapturedUpdate
from mtrl.device.setup import choose_device
from mtrl.networks.actor import sample_action
from mtrl.replay import Batch
from mtrl.smto import describe

DEPTH = 3
PRECISIONS = ("fp32", "tf32", "bf16")
MODES = ("eager", "compiled", "captured", "compiled+captured")
CHUNK_S = 0.03  # of updates that follow each other before the clock is read
MOST_TURNS = 100
MOST_S = 4.0  # of one row, unless a few turns take longer


def make_agent(
    benchmark: str, width: int, method: str, precision: Any, device: torch.device
) -> Agent:
    config = Config(
        env=EnvConfig(benchmark=benchmark),
        network=NetworkConfig(width=width, depth=DEPTH),
        agent=AgentConfig(smto=SmtoConfig(method)),
        learner=LearnerConfig(precision=precision),
    )
    return Agent(config, OBSERVATION, ACTION, device)


def dims(inputs: int, width: int, outputs: int) -> list[int]:
    return [inputs, *[width] * DEPTH, outputs]


class PlainLoop:
    """Soft Actor-Critic as it is usually written; all tasks in one batch."""

    def __init__(self, m: int, width: int, device: torch.device) -> None:
        def network(inputs: int, outputs: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for a, b in itertools.pairwise(dims(inputs, width, outputs)):
                layers += [nn.Linear(a, b), nn.ReLU()]
            return nn.Sequential(*layers[:-1]).to(device)

        inputs = OBSERVATION + m
        self.actor = network(inputs, 2 * ACTION)
        self.critics = [network(inputs + ACTION, 1) for _ in range(2)]
        self.targets = [network(inputs + ACTION, 1) for _ in range(2)]
        self.log_alpha = torch.zeros(m, 1, device=device, requires_grad=True)
        critic_parameters = [p for critic in self.critics for p in critic.parameters()]
        self.optimizers = [
            torch.optim.Adam(parameters, lr=3e-4)
            for parameters in (critic_parameters, self.actor.parameters(), [self.log_alpha])
        ]
        self.identity = torch.eye(m, device=device)

    def encode(self, observations: Tensor) -> Tensor:
        one_hot = self.identity[:, None].expand(-1, observations.shape[1], -1)
        return torch.cat([observations, one_hot], -1)

    def policy(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor(inputs).chunk(2, -1)
        return sample_action(mean, log_std.clamp(-20, 2), torch.randn_like(mean))

    def step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def update(self, batch: Batch) -> None:
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            inputs = self.encode(batch.next_observations)
            action, log_prob = self.policy(inputs)
            joint = torch.cat([inputs, action], -1)
            value = torch.minimum(*[target(joint).squeeze(-1) for target in self.targets])
            goal = batch.rewards + 0.99 * (1 - batch.terminated) * (value - alpha * log_prob)
        inputs = self.encode(batch.observations)
        joint = torch.cat([inputs, batch.actions], -1)
        losses = [F.mse_loss(critic(joint).squeeze(-1), goal) for critic in self.critics]
        self.step(self.optimizers[0], torch.stack(losses).sum())
        action, log_prob = self.policy(inputs)
        joint = torch.cat([inputs, action], -1)
        value = torch.minimum(*[critic(joint).squeeze(-1) for critic in self.critics])
        self.step(self.optimizers[1], (alpha * log_prob - value).mean())
        entropy = log_prob.detach() - ACTION
        self.step(self.optimizers[2], -(self.log_alpha.exp() * entropy).mean())
        with torch.no_grad():
            for critic, target in zip(self.critics, self.targets, strict=True):
                for new, old in zip(critic.parameters(), target.parameters(), strict=True):
                    old.lerp_(new, 0.005)


class Products:
    """The matrix products of one update and nothing else."""

    def __init__(self, m: int, width: int, device: torch.device) -> None:
        rows, inputs = m * SAMPLES, OBSERVATION + m
        self.calls: list[tuple[Tensor, Tensor]] = []

        def tensor(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device)

        def layers(copies: int, sizes: list[int], *, forward: int, into: int, weights: int) -> None:
            """`into`: backward passes into the activations; 2: into the network's input too."""
            for index, (a, b) in enumerate(itertools.pairwise(sizes)):
                x, w, g = tensor(copies, rows, a), tensor(copies, a, b), tensor(copies, rows, b)
                self.calls += [(x, w)] * forward
                if into and (index or into == 2):
                    self.calls.append((g, w.transpose(1, 2)))
                self.calls += [(x.transpose(1, 2), g)] * weights

        actor, critic = dims(inputs, width, 2 * ACTION), dims(inputs + ACTION, width, 1)
        layers(1, actor, forward=1, into=0, weights=0)  # the target's policy
        layers(2, critic, forward=1, into=0, weights=0)  # the target
        layers(2, critic, forward=1, into=1, weights=1)  # the critics' step
        layers(1, actor, forward=1, into=1, weights=1)  # the actor's step
        layers(2, critic, forward=1, into=2, weights=0)  # the critics in it

    def update(self, batch: Batch) -> None:
        for one, two in self.calls:
            torch.bmm(one, two)

    def captured(self) -> Callable[[Batch], object]:
        """On CUDA, as one graph: launched one by one, the host would be measured."""
        generators: list[torch.Generator] = []
        products = Captured(
            lambda: [torch.bmm(one, two) for one, two in self.calls],
            generators,
            self.calls[0][0].device,
            print,
            name="the products",
        )
        for _ in range(WARM_UPS + 1):
            products()
        return lambda _: products()


def use(precision: str) -> None:
    """Of fp32 products on CUDA; on a CPU it changes nothing."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


class Impossible(RuntimeError):
    """A way to make updates that does not work here; says why."""


def prepare(
    agent: Agent, batch: Batch, mode: str, patience: float | None = None
) -> Callable[[Batch], object]:
    """A function that makes one update the given way; patience: seconds for the compiler."""
    if "compiled" in mode:
        compilation = Compilation(partial(agent.compile, batch))
        compilation.join(patience)
        if compilation.is_alive():
            raise Impossible("not compiled within the time")
        if compilation.failure:
            raise Impossible(f"not compiled: {compilation.failure}")
    return captured(agent, batch) if "captured" in mode else agent.update


def captured(agent: Agent, batch: Batch) -> Callable[[Batch], object]:
    for part in agent.parts.values():
        part.optimizer.make_capturable()
    reasons: list[str] = []
    update = CapturedUpdate(
        lambda: torch.stack(agent.update(batch)),
        [part.smto for part in agent.parts.values()],
        agent.generators,
        agent.device,
        warn=reasons.append,
    )
    for _ in range(WARM_UPS + 2):  # the first step of a method may differ from the others
        update()
    if not update.is_captured:
        cause = reasons[0].split(": ", 1)[-1] if reasons else "its steps differ, or wait"
        raise Impossible(f"not captured: {cause}")
    return lambda _: update()


def machine(device: torch.device) -> str:
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    return f"torch {torch.__version__}, {where}"


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


def plan(
    benchmarks: Sequence[str],
    widths: Sequence[int],
    methods: Sequence[str],
    precisions: Sequence[str],
    modes: Sequence[str],
) -> list[Row]:
    """All rows, the most important first: those with the fewest steps down the lists, where all
    methods after the first are one step down; of equal ones, those of an earlier mode."""

    def importance(row: Row) -> tuple[int, int]:
        mode = modes.index(row.mode)
        steps = [
            benchmarks.index(row.benchmark),
            widths.index(row.width),
            min(methods.index(row.method), 1),
            precisions.index(row.precision),
            mode,
        ]
        return sum(steps), mode

    rows = itertools.product(benchmarks, widths, methods, precisions, modes)
    return sorted(itertools.starmap(Row, rows), key=importance)


Update = Callable[[Batch], object]


def seconds(update: Update, batch: Batch, times: int = 1) -> float:
    """Of one update, where several follow each other."""
    started = time.perf_counter()
    for _ in range(times):
        update(batch)
    if batch.rewards.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / times


def take_turns(works: Sequence[Callable[[int], float]], until: float, end: float) -> list[float]:
    """Median seconds of each; a work is given how often to do it, and says how long one took.

    until: when to stop after three turns. end: when to stop after one.
    """
    often = [max(1, min(1000, int(CHUNK_S / work(1)))) for work in works]
    turns: list[list[float]] = []
    while len(turns) < MOST_TURNS:
        now = time.perf_counter()
        if (len(turns) >= 3 and now >= until) or (turns and now >= end):
            break
        turns.append([work(times) for work, times in zip(works, often, strict=True)])
    return [statistics.median(column) for column in zip(*turns, strict=True)]


class Shape:
    """What the rows of one benchmark and width are measured against."""

    def __init__(self, benchmark: str, width: int, device: torch.device) -> None:
        self.key, self.device = (benchmark, width), device
        m = len(benchmark_tasks(benchmark))
        self.batch = make_batch(m, device)
        products = Products(m, width, device)
        self.precision = "tf32" if device.type == "cuda" else "fp32"
        use(self.precision)  # a graph keeps the precision with which it was captured
        self.products = products.captured() if device.type == "cuda" else products.update

    def timed(self, update: Update, precision: str) -> Callable[[int], float]:
        def work(times: int) -> float:
            use(precision)
            return seconds(update, self.batch, times)

        return work

    def against_products(
        self, update: Update, precision: str, until: float, end: float
    ) -> tuple[float, float]:
        """-> median seconds of the update and of the products."""
        works = self.timed(update, precision), self.timed(self.products, self.precision)
        mine, products = take_turns(works, until, end)
        return mine, products

    def plain_loop(self, until: float, end: float) -> tuple[float, float]:
        benchmark, width = self.key
        plain = PlainLoop(len(benchmark_tasks(benchmark)), width, self.device)
        return self.against_products(plain.update, self.precision, until, end)


class Table:
    """Lines as they are measured, and what later ones are compared with."""

    def __init__(self, first_method: str) -> None:
        self.first_method = first_method
        self.lines: dict[tuple[str, ...], str] = {}
        self._plain: dict[tuple[str, int], float] = {}
        self._first: dict[tuple[object, ...], float] = {}

    def has(self, shape: tuple[str, int]) -> bool:
        return shape in self._plain

    def plain_loop(self, shape: tuple[str, int], plain_s: float, products_s: float) -> None:
        self._plain[shape] = plain_s / products_s
        self._add(shape, "products", products_s, 1.0)
        self._add(shape, "plain loop", plain_s, plain_s / products_s)

    def row(self, row: Row, update_s: float, products_s: float, mib: float) -> None:
        """Over the products: of the same turns."""
        ratio, others = update_s / products_s, (*row.shape, row.precision, row.mode)
        if row.method == self.first_method:
            self._first[others] = ratio
        first = f"{ratio / self._first[others]:.2f}" if others in self._first else ""
        self._add(row.shape, row.name, update_s, ratio, first, f"{mib:,.0f}")

    def _add(
        self,
        shape: tuple[str, int],
        name: str,
        update_s: float,
        ratio: float,
        over_first: str = "",
        mib: str = "",
    ) -> None:
        cells = f"{1e3 * update_s:.2f} | {1 / update_s:,.1f} | {ratio:.2f}"
        plain = f"{ratio / self._plain[shape]:.2f}"
        self._print(shape, name, f"{cells} | {plain} | {over_first} | {mib}")

    def failed(self, row: Row, reason: str) -> None:
        self._print(row.shape, row.name, f"{reason.replace('|', '/')} | | | | |")

    def _print(self, shape: tuple[str, int], name: str, cells: str) -> None:
        line = f"| {shape[0]} | {shape[1]} | {name} | {cells} |"
        self.lines[shape[0], str(shape[1]), name] = line
        print(line, flush=True)


HEAD = [
    "| benchmark | width | what | ms | updates/s | over the products | over the plain loop | "
    "over the first method | MiB |",
    "|---" * 9 + "|",
]


def measure(
    row: Row, device: torch.device, threads: int | None, end: float, pipe: Connection
) -> None:
    """One row, in a process of its own: says that it is ready, or why not; waits for its turn."""
    configure(threads)
    made: list[Update] = []

    def make() -> None:
        use(row.precision)
        agent = make_agent(*row.shape, row.method, row.precision, device)
        made.append(prepare(agent, shape.batch, row.mode, max(end - time.perf_counter(), 0)))
        seconds(made[0], shape.batch)

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
) -> Table:
    """All rows for which there is time until `end`. So many at a time prepare themselves, which is
    most of the time where they compile; then one after the other is measured alone."""
    table = Table(rows[0].method)
    print("\n".join(HEAD), flush=True)
    left = list(rows)
    try:
        while left and time.perf_counter() < end:
            wave = [Candidate(row, device, threads, end) for row in left[:processes]]
            try:
                reasons = [candidate.answer() for candidate in wave]
                for candidate, reason in zip(wave, reasons, strict=True):
                    share = min((end - time.perf_counter()) / len(left), MOST_S)
                    if not table.has(candidate.row.shape):
                        shape = Shape(*candidate.row.shape, device)
                        times = shape.plain_loop(time.perf_counter() + share / 2, end)
                        table.plain_loop(shape.key, *times)
                    result = reason or candidate.go(time.perf_counter() + share)
                    if isinstance(result, str):
                        table.failed(candidate.row, result)
                    else:
                        table.row(candidate.row, *result)
                    left.remove(candidate.row)
            finally:
                for candidate in wave:
                    candidate.leave()
    except TimeoutError:
        pass
    if left:
        print(f"\n{len(left)} rows were not measured: the time was over.")
    return table


def configure(threads: int | None) -> None:
    torch.set_flush_denormal(True)
    if threads:
        torch.set_num_threads(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--benchmarks", nargs="+", default=["MT10", "MT50"])
    parser.add_argument("--widths", type=int, nargs="+", default=[400, 1024])
    parser.add_argument("--methods", nargs="+", default=["unitary", "pcgrad"])
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, help="default: fp32 bf16, CUDA: tf32 bf16"
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        help="default: eager compiled, CUDA: compiled+captured captured eager",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument(
        "--processes",
        type=int,
        help="rows that prepare themselves at the same time; default: 1, CUDA: all cores",
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="at most how long in all")
    parser.add_argument("--markdown", type=Path, help="file with the marked place for the table")
    options = parser.parse_args()
    end = time.perf_counter() + 60 * options.minutes
    configure(options.threads)
    for method in options.methods:
        describe(method)  # unknown names are refused before the work begins
    device = choose_device(options.device)
    on_gpu = device.type == "cuda"
    precisions = options.precisions or (["tf32", "bf16"] if on_gpu else ["fp32", "bf16"])
    modes = options.modes or (
        ["compiled+captured", "captured", "eager"] if on_gpu else ["eager", "compiled"]
    )
    lists = options.benchmarks, options.widths, options.methods, precisions, modes
    print(f"{machine(device)}.\n", flush=True)
    processes = options.processes or (os.cpu_count() or 1 if on_gpu else 1)
    table = measure_all(plan(*lists), device, end, processes, options.threads)
    if options.markdown:
        names = ["products", "plain loop"]
        names += [Row("", 0, *rest).name for rest in itertools.product(*lists[2:])]
        order = itertools.product(options.benchmarks, map(str, options.widths), names)
        lines = [*HEAD, *(table.lines[key] for key in order if key in table.lines)]
        text = f"{machine(device)}.\n\n" + "\n".join(lines)
        replace_table(options.markdown, "bench_learner", text)


if __name__ == "__main__":
    main()
