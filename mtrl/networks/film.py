"""FiLM: every task scales and shifts the hidden units of a shared network."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mtrl.networks.layers import Linear, TaskTable
from mtrl.networks.registry import register_network
from mtrl.networks.shape import Shape


@register_network("film")
class FiLM(nn.Module):
    """A shared network whose hidden units each task scales and shifts, through shared generators
    (Perez et al. 2018).

    E. Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", equations 1 and 2.
    With e_t a learned row of task t and shared generators of each layer:

        h = relu((1 + G e_t + g) * N(x W + b) + (B e_t + c)),   N the LayerNorm, if there is one

    Their generators give the scale itself or, as in their training scripts, its distance from 1.
    The paper is not about control, so it names no sizes for MT10 and MT50: rows of 32 here. The
    FiLM encoder in CARE's code gives the scale itself, one number for a whole layer.
    """

    def __init__(self, shape: Shape, *, embedding: int = 32) -> None:
        super().__init__()
        if embedding < 1:
            raise ValueError(f"embedding must be at least 1, not {embedding}")
        self.copies = shape.copies
        self.embedding = TaskTable(shape.num_tasks, embedding, copies=shape.copies)
        sizes = [shape.inputs, *[shape.width] * (shape.depth - 1)]
        self.hidden = nn.ModuleList(
            shape.hidden(size, exact=index == 0, relu=False) for index, size in enumerate(sizes)
        )
        self.generators = nn.ModuleList(
            Linear(embedding, 2 * shape.width, copies=shape.copies) for _ in sizes
        )
        self.head = shape.head(shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """[task, sample, inputs] -> [copies, task, sample, outputs]"""
        x = x.expand(self.copies, *x.shape)
        embedding = self.embedding()
        for layer, generator in zip(self.hidden, self.generators, strict=True):
            scale, shift = generator(embedding).chunk(2, dim=-1)
            x = F.relu((1.0 + scale) * layer(x) + shift)
        outputs: Tensor = self.head(x)
        return outputs
