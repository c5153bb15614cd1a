"""Updates per second of the learner, against a plain eager loop and the bare matrix products.

    python scripts/bench_learner.py                          # MT10 and MT50, widths 400 and 1024
    python scripts/bench_learner.py --benchmarks MT10 --widths 400 --minutes 1
    python scripts/bench_learner.py --markdown docs/performance.md

Full MT-SAC updates of 3 hidden layers on random data, 128 samples per task. `plain loop`: separate
modules for both critics, one backward of the mean loss, torch.optim.Adam. `products`: nothing but
the matrix products of an update, in the same shapes. `captured`, on a GPU: the whole update as one
CUDA graph. All rows of a block take turns, so that a busy machine slows them alike; medians of at
least three turns.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_smto import ACTION, OBSERVATION, SAMPLES, make_batch
from marked_table import replace_table
from torch import Tensor, nn
from torch.nn import functional as F

from mtrl.agent import Agent
from mtrl.capture import WARM_UPS, CapturedUpdate
from mtrl.config import AgentConfig, Config, EnvConfig, LearnerConfig, NetworkConfig, SmtoConfig
from mtrl.envs.tasks import benchmark_tasks
from mtrl.learner import choose_device
from mtrl.networks.actor import sample_action
from mtrl.replay import Batch
from mtrl.run_directory import peak_memory_mib

DEPTH = 3


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


def use(precision: str) -> None:
    """Of fp32 products on CUDA; on a CPU it changes nothing."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def seconds(update: Callable[[Batch], object], batch: Batch) -> float:
    started = time.perf_counter()
    update(batch)
    if batch.rewards.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compiled(agent: Agent, batch: Batch, name: str) -> bool:
    """Whether that worked."""
    try:
        agent.compile(batch)
    except Exception as error:  # PyTorch raises many kinds, e.g. without a compiler
        print(f"{name} could not be compiled: {str(error).splitlines()[0]}")
        return False
    return True


def captured(agent: Agent, batch: Batch) -> Callable[[Batch], object]:
    for part in agent.parts.values():
        part.optimizer.make_capturable()
    update = CapturedUpdate(
        lambda: torch.stack(agent.update(batch)),
        [part.smto for part in agent.parts.values()],
        agent.generators,
        agent.device,
        warn=print,
    )
    for _ in range(WARM_UPS + 1):
        update()
    return lambda _: update()


def machine(device: torch.device) -> str:
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    return f"torch {torch.__version__}, {where}"


def block(benchmark: str, width: int, device: torch.device, budget: float) -> list[str]:
    """One benchmark and width: all rows, made and taking turns for about `budget` seconds."""
    begun = time.perf_counter()
    torch.compiler.reset()  # or one process may compile only so many agents
    m = len(benchmark_tasks(benchmark))
    batch = make_batch(m, device)
    rows: dict[str, Callable[[Batch], object]] = {
        "products": Products(m, width, device).update,
        "plain loop": PlainLoop(m, width, device).update,
    }
    modes = ["fp32", "bf16"] if device.type == "cpu" else ["fp32", "tf32", "bf16"]
    for method, precision in itertools.product(("unitary", "pcgrad"), modes):
        use(precision)
        name, arguments = f"`{method}` {precision}", (benchmark, width, method, precision, device)
        rows[f"{name}, eager"] = make_agent(*arguments).update
        agent = make_agent(*arguments)
        if compiled(agent, batch, name):
            rows[f"{name}, compiled"] = agent.update
        if device.type == "cuda":
            rows[f"{name}, captured"] = captured(make_agent(*arguments), batch)

    def timed(name: str) -> float:
        use("tf32" if "tf32" in name else "fp32")
        return seconds(rows[name], batch)

    once = sum(timed(name) for name in rows)
    left = budget - (time.perf_counter() - begun)
    turns = max(3, min(100, int(left / once)))
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(turns):
        for name in rows:
            times[name].append(timed(name))
    medians = {name: statistics.median(values) for name, values in times.items()}
    lines = [
        f"| {benchmark} | {width} | {name} | {1e3 * value:.1f} | {1 / value:,.1f} | "
        f"{value / medians['products']:.2f} | {value / medians['plain loop']:.2f} |"
        for name, value in medians.items()
    ]
    print("\n".join(lines), flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--benchmarks", nargs="+", default=["MT10", "MT50"])
    parser.add_argument("--widths", type=int, nargs="+", default=[400, 1024])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--minutes", type=float, default=8.0, help="about how long in all")
    parser.add_argument("--markdown", type=Path, help="file with the marked place for the table")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    lines = [
        "| benchmark | width | what | ms | updates/s | over the products | over the plain loop |",
        "|---" * 7 + "|",
    ]
    print("\n".join(lines), flush=True)
    shapes = list(itertools.product(options.benchmarks, options.widths))
    weight = {shape: math.sqrt(len(benchmark_tasks(shape[0])) * shape[1]) for shape in shapes}
    end = time.perf_counter() + 60 * options.minutes
    peaks = []
    for index, shape in enumerate(shapes):
        share = weight[shape] / sum(weight[later] for later in shapes[index:])
        lines += block(*shape, device, share * (end - time.perf_counter()))
        peaks.append(f"{shape[0]} width {shape[1]}: {peak_memory_mib(device):,.0f} MiB")
    text = f"{machine(device)}.\n\n" + "\n".join(lines)
    text += f"\n\nPeak memory, all rows up to there together: {', '.join(peaks)}."
    print(f"\n{text.splitlines()[-1]}")
    if options.markdown:
        replace_table(options.markdown, "bench_learner", text)


if __name__ == "__main__":
    main()
