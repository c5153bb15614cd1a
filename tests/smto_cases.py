"""Jacobians and losses on which multi-task optimisers are tested."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from mtrl.smto import SMTO, available, create, describe

GOLDEN = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=torch.float64)
ALL = available()
NUM_TASKS = (1, 2, 3, 10, 50)
KINDS = (
    "random", "low rank", "conflicting", "agreeing", "collinear", "equal", "opposite",
    "uneven", "one zero", "all zero",
)  # fmt: skip


class Case(NamedTuple):
    kind: str
    scale: float
    jacobian: Tensor
    """[m, P] float64."""
    losses: Tensor
    """[m] positive, float64."""

    @property
    def num_tasks(self) -> int:
        return len(self.jacobian)


def options_of(name: str | type[SMTO]) -> dict[str, Any]:
    """A method's options with their defaults, those included that a run sets."""
    return describe(name).options


def published_head_weights(
    name: str, before: SMTO, after: SMTO, losses: Tensor, weights: Tensor | None
) -> Tensor:
    """What heads are weighed by: by the objective that the method's paper descends.

    The method before and after the step; weights: of the step, where it needs the losses alone.
    """
    m = len(losses)
    match name:
        case "imtl":  # the scaled losses
            return before.get_parameter("parameter").exp() / m
        case "db_mtl":  # their logarithms
            return 1.0 / (m * losses.double())
        case "gradnorm":
            return before.get_parameter("parameter") / m
        case "excess_mtl":
            return after.get_buffer("log_weights").exp()
    return torch.full((m,), 1.0 / m) if weights is None else weights


def make(name: str, num_tasks: int, **options: object) -> SMTO:
    """`create`, with the options that a method has to be given."""
    if name == "fixed":
        options.setdefault("weights", [1.0 + 0.5 * i for i in range(num_tasks)])
    return create(name, num_tasks, **options)


def direction(name: str, jacobian: Tensor, losses: Tensor | None = None, **options: object):
    losses = torch.ones(len(jacobian), dtype=torch.float64) if losses is None else losses
    return make(name, len(jacobian), **options).combine(jacobian, losses)


def step(smto: SMTO, jacobian: Tensor, losses: Tensor) -> Tensor:
    """The direction, and what must follow it: losses that have fallen, each by another share."""
    found = smto.combine(jacobian, losses)
    if smto.wants_losses_after:
        smto.after_step(losses - 0.1 * losses.abs().sqrt())
    return found


def random_jacobian(num_tasks: int, dim: int = 3, seed: int = 0) -> Tensor:
    """Few dimensions, so that many pairs of tasks conflict."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tasks, dim, dtype=torch.float64, generator=generator)


def _jacobian(kind: str, m: int, rng: np.random.Generator) -> np.ndarray:
    wide = rng.standard_normal((m, 2 * m + 3))
    one = rng.standard_normal((1, 7))
    match kind:
        case "low rank":
            return rng.standard_normal((m, 3))
        case "conflicting":  # all pairs, when there are few tasks
            return wide - 1.5 * wide.mean(0)
        case "agreeing":
            return np.abs(wide)
        case "collinear":
            return one * rng.standard_normal((m, 1))
        case "equal":
            return np.repeat(one, m, axis=0)
        case "opposite":
            return one * np.resize([1.0, -1.0], (m, 1))
        case "uneven":
            return wide * 10.0 ** rng.uniform(-3, 3, (m, 1))
        case "one zero":
            wide[rng.integers(m)] = 0.0
            return wide
        case "all zero":
            return 0.0 * wide
    return wide


def build(kind: str, m: int, scale: float, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    jacobian = torch.from_numpy(_jacobian(kind, m, rng) * scale)
    return Case(kind, scale, jacobian, torch.from_numpy(rng.uniform(0.1, 10.0, m)))


def cases(
    kinds: tuple[str, ...] = KINDS,
    num_tasks: tuple[int, ...] = NUM_TASKS,
    scales: tuple[float, ...] = (1.0, 1e-15, 1e15),
) -> st.SearchStrategy[Case]:
    seeds = st.integers(0, 2**31)
    return st.builds(
        build, st.sampled_from(kinds), st.sampled_from(num_tasks), st.sampled_from(scales), seeds
    )
