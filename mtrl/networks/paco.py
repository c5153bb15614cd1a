"""PaCo: every task's network is a mixture of shared sets of parameters."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mtrl.networks.layers import Mixture, TaskTable
from mtrl.networks.registry import Shape, register_network


class MixedLinear(nn.Module):
    """x W_t + b_t, where W_t and b_t are mixtures of shared sets."""

    def __init__(
        self, sets: int, fan_in: int, fan_out: int, *, copies: int = 1, bf16: bool = False
    ) -> None:
        super().__init__()
        self.bf16 = bf16
        self.weight = Mixture(sets, fan_in, fan_out, copies=copies)
        self.bias = Mixture(sets, 1, fan_out, copies=copies)
        nn.init.zeros_(self.bias.sets)

    def forward(self, x: Tensor, coefficients: Tensor, *, norm: bool = False) -> Tensor:
        """[copies, task, sample, in], [copies, task, 1, set] -> [copies, task, sample, out].
        norm: the product is standardised before the bias is added."""
        weight = self.weight(coefficients)
        y = (x.bfloat16() @ weight.bfloat16()).float() if self.bf16 else x @ weight
        if norm:
            y = F.layer_norm(y, y.shape[-1:])
        return y + self.bias(coefficients)


@register_network("paco")
class PaCo(nn.Module):
    """Sets of parameters for the whole network, mixed by each task's own coefficients
    (Sun et al. 2022).

    L. Sun, H. Zhang, W. Xu, M. Tomizuka, "PaCo: Parameter-Compositional Multi-Task Reinforcement
    Learning", equation 4: theta_t = Phi w_t, in every layer of actor and critics, with Phi shared
    and w_t the task's own. Five sets for MT10 and twenty for MT50 (sets=20), of three layers of
    400. The network sees no task code in the paper (`network.task_encoding=none`). With PopArt the
    last layer is each task's own instead.

    A task's parameters are mixed first, so that its rows meet one matrix instead of K. The paper
    also resets w_t, and leaves the task out meanwhile, when its loss passes a threshold. That is
    left out: it is a rule of the training rather than the network, with a threshold in units of
    the loss, and rewards are normalised here.
    """

    def __init__(self, shape: Shape, *, sets: int = 5) -> None:
        super().__init__()
        if sets < 1:
            raise ValueError(f"sets must be at least 1, not {sets}")
        self.copies, self.layer_norm = shape.copies, shape.layer_norm
        self.coefficients = TaskTable(shape.num_tasks, sets, copies=shape.copies)
        sizes = [shape.inputs, *[shape.width] * (shape.depth - 1)]
        self.hidden = nn.ModuleList(
            MixedLinear(sets, size, shape.width, copies=shape.copies, bf16=shape.bf16 and index > 0)
            for index, size in enumerate(sizes)
        )
        self.head = (
            shape.head(shape.width)
            if shape.task_head
            else MixedLinear(sets, shape.width, shape.outputs, copies=shape.copies)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[task, sample, inputs] -> [copies, task, sample, outputs]"""
        x = x.expand(self.copies, *x.shape)
        coefficients = self.coefficients()
        for layer in self.hidden:
            x = F.relu(layer(x, coefficients, norm=self.layer_norm))
        if isinstance(self.head, MixedLinear):
            return self.head(x, coefficients)
        outputs: Tensor = self.head(x)
        return outputs
