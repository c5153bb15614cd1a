"""One network for all tasks."""

from __future__ import annotations

from torch import nn

from mtrl.networks.bodies import create_body
from mtrl.networks.registry import Shape, register_network


@register_network("shared", any_body=True)
def shared_network(shape: Shape) -> nn.Module:
    """One network for all tasks, which see their code in the input."""
    return create_body(
        shape.body,
        shape.inputs,
        shape.outputs,
        width=shape.width,
        depth=shape.depth,
        layer_norm=shape.layer_norm,
        bf16=shape.bf16,
        copies=shape.copies,
        heads=shape.num_tasks if shape.task_head else None,
    )
