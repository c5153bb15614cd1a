"""Do the tasks' gradients conflict, or is it the noise of small batches? From a run's checkpoint.

    python scripts/gradient_noise.py runs/quickstart/unitary/seed_1
    python scripts/gradient_noise.py RUN --checkpoint RUN/checkpoints/step_*.pt \\
        --samples 16 256 4096 --draws 8 --figure conflict.png

Batches are drawn from the checkpoint's replay; the agent stays as it is. g_i: gradient of task i,
over the parameters that all tasks share, from one batch. For each number of samples per task:

- conflicts: share of pairs i < j with cos(g_i, g_j) < 0, as `gradients/<loss>/conflict_ratio`;
- spread: standard deviation of cos(g_i, g_j) over pairs and batches;
- same task: mean cosine of g_i with itself from another batch. 1: no noise; 0: nothing else;
- signal: |E g_i|^2 / E|g_i|^2, the part of a gradient's squared length that is not noise; the
  median of the tasks.

Below stands what is known of the expected gradients E g_i: their cosines, from products of
different batches (those of the most samples), in which the noise has no part.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.agent import Agent
from mtrl.commands.trained import stored_state, with_plugins
from mtrl.config import Config, Loss
from mtrl.device.setup import set_up_learner
from mtrl.gradients.buffer import Buffer
from mtrl.gradients.layers import TaskGradients
from mtrl.gradients.objective import Objective
from mtrl.networks.policy import stored_dimensions
from mtrl.replay import Batch, ReplayBuffer, create_replay
from mtrl.report.looks import COLOURS
from mtrl.run import checkpoint
from mtrl.run.directory import RunDirectory
from mtrl.schema import ConfigError

LOSSES: tuple[Loss, ...] = ("critic", "actor")
LOST = 0.05
"""Signal below which the sign of a cosine is mostly noise, with eight draws."""


class Products(NamedTuple):
    """What is known of the gradients of one loss at one batch size."""

    within: NDArray[np.float64]
    """[draw, task, task] g_i . g_j of one batch."""
    across: NDArray[np.float64]
    """[task, task] mean of g_i . g_j over pairs of different batches: E g_i . E g_j, unbiased."""
    same_task: NDArray[np.float64]
    """[task] mean cosine of a task's gradients from two batches."""

    @property
    def cosines(self) -> NDArray[np.float64]:
        """[draw, pair] between tasks."""
        norms = np.sqrt(np.einsum("dii->di", self.within))
        return _pairs(self.within / (norms[:, :, None] * norms[:, None, :]))

    @property
    def signal(self) -> NDArray[np.float64]:
        """[task] |E g|^2 / E|g|^2; an estimate, so below zero now and then where it is small."""
        return self.across.diagonal() / np.einsum("dii->di", self.within).mean(0)

    @property
    def expected_cosines(self) -> NDArray[np.float64]:
        """[pair] of E g_i and E g_j; NaN where a length is lost in the noise, so that the cosine's
        sign would be."""
        squares = self.across.diagonal()
        norms = np.sqrt(np.where(self.signal > LOST, squares, np.nan))
        return _pairs(self.across / np.outer(norms, norms))


def _pairs(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., task, task] -> [..., pair i < j]"""
    return matrix[..., *np.triu_indices(matrix.shape[-1], 1)]


def products(jacobians: Tensor) -> Products:
    """jacobians [draw, task, parameter]; two draws at least."""
    draws, m, _ = jacobians.shape
    flat = jacobians.flatten(0, 1)
    gram = (flat @ flat.T).double().view(draws, m, draws, m).transpose(1, 2).cpu().numpy()
    within = gram[np.arange(draws), np.arange(draws)]
    others = ~np.eye(draws, dtype=bool)
    squares = np.einsum("ddii->di", gram)
    norms = np.sqrt(squares[:, None] * squares[None])
    same = np.einsum("deii->dei", gram) / norms
    return Products(within, gram[others].mean(0), same[others].mean(0))


class Saved:
    """Agent and replay of a checkpoint, on the device that the run's configuration has here."""

    def __init__(self, config: Config, state: dict[str, Any], new: Sequence[str] = ()) -> None:
        """new: parts of the agent's state that stay as in a new agent."""
        checkpoint.check_resumable(state, config.num_envs)
        self.config = config
        device = set_up_learner(config.learner)
        dimensions = stored_dimensions(state["agent"])
        self.step: int = state["step"]
        self.agent = Agent(config, *dimensions, device)
        own = self.agent.state_dict()
        # Copied, as optimisers would write into the state that they are given.
        kept = copy.deepcopy(state["agent"])
        self.agent.load_state_dict(kept | {part: own[part] for part in new})
        self.replay: ReplayBuffer = create_replay(config, *dimensions, device)
        self.replay.load_state_dict(state["replay"])

    def sample(
        self, per_task: int, generator: torch.Generator | None = None
    ) -> tuple[Batch, Tensor | None]:
        """A batch, and the bound of its targets; by default the run's next one."""
        agent, alpha = self.agent, self.agent.temperature.alpha()
        bound = self.replay.return_bound(alpha) if agent.config.target_clip else None
        return self.replay.sample(per_task, generator or agent.generator, alpha), bound

    def jacobians(self, samples: int, generator: torch.Generator) -> dict[Loss, Tensor]:
        """{loss: [task, parameter]} from one batch of so many samples per task."""
        agent, alpha = self.agent, self.agent.temperature.alpha()
        batch, bound = self.sample(samples, generator)
        shape, device = batch.actions.shape, agent.device
        noises = [torch.randn(shape, generator=generator, device=device) for _ in range(2)]

        def rows(objective: Objective, *given: Any) -> Tensor:
            layers = objective.layers(*given)
            return TaskGradients(objective.network, layers, Buffer()).jacobian()

        return {
            "critic": rows(agent.critic, batch, noises[0], alpha, bound),
            "actor": rows(agent.actor, batch.observations, noises[1], alpha),
        }


def read(path: Path, file: Path | None) -> tuple[Config, dict[str, Any]]:
    """A run's configuration, and one of its checkpoints: the latest, or this file."""
    run, config = RunDirectory.open(path)
    state = stored_state(run, "latest" if file is None else str(file))
    return with_plugins(config, environments=False), state


def measure(saved: Saved, samples: int, draws: int) -> dict[Loss, Products]:
    generator = torch.Generator(saved.agent.device).manual_seed(0)
    drawn = [saved.jacobians(samples, generator) for _ in range(draws)]
    return {loss: products(torch.stack([each[loss] for each in drawn])) for loss in LOSSES}


def describe(saved: Saved, sizes: list[int], draws: int) -> dict[Loss, dict[float, float]]:
    """Print what is known; -> {loss: {samples per task: share of pairs in conflict}}, with that of
    the expected gradients at infinity."""
    print(f"step {saved.step:,}; {saved.replay.size:,} transitions of each task\n")
    print("| loss | samples per task | conflicts | spread | same task | signal |")
    print("|---|---|---|---|---|---|")
    conflicts: dict[Loss, dict[float, float]] = {loss: {} for loss in LOSSES}
    for samples in sizes:
        last = measure(saved, samples, draws)
        for loss, found in last.items():
            cosines = found.cosines
            conflicts[loss][samples] = share = float((cosines < 0).mean())
            print(
                f"| {loss} | {samples} | {share:.2f} | {cosines.std():.3f} "
                f"| {found.same_task.mean():.3f} | {np.median(found.signal):.3f} |"
            )
    print()
    for loss, found in last.items():
        expected = found.expected_cosines
        known = expected[~np.isnan(expected)]
        conflicts[loss][np.inf] = share = float((known < 0).mean()) if len(known) else np.nan
        if len(known):
            print(
                f"expected gradients of the {loss}: {share:.0%} of {len(known)} pairs conflict; "
                f"cosines: mean {known.mean():.3f}, smallest {known.min():.2f}, "
                f"largest {known.max():.2f}; signal {np.median(found.signal):.2f}"
            )
        else:
            print(f"expected gradients of the {loss}: lost in the noise; more --samples may help")
    print(flush=True)
    return conflicts


def draw(path: Path, found: dict[int, dict[Loss, dict[float, float]]]) -> None:
    """found: {step: what `describe` gives}."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for axis, loss in zip(axes, LOSSES, strict=True):
        for (step, conflicts), colour in zip(found.items(), cycle(COLOURS), strict=False):
            sizes = [size for size in conflicts[loss] if np.isfinite(size)]
            shares = [conflicts[loss][size] for size in sizes]
            style = {"color": colour, "markersize": 4, "label": f"step {step:,}"}
            axis.plot(sizes, shares, "o-", **style)
            axis.axhline(conflicts[loss][np.inf], color=colour, linestyle=":", linewidth=1)
        axis.set(title=loss, xlabel="samples per task", xscale="log", ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("pairs of tasks in conflict")
    axes[0].legend(fontsize=8, frameon=False, title="dotted: expected gradients", title_fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run's directory")
    parser.add_argument(
        "--checkpoint", type=Path, nargs="+", help="some of its files; else the latest"
    )
    parser.add_argument("--samples", type=int, nargs="+", default=[16, 128, 1024, 8192])
    parser.add_argument("--draws", type=int, default=8, help="batches of each size; 2 at least")
    parser.add_argument("--figure", type=Path, help="PNG file for the shares of pairs in conflict")
    chosen = parser.parse_args()
    if min(chosen.samples) < 1 or chosen.draws < 2:
        parser.error("--samples must be at least 1 each, --draws at least 2")
    found = {}
    for file in chosen.checkpoint or [None]:
        try:
            saved = Saved(*read(chosen.run, file))
        except (ConfigError, checkpoint.CheckpointError) as error:
            parser.error(f"{file or chosen.run}: {error}")
        found[saved.step] = describe(saved, sorted(chosen.samples), chosen.draws)
    if chosen.figure is not None:
        draw(chosen.figure, found)


if __name__ == "__main__":
    main()
