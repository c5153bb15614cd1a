"""One network and how it learns: loss per task -> SMTO -> optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtrl.device.compiled import compiled
from mtrl.gradients.buffer import Buffer
from mtrl.gradients.combine import Direction, combine, gramian_of, plain_direction
from mtrl.gradients.general import general_gradients
from mtrl.gradients.layers import (
    Layers,
    TaskLoss,
    layer_gradients,
)
from mtrl.gradients.optimizer import Optimizer
from mtrl.networks.layers import is_recorded, layers_of
from mtrl.smto import SMTO


class Step(NamedTuple):
    """What is known of a step that was made. Each [task], but for `auxiliary`."""

    losses: Tensor
    auxiliary: Tensor
    """What the loss gave beside it."""
    weights: Tensor
    """float32; NaN for a method without weights."""
    norm: Tensor
    """Of the whole direction, before it is clipped, so the same for every task."""


class Objective:
    """`step` is layers -> combine -> optimiser, or an ordinary backward where that is enough."""

    def __init__(
        self,
        network: nn.Module,
        inputs: Callable[..., tuple[Tensor, ...]],
        task_loss: TaskLoss,
        smto: SMTO,
        optimizer: Optimizer,
        *,
        buffer: Buffer,
        chunk_size: int | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        """inputs: what `step` is given -> inputs of the loss, each [task, ...]."""
        self.network, self.smto, self.optimizer = network, smto, optimizer
        self.buffer, self.chunk_size, self.max_grad_norm = buffer, chunk_size, max_grad_norm
        self.is_recorded = is_recorded(network)
        self.gradients: Callable[..., Layers] = (
            layer_gradients if self.is_recorded else general_gradients
        )
        m, device = smto.num_tasks, next(network.parameters()).device
        self.gramian = torch.full((m, m), torch.nan, device=device)
        """[task, task], of the last step that was asked for it."""
        self.prepare: Callable[..., tuple[Any, ...]] = lambda *given: given
        """What comes before the pure part: nothing, since the compiler takes the inputs in, or the
        inputs, of a method that needs them once more after the step."""
        if smto.wants_losses_after:
            self.prepare, inputs = inputs, self.prepare
        self.layers: Callable[..., Layers] = lambda *given: self.gradients(
            task_loss, network, *inputs(*given)
        )
        """The pure part, compiled or not."""
        self.shortcut: Callable[..., Direction] | None = None
        """A step's direction where the method needs the losses alone: by an ordinary backward, or
        all of `direction` compiled. None: there is none, and `direction` is taken."""
        self.losses: Callable[..., Tensor] = lambda *given: task_loss(network, *inputs(*given))[0]
        """[task] of the network as it is."""
        if not any(layer.of_one_task for layer in layers_of(network)):
            self.shortcut = lambda *given: plain_direction(
                smto, task_loss, network, *inputs(*given)
            )

    def step(self, *given: Any, gramian: bool = False) -> Step:
        """gramian: leave the Gramian in `self.gramian`, whatever the method; changes nothing
        else."""
        given = self.prepare(*given)
        if self.shortcut is None or self.smto.needs != "losses":
            found = self.direction(*given, gramian=gramian)
        else:
            found = self.shortcut(*given)
            if gramian:
                matrix = gramian_of(self.network, self.layers(*given), self.chunk_size)
                found = found._replace(gramian=matrix)
        if gramian and found.gramian is not None:
            self.gramian.copy_(found.gramian)
        norm = self.optimizer.step(found.gradients, self.max_grad_norm)
        if self.smto.wants_losses_after:
            with torch.no_grad():
                self.smto.after_step(self.losses(*given))
        none = torch.full_like(found.losses, torch.nan)
        weights = none if found.weights is None else found.weights.float()
        return Step(found.losses, found.auxiliary, weights, norm.expand_as(found.losses))

    def direction(self, *given: Any, gramian: bool = False, smto: SMTO | None = None) -> Direction:
        """given: what `prepare` gives. smto: instead of the objective's own."""
        return combine(
            smto or self.smto,
            self.network,
            self.layers(*given),
            buffer=self.buffer,
            chunk_size=self.chunk_size,
            gramian=gramian,
        )

    def compile(self, *example: Any) -> None:
        """Compile `layers` and what follows it where the method's weights are constant; `prepare`
        and `losses` where they do something.

        Changes no state. Raises what torch.compile raises; nothing is compiled then.
        """
        if not self.is_recorded:
            return
        prepare, losses = self.prepare, self.losses
        if self.smto.wants_losses_after:
            prepare, losses = compiled(prepare, fullgraph=True), compiled(losses, fullgraph=True)
            example = prepare(*example)
            with torch.no_grad():
                losses(*example)
        pure: Callable[..., Any] = self.direction if self.smto.compilable else self.layers
        # The setting takes the backward in; AttributeError before PyTorch 2.11.
        quick = compiled(pure, fullgraph=True, trace_autograd_ops=True)
        quick(*example)
        if self.smto.compilable:
            self.shortcut = quick
        else:
            self.layers, self.shortcut = quick, None
        self.prepare, self.losses = prepare, losses
