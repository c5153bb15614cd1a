"""A last layer for every task on a shared body."""

from __future__ import annotations

import dataclasses

from torch import nn

from mtrl.networks.registry import register_network
from mtrl.networks.shape import Shape
from mtrl.networks.shared import shared_network


@register_network("multi_head", any_body=True)
def multi_head_network(shape: Shape) -> nn.Module:
    """A shared body and a last layer of its own for every task (Yu et al. 2019, MT-MH-SAC).

    T. Yu et al., "Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement
    Learning", whose multi-head SAC is this:

        y = h(x) W_t + b_t

    Three hidden layers of 400 for MT10 and MT50, as the defaults are. Public code computes all
    tasks' heads for every sample and then picks one; here a task's rows meet its own head alone.
    """
    return shared_network(dataclasses.replace(shape, task_head=True))
