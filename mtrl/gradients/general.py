"""The task gradients of any network, by vmap: for layers that are not recorded ones.

Much slower than `mtrl.gradients.layers`, and it holds every task's gradients twice. It assumes
nothing of the network but that its loss also takes one task's inputs, without the task dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from mtrl.gradients.layers import Layers, TaskLoss
from mtrl.networks.layers import Term


def general_gradients(task_loss: TaskLoss, network: nn.Module, *inputs: Tensor) -> Layers:
    """As `layer_gradients`; the parameters are expanded (not copied) to [task, ...]."""
    m, values = len(inputs[0]), dict(network.named_parameters())
    expanded = {name: p.expand(m, *p.shape) for name, p in values.items()}

    def one_task(own: dict[str, Tensor], *task_inputs: Tensor) -> tuple[Tensor, Tensor]:
        return task_loss(lambda *args: functional_call(network, own, args), *task_inputs)

    losses, auxiliary = vmap(one_task, randomness="different")(expanded, *inputs)
    rows = torch.autograd.grad(losses.sum(), list(expanded.values()), materialize_grads=True)
    terms = tuple(Term(None, row.reshape(1, m, 1, -1)) for row in rows)
    return Layers(losses.detach(), auxiliary.detach(), terms)
