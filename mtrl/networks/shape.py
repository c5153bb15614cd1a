"""What a network is asked to be, and the layers that it is usually made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from mtrl.networks.layers import LayerNorm, Linear, TaskLinear, relu

BodyKind = Literal["mlp", "residual"]


class Dense(nn.Module):
    """ReLU(LayerNorm(x W + b)), of which the norm and the ReLU may be left out."""

    def __init__(self, linear: Linear, norm: LayerNorm | None, *, relu: bool = True) -> None:
        super().__init__()
        self.linear, self.norm, self.relu = linear, norm, relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if self.norm is not None:
            x = self.norm(x)
        return relu(x, self.norm or self.linear) if self.relu else x


@dataclass(frozen=True)
class Shape:
    """What a network is asked to be, and the usual parts of one that is."""

    tasks: tuple[str, ...]
    """Their names, in order."""
    inputs: int
    """Observation, task code (if any) and, for critics, action, in this order."""
    outputs: int
    actions: int = 0
    """How many of the inputs, the last ones, are an action: a critic's."""
    copies: int = 1
    """Independent networks on the same input: an ensemble of critics."""
    width: int = 400
    depth: int = 3
    """Hidden layers."""
    body: BodyKind = "mlp"
    """Means something to architectures that are registered with `any_body`."""
    layer_norm: bool = False
    bf16: bool = False
    """Matrix products between hidden layers in bf16."""
    task_head: bool = False
    """Whether the last layer must have weights of its own for every task (PopArt)."""

    @property
    def num_tasks(self) -> int:
        return len(self.tasks)

    def hidden(
        self,
        fan_in: int,
        width: int | None = None,
        *,
        copies: int | None = None,
        exact: bool = False,
        relu: bool = True,
    ) -> Dense:
        """A hidden layer: recorded linear layer, LayerNorm if it is asked for, ReLU.

        exact: in fp32 whatever the precision, as a first layer has to be.
        """
        width, copies = width or self.width, copies or self.copies
        norm = LayerNorm(width, copies=copies, gain=False) if self.layer_norm else None
        bf16 = self.bf16 and not exact
        linear = Linear(fan_in, width, copies=copies, bias=norm is None, bf16=bf16)
        return Dense(linear, norm, relu=relu)

    def trunk(
        self, fan_in: int, depth: int, width: int | None = None, *, copies: int | None = None
    ) -> nn.Sequential:
        """`depth` hidden layers, of which the first is exact."""
        width = width or self.width
        sizes = [fan_in, *[width] * (depth - 1)][:depth]
        return nn.Sequential(
            *(
                self.hidden(size, width, copies=copies, exact=index == 0)
                for index, size in enumerate(sizes)
            )
        )

    def head(self, fan_in: int) -> Linear | TaskLinear:
        """The last layer."""
        if self.task_head:
            return TaskLinear(self.num_tasks, fan_in, self.outputs, copies=self.copies)
        return Linear(fan_in, self.outputs, copies=self.copies)
