"""From a batch that all tasks share to one direction: one forward, and as few backwards as the
method allows.

Every head gets a leaf of its own: its view of z, the last shared activation (with RotoGrad a
rotation of it). So ONE backward of the heads gives all rows dl_i/dz and all heads' gradients. What
follows:

    losses          z <- sum_i w_i dl_i/dz               one backward of the encoder
    representation  z <- the SMTO's direction of them    one backward of the encoder
    parameters      J from all rows                      m backwards, `chunk_size` at a time
    ... of samples  z <- sum_i w_i dl_i/dz, w from       m backwards of a part of the batch, and
                    the Gramian of a part of the batch   one of all of it

Unlike in `mtrl.gradients` the tasks share every sample: m encoder backwards are the work that
the task gradients on parameters take, however they are batched. There is one forward, so BatchNorm
sees the batch once and all tasks share its dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtrl.smto import SMTO, GradDrop
from mtrl.smto.source import Source, gram_matrix
from mtrl.supervised.metrics import Loss
from mtrl.supervised.networks import MultiTaskNetwork

Space = Literal["parameters", "representation"]


class Outcome(NamedTuple):
    losses: Tensor
    """[task] detached."""
    weights: Tensor | None
    """[task] the SMTO's weights, where it has weights."""
    gramian: Tensor | None
    """[task, task] on the shared parameters; where it was asked for."""


def backward(
    network: MultiTaskNetwork,
    losses_of: Sequence[Loss],
    smto: SMTO,
    inputs: Any,
    targets: Sequence[Tensor],
    *,
    space: Space,
    chunk_size: int = 1,
    samples: int = 0,
    diagnostic: bool = False,
) -> Outcome:
    """Leave the SMTO's direction in the gradients of the network's parameters.

    inputs [sample, ...] prepared, targets per task. Shared parameters get the direction; heads
    their own task's gradient, times its weight if the method weighs losses (RLW and the like), else
    times 1/m (`SMTO.head_weights`). samples: a Gramian method decides by the task gradients on so
    many of the samples, the first; 0 = of all. diagnostic: make the Gramian on the shared
    parameters too.
    """
    m = len(network.heads)
    z = network.encoder(inputs)
    leaves = [view.detach().requires_grad_() for view in network.views(z.detach())]
    pairs = zip(losses_of, network.heads, leaves, targets, strict=True)
    losses = torch.stack([loss(head(leaf), target) for loss, head, leaf, target in pairs])
    owned = [list(head.parameters()) for head in network.heads]
    found = iter(torch.autograd.grad(losses.sum(), [*leaves, *(p for own in owned for p in own)]))
    rows = network.at_z(torch.stack([next(found) for _ in range(m)]))  # [task, *z]
    losses = losses.detach()

    shared = list(network.encoder.parameters())
    needs = smto.needs
    given = (losses, z, shared, rows, chunk_size)
    source = _Parameters(*given)
    # From a source of its own: one that holds a Jacobian adds up directions in another order.
    matrix = _Parameters(*given).gramian() if diagnostic else None
    weights: Tensor | None = None
    if needs != "losses" and space == "representation" and isinstance(smto, GradDrop):
        direction = source.from_z(sign_dropped(smto, z.detach(), rows))
    else:
        seen: Source[Sequence[Tensor]] = source
        if space == "representation":
            seen = _Representation(source)
        elif samples:
            part = inputs[:samples], [target[:samples] for target in targets]
            seen = _Sampled(lambda: _of_part(network, losses_of, *part, chunk_size), *given)
        chosen = smto.choose(seen)
        direction, weights = chosen.direction, chosen.weights
        if seen is source and chosen.gramian is not None:
            matrix = chosen.gramian
    for parameter, gradient in zip(shared, direction, strict=True):
        parameter.grad = gradient

    of_heads = smto.head_weights(weights)
    if of_heads is None:
        of_heads = torch.full_like(losses, 1.0 / m)
    for own, factor in zip(owned, of_heads.to(rows.dtype), strict=True):
        for parameter in own:
            parameter.grad = next(found).mul_(factor)
    return Outcome(losses, weights, matrix)


class _Parameters:
    """Task gradients on the encoder's parameters: a `Source`."""

    def __init__(
        self,
        losses: Tensor,
        z: Tensor,
        shared: Sequence[nn.Parameter],
        rows: Tensor,
        chunk_size: int,
    ) -> None:
        """rows: dl_i/dz [task, *z]."""
        self.losses, self.z, self.shared, self.rows = losses, z, shared, rows
        self._chunk_size = chunk_size
        self._jacobian: Tensor | None = None

    def jacobian(self) -> Tensor:
        if self._jacobian is None:
            self._jacobian = task_jacobian(self.z, self.shared, self.rows, self._chunk_size)
        return self._jacobian

    def gramian(self) -> Tensor:
        return gram_matrix(self.jacobian())

    def weighted(self, weights: Tensor) -> Sequence[Tensor]:
        weights = weights.to(self.rows.dtype)
        if self._jacobian is not None:
            return self.shaped(weights @ self._jacobian)
        return self.from_z((weights @ self.rows.flatten(1)).view_as(self.z))

    def shaped(self, direction: Tensor) -> Sequence[Tensor]:
        pieces = direction.split([p.numel() for p in self.shared])
        return [piece.view_as(p) for p, piece in zip(self.shared, pieces, strict=True)]

    def from_z(self, gradient: Tensor) -> Sequence[Tensor]:
        """One backward of the encoder, from a gradient at z."""
        return torch.autograd.grad(self.z, self.shared, gradient)


class _Representation:
    """Task gradients at z: a `Source` of gradients on the encoder's parameters."""

    def __init__(self, parameters: _Parameters) -> None:
        self._parameters, self.losses = parameters, parameters.losses
        self._rows = parameters.rows.flatten(1)

    def jacobian(self) -> Tensor:
        return self._rows

    def gramian(self) -> Tensor:
        return gram_matrix(self._rows)

    def weighted(self, weights: Tensor) -> Sequence[Tensor]:
        return self.shaped(weights.to(self._rows.dtype) @ self._rows)

    def shaped(self, direction: Tensor) -> Sequence[Tensor]:
        return self._parameters.from_z(direction.view_as(self._parameters.z))


class _Sampled(_Parameters):
    """Directions from all samples, the Gramian from some of them."""

    def __init__(self, part: Callable[[], _Parameters], *given: Any) -> None:
        super().__init__(*given)
        self._part = part

    def gramian(self) -> Tensor:
        return self._part().gramian()


def _of_part(
    network: MultiTaskNetwork,
    losses_of: Sequence[Loss],
    inputs: Tensor,
    targets: Sequence[Tensor],
    chunk_size: int,
) -> _Parameters:
    """Task gradients on these samples alone, by a forward of their own, which leaves BatchNorm's
    running statistics as they are."""
    z = _called(network.encoder, inputs)
    leaves = [z.detach().requires_grad_() for _ in network.heads]
    pairs = zip(losses_of, network.heads, leaves, targets, strict=True)
    losses = torch.stack([loss(_called(head, leaf), target) for loss, head, leaf, target in pairs])
    rows = torch.stack(torch.autograd.grad(losses.sum(), leaves))
    return _Parameters(losses.detach(), z, list(network.encoder.parameters()), rows, chunk_size)


def task_losses(
    network: MultiTaskNetwork,
    losses_of: Sequence[Loss],
    inputs: Any,
    targets: Sequence[Tensor],
    parameters: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """[task]. parameters: instead of the network's own. The network is as it was, buffers too."""
    outputs = _called(network, inputs, parameters)
    triples = zip(losses_of, outputs, targets, strict=True)
    return torch.stack([loss(output, target) for loss, output, target in triples])


def _called(module: nn.Module, inputs: Any, parameters: Mapping[str, Tensor] | None = None) -> Any:
    # BatchNorm writes into its buffers: into copies of them.
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return functional_call(module, buffers | dict(parameters or {}), (inputs,))


def task_jacobian(
    z: Tensor, shared: Sequence[nn.Parameter], rows: Tensor, chunk_size: int
) -> Tensor:
    """J [task, P] on the encoder's parameters, from dl_i/dz [task, *z]; keeps z's graph."""
    jacobian = rows.new_empty(len(rows), sum(p.numel() for p in shared))
    for start in range(0, len(rows), chunk_size):
        some = rows[start : start + chunk_size]
        batched = len(some) > 1
        gradients = torch.autograd.grad(
            z, shared, some if batched else some[0], is_grads_batched=batched, retain_graph=True
        )
        torch.cat(
            [g.reshape(len(some), -1) for g in gradients],
            dim=1,
            out=jacobian[start : start + chunk_size],
        )
    return jacobian


def sign_dropped(smto: GradDrop, z: Tensor, rows: Tensor) -> Tensor:
    """GradDrop on activations (Chen et al. 2020, Algorithm 1): -> the gradient at z, shape of z.

    Purity and mask come from sum over samples of sign(z) dl_i/dz, one u per coordinate of z; each
    task's mask then holds for all samples. Like the class: divided by m.
    """
    summed = (z.sign() * rows).sum(1)  # [task, coordinate ...]
    kept = smto.kept(summed.flatten(1)).view_as(summed)
    return (kept[:, None] * rows).sum(0) / len(rows)
