"""Auto-Lambda: task weights that a look-ahead on held-out samples finds useful."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtrl.smto import LearnedSMTO
from mtrl.supervised.gradients import task_losses
from mtrl.supervised.metrics import Loss
from mtrl.supervised.networks import MultiTaskNetwork

HELD_OUT = 0.1
"""Share of the training split that the look-ahead is judged on and that is not trained on: the
validation split remains for selection alone."""


class Prepared(NamedTuple):
    inputs: Any
    """[sample, ...], as the network takes them."""
    targets: Sequence[Tensor]
    """Per task [sample, ...]."""


class AutoLambda(LearnedSMTO):
    """Auto-Lambda (Liu et al. 2022, Section 3.2): weights that lower the loss on held-out samples.

    With theta' = theta - alpha grad sum_i lambda_i l_i (a virtual step of plain gradient descent),
    lambda descends the mean held-out loss at theta'. Its gradient is the finite difference
    -alpha (l_i(theta+) - l_i(theta-)) / (2 eps), theta+- = theta +- eps v, v the held-out gradient
    at theta', eps = 0.01 / |v|. All tasks are primary. lambda starts at 1/m (the authors: 0.1), has
    its own Adam and stays non-negative; the default lr is the authors' 1e-4, scaled like the start.
    The virtual step leaves the authors' momentum and l2 out. Costs two more backwards and two more
    forwards per iteration.
    """

    needs = "losses"

    def __init__(self, num_tasks: int, *, lr: float = 0.0) -> None:
        """lr: 0 = 1e-3 / m."""
        super().__init__(num_tasks, lr=lr or 1e-3 / num_tasks)
        self.parameter.fill_(1.0 / num_tasks)

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        self.observe(losses)
        return self.parameter.clone()

    def learn(self, slope: Tensor) -> None:
        """Move lambda against `slope` [task], which `look_ahead` found; before `weights`."""
        self.descend(slope)
        self.parameter.clamp_(min=0.0)


def look_ahead(
    lambdas: Tensor,
    network: MultiTaskNetwork,
    losses_of: Sequence[Loss],
    training: Prepared,
    held_out: Prepared,
    step_size: float,
) -> Tensor:
    """d (mean held-out loss after the virtual step) / d lambda [task], float64.

    The network is as it was, buffers too.
    """
    names, parameters = zip(*network.weights().items(), strict=True)
    start = [p.detach() for p in parameters]

    def losses(values: Sequence[Tensor], data: Prepared) -> Tensor:
        moved = dict(zip(names, values, strict=True))
        return task_losses(network, losses_of, data.inputs, data.targets, moved)

    here = [p.clone().requires_grad_() for p in start]
    found = losses(here, training)
    step = torch.autograd.grad(found @ lambdas.to(found), here)
    ahead = [(p - step_size * g).requires_grad_() for p, g in zip(start, step, strict=True)]
    slope = torch.autograd.grad(losses(ahead, held_out).mean(), ahead)
    norm = torch.stack([g.double().square().sum() for g in slope]).sum().sqrt()
    epsilon = 0.01 / norm.clamp(min=1e-12)
    move = epsilon.to(start[0].dtype)
    there, back = (
        [p + sign * move * g for p, g in zip(start, slope, strict=True)] for sign in (1.0, -1.0)
    )
    gpus = [p.device for p in start[:1] if p.is_cuda]
    with torch.no_grad():
        with torch.random.fork_rng(gpus):  # the same dropout twice: it is louder than the slope
            plus = losses(there, training)
        minus = losses(back, training)
    return -step_size * (plus - minus).double() / (2.0 * epsilon)
