"""MOORE: a mixture of experts whose features are orthogonal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtrl.networks.layers import Linear, TaskLinear, TaskTable
from mtrl.networks.registry import register_network
from mtrl.networks.shape import Shape

EPSILON = 1e-6
"""Of a squared length: a feature that depends on those before it becomes short, not infinite."""


@register_network("moore")
class Moore(nn.Module):
    """Experts whose features are made orthonormal for each sample and mixed by each task's own
    weights; a head for every task (Hendawy et al. 2024).

    A. Hendawy, J. Peters, C. D'Eramo, "Multi-Task Reinforcement Learning with Mixture of Orthogonal
    Experts", section 4. U = [u_1 .. u_K] the experts' features, of `network.depth` layers each, the
    last one without ReLU:

        V = GramSchmidt(U),   y = tanh(V w_t) W_t + b_t

    Four experts for MT10 and six for MT50 (experts=6), of three layers of 400. Experts see no task
    code in the paper (`network.task_encoding=none`). Gram-Schmidt is the modified one here, which
    loses less to rounding; the authors' code has the classical one. There a task's head is found by
    a loop over the tasks, in a version for JAX by computing all heads.
    """

    def __init__(self, shape: Shape, *, experts: int = 4) -> None:
        super().__init__()
        if not 1 <= experts <= shape.width:
            raise ValueError(
                f"experts must be in 1..{shape.width}, the width in which they are orthogonal, "
                f"not {experts}"
            )
        copies = shape.copies * experts
        self.copies, self.count = shape.copies, experts
        self.trunk = shape.trunk(shape.inputs, shape.depth - 1, copies=copies)
        self.features = Linear(
            shape.width if shape.depth > 1 else shape.inputs,
            shape.width,
            copies=copies,
            bf16=shape.bf16 and shape.depth > 1,
        )
        self.weights = TaskTable(shape.num_tasks, experts, copies=shape.copies)
        self.head = TaskLinear(shape.num_tasks, shape.width, shape.outputs, copies=shape.copies)

    def forward(self, x: Tensor) -> Tensor:
        """[task, sample, inputs] -> [copies, task, sample, outputs]"""
        x = x.expand(self.copies * self.count, *x.shape)
        features = self.features(self.trunk(x)).unflatten(0, (self.copies, self.count))
        weights = self.weights()
        mixed = sum(
            weights[..., k, None] * feature
            for k, feature in enumerate(orthonormal(list(features.unbind(1))))
        )
        outputs: Tensor = self.head(torch.tanh(mixed))
        return outputs


def orthonormal(vectors: list[Tensor]) -> list[Tensor]:
    """Gram-Schmidt of vectors [..., dim], in their order."""
    found: list[Tensor] = []
    for vector in vectors:
        for unit in found:
            vector = vector - (vector * unit).sum(-1, keepdim=True) * unit
        found.append(vector * torch.rsqrt(vector.square().sum(-1, keepdim=True) + EPSILON))
    return found
