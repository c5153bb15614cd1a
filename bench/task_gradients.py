"""Task gradients on parameters for less: what it costs, and how far the direction is from exact.

    python bench/task_gradients.py
    python bench/task_gradients.py --markdown docs/supervised.md   # replace the table there

40 binary attributes of generated images, which depend on a dozen hidden factors, and a narrow
ResNet with CelebA's dropout. Each case trains its own network. In every seventh iteration, at the
same parameters and with the same dropout, the exact direction of the same batch is made too.
The cost is measured in CPU seconds of one thread: other work on the machine does not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness import make_parser, run
from mtrl.report.markdown import Table
from mtrl.smto import SMTO, create
from mtrl.smto.registry import create_for_run
from mtrl.supervised.data import Batch
from mtrl.supervised.gradients import backward
from mtrl.supervised.networks import BasicBlock, MultiTaskNetwork, ResNet

TASKS, FACTORS, SIDE, WIDTH = 40, 12, 16, 8
BATCH = 128
MEASURED_EVERY = 7
METHODS = ("pcgrad", "mgda", "cagrad")
RATE = 0.001


class Case(NamedTuple):
    label: str
    options: Mapping[str, int] = MappingProxyType({})
    samples: int = 0

    @property
    def arithmetic(self) -> float:
        """Cost over unitary's: its forward counts 1, a backward 2."""
        gradients = 1 + 2 * TASKS
        if self.samples:
            return 1 + gradients * self.samples / BATCH / 3
        every = self.options.get("update_every", 1)
        return (gradients / 3 + every - 1) / every


CASES = (
    Case("exact"),
    *(Case(f"update_every={k}", {"update_every": k}) for k in (5, 10, 30)),
    *(Case(f"gradient_samples={n}", samples=n) for n in (64, 32, 16, 8)),
)


class Faces:
    """Batches of images and 40 attributes."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        coarse = torch.as_tensor(rng.normal(size=(FACTORS, 3, 4, 4)), dtype=torch.float32)
        self.patterns = functional.interpolate(coarse, SIDE, mode="bilinear")
        self.attributes = torch.as_tensor(rng.normal(size=(FACTORS, TASKS)), dtype=torch.float32)
        self.rng = rng

    def batch(self) -> Batch:
        factors = torch.as_tensor(self.rng.normal(size=(BATCH, FACTORS)), dtype=torch.float32)
        noise = torch.as_tensor(self.rng.normal(size=(BATCH, 3, SIDE, SIDE)), dtype=torch.float32)
        images = torch.einsum("nf,fchw->nchw", factors, self.patterns) / FACTORS**0.5 + noise
        values = (factors @ self.attributes > 0).long()
        return Batch(images, tuple(values.unbind(1)))


def make_network() -> MultiTaskNetwork:
    torch.manual_seed(0)
    trunk = ResNet(
        BasicBlock, [1, 1, 1, 1], small=True, width=WIDTH, stem_dropout=0.25, block_dropout=0.5
    )
    encoder = nn.Sequential(trunk, nn.AvgPool2d(SIDE // 8), nn.Flatten(), nn.Dropout(0.5))
    return MultiTaskNetwork(encoder, [nn.Linear(8 * WIDTH, 2) for _ in range(TASKS)])


def make_smto(method: str, seed: int, options: Mapping[str, int]) -> SMTO:
    return create_for_run(method, TASKS, options, seed=seed, total_steps=10_000)


def direction(network: MultiTaskNetwork, smto: SMTO, batch: Batch, samples: int = 0) -> Tensor:
    losses = [functional.cross_entropy] * TASKS
    backward(
        network, losses, smto, batch.inputs, batch.targets, space="parameters", samples=samples
    )
    return torch.cat([p.grad.flatten() for p in network.encoder.parameters() if p.grad is not None])


def aside(network: MultiTaskNetwork, smto: SMTO, batch: Batch) -> Tensor:
    """The direction, leaving the network and the random numbers as they are."""
    buffers = [buffer.clone() for buffer in network.buffers()]
    state = torch.get_rng_state()
    found = direction(network, smto, batch)
    torch.set_rng_state(state)
    for buffer, before in zip(network.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return found


class Outcome(NamedTuple):
    ratio: float
    cosines: list[float]


def measure(method: str, case: Case, iterations: int) -> Outcome:
    """Case: what the method's network is trained with; "unitary" for the mean gradient."""
    network, other, faces = make_network(), make_network(), Faces()
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    name = "unitary" if case.label == "unitary" else method
    smto, unitary = make_smto(name, 1, case.options), create("unitary", TASKS)
    spent, base, cosines = [], [], []
    for step in range(iterations):
        batch = faces.batch()
        exact = None
        if step % MEASURED_EVERY == MEASURED_EVERY - 1:
            exact = aside(network, make_smto(method, 1000 + step, {}), batch)
        started = time.process_time()
        found = direction(network, smto, batch, case.samples)
        spent.append(time.process_time() - started)
        if exact is not None:
            cosines.append(float(functional.cosine_similarity(found, exact, dim=0)))
        optimizer.step()
        started = time.process_time()
        direction(other, unitary, batch)
        base.append(time.process_time() - started)
    period = case.options.get("update_every", 1)
    whole = len(spent) // period * period
    means = np.array(spent[:whole]).reshape(-1, period).mean(1)
    return Outcome(float(np.median(means)) / statistics.median(base), cosines)


def main() -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--iterations", type=int, default=30, help="of each case, a multiple of 30")
    options = parser.parse_args()
    torch.set_num_threads(1)
    intro = (
        f"{TASKS} tasks, batches of {BATCH}, {options.iterations} iterations of each case, CPU "
        f"seconds of one thread. torch {torch.__version__}."
    )
    columns = "method", "task gradients", "cost / unitary, by arithmetic", "measured"
    table = Table(*columns, "cosine to exact: mean", "least", intro=intro)
    for method in METHODS:
        for case in (*CASES, Case("unitary")):
            found = measure(method, case, options.iterations)
            cost = "1" if case.label == "unitary" else f"{case.arithmetic:.1f}"
            label = "none: `unitary`'s mean" if case.label == "unitary" else f"`{case.label}`"
            cosines = f"{np.mean(found.cosines):.3f}", f"{min(found.cosines):.3f}"
            table.add(f"`{method}`", label, cost, f"{found.ratio:.1f}", *cosines)
    table.publish(options.markdown, options.csv)


if __name__ == "__main__":
    run(main)
