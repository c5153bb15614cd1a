"""Soft Modularization: modules that every task routes through in its own way."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtrl.networks.layers import Linear, TaskTable
from mtrl.networks.registry import register_network
from mtrl.networks.shape import Shape


@register_network("soft_modules")
class SoftModules(nn.Module):
    """Layers of modules, joined by weights that a routing network computes from state and task
    (Yang et al. 2020).

    R. Yang, H. Xu, Y. Wu, X. Wang, "Multi-Task Reinforcement Learning with Soft Modularization",
    section 4. With f(s) a first hidden layer, h_t a learned row of task t, u = f(s) * h_t:

        p^1 = W_d^1 relu(u),   p^(l+1) = W_d^(l+1) relu(W_u^l p^l * u)
        g_i^(l+1) = sum_j softmax_j(p_ij^l) relu(W_j^l g_j^l),   g_j^1 = f(s)
        y = sum_j V_j relu(W_j^L g_j^L) + b

    `network.depth` is L, the number of layers of modules; `network.width` is that of f and of the
    routing. The paper's shallow network has L = 2 with two modules of 256 units, the deep one L = 4
    with four of 128, both for MT10 and MT50, and f of 400 units.
    Its f sees no task code (`network.task_encoding=none`). The authors' code differs from the
    paper, and from ours: f has two layers, u is made of it before its last ReLU and passes two
    layers of 256, routes depend on those of all layers before, after the softmax, and the modules
    of the last layer are weighed too. Their balancing of the tasks' losses by temperature is no
    part of the network and is left out.
    """

    def __init__(self, shape: Shape, *, modules: int = 2, module_width: int = 256) -> None:
        super().__init__()
        if modules < 1 or module_width < 1:
            raise ValueError(
                f"modules and module_width must be at least 1, not {modules}, {module_width}"
            )
        if shape.depth < 2:
            raise ValueError(
                f"needs a depth of at least 2, not {shape.depth}: routes join layers of modules"
            )
        n, width, copies = modules, shape.width, shape.copies
        self.copies, self.count = copies, n
        self.first = shape.hidden(shape.inputs, exact=True)
        self.task = TaskTable(shape.num_tasks, width, copies=copies)
        sizes = [width, *[module_width] * (shape.depth - 1)]
        self.layers = nn.ModuleList(
            shape.hidden(size, module_width, copies=copies * n) for size in sizes
        )
        self.down = nn.ModuleList(Linear(width, n * n, copies=copies) for _ in sizes[1:])
        self.up = nn.ModuleList(Linear(n * n, width, copies=copies) for _ in sizes[2:])
        self.head = shape.head(n * module_width)

    def forward(self, x: Tensor) -> Tensor:
        """[task, sample, inputs] -> [copies, task, sample, outputs]"""
        n = self.count
        features = self.first(x.expand(self.copies, *x.shape))
        context = features * self.task()
        logits = self.down[0](F.relu(context))
        modules = self._layer(0, features[:, None].expand(-1, n, -1, -1, -1))
        for index in range(1, len(self.layers)):
            if index > 1:
                logits = self.down[index - 1](F.relu(self.up[index - 2](logits) * context))
            routes = torch.softmax(logits.unflatten(-1, (n, n)), dim=-1)
            # [copies, module, module before, task, sample, 1]
            routes = routes.movedim((-2, -1), (1, 2))[..., None]
            modules = self._layer(index, (routes * modules[:, None]).sum(2))
        outputs: Tensor = self.head(torch.cat(modules.unbind(1), dim=-1))
        return outputs

    def _layer(self, index: int, x: Tensor) -> Tensor:
        """[copies, module, task, sample, in] -> [copies, module, task, sample, out]"""
        y: Tensor = self.layers[index](x.flatten(0, 1))
        return y.unflatten(0, (self.copies, self.count))
