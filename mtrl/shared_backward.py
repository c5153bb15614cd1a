"""The backward of a per-task loss, as far as all tasks share it.

Networks made of `MLP`s alone (`LayerSplit`): an ordinary forward, one backward to the layers'
outputs; the tasks' gradients are then products, dW_t = X_t^T D_t (X: a layer's inputs, D: the loss
gradients at its outputs). `layer_gradients`, the part before the products, is a pure function that
torch.compile takes. Any other network (`ExpandedSplit`): vmap over parameters expanded along a task
dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from mtrl.networks import MLP, LayerRecord

TaskLoss = Callable[..., tuple[Tensor, Tensor]]
"""(network, *inputs) -> (loss, auxiliary). With inputs [task, ...] both are [task]; without the
task dimension (under vmap) both are scalars."""


def call(
    task_loss: TaskLoss, network: nn.Module, values: dict[str, Tensor], inputs: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The task loss with these values for the network's parameters."""
    return task_loss(lambda *args: functional_call(network, values, args), *inputs)


class Block(NamedTuple):
    """Some neighbouring columns of J."""

    start: int
    size: int
    fill: Callable[[Tensor], object]
    """Writes them into a given [task, size]."""


def _product(a: Tensor, b: Tensor) -> Callable[[Tensor], object]:
    """Fill with a @ b [task, rows, columns], flattened."""
    return lambda out: torch.bmm(a, b, out=out.unflatten(1, (a.shape[1], b.shape[2])))


def _copy(values: Tensor) -> Callable[[Tensor], object]:
    return lambda out: out.copy_(values)


class Split(Protocol):
    """A backward that has gone as far as all tasks' gradients can share."""

    losses: Tensor
    auxiliary: Tensor
    parameters: Sequence[nn.Parameter]
    columns: int
    own_gradients: Sequence[Tensor]

    def blocks(self, chunk_size: int | None) -> Iterator[Block]: ...
    def weighted(self, weights: Tensor) -> tuple[Tensor, ...]: ...


def split_backward(
    task_loss: TaskLoss,
    network: nn.Module,
    names: Sequence[str],
    own: Sequence[str],
    inputs: Sequence[Tensor],
) -> Split:
    mlps = [module for module in network.modules() if isinstance(module, MLP)]
    covered = {id(p) for mlp in mlps for p in mlp.parameters()}
    parameters = dict(network.named_parameters())
    if len(names) == len(parameters) and covered == {id(p) for p in parameters.values()}:
        return LayerSplit(network, layer_gradients(task_loss, network, inputs))
    return ExpandedSplit(task_loss, network, names, own, inputs)


class Layers(NamedTuple):
    """What task gradients of MLPs are made of: a backward that went as far as all tasks share."""

    losses: Tensor
    """[task]"""
    auxiliary: Tensor
    """[task]"""
    inputs: tuple[Tensor, ...]
    """Of each layer [copies, task * sample, in]."""
    at_product: tuple[Tensor, ...]
    """Gradients of the summed losses at each layer's product [copies, task * sample, out]."""
    at_output: tuple[Tensor, ...]
    """And with its bias, before the ReLU."""


def layer_gradients(task_loss: TaskLoss, network: nn.Module, inputs: Sequence[Tensor]) -> Layers:
    """Of a network made of `MLP`s alone. A pure function of tensors: it compiles."""
    mlps = [module for module in network.modules() if isinstance(module, MLP)]
    layers: list[LayerRecord] = []
    for mlp in mlps:
        mlp.tape = layers
    try:
        losses, auxiliary = task_loss(network, *inputs)
    finally:
        for mlp in mlps:
            mlp.tape = None
    weights = [weight for mlp in mlps for weight in mlp.weights]
    if len(layers) != len(weights) or any(
        layer.weight is not weight for layer, weight in zip(layers, weights, strict=True)
    ):
        raise ValueError(
            "the task loss must call each MLP of the network exactly once, in their order in it"
        )
    outputs = [output for layer in layers for output in (layer.product, layer.output)]
    gradients = torch.autograd.grad(losses.sum(), outputs)
    x = tuple(layer.inputs.detach() for layer in layers)
    return Layers(losses.detach(), auxiliary.detach(), x, gradients[::2], gradients[1::2])


class LayerSplit:
    """Networks of MLPs."""

    own_gradients: Sequence[Tensor] = ()

    def __init__(self, network: nn.Module, layers: Layers) -> None:
        self.losses, self.auxiliary = layers.losses, layers.auxiliary
        self.parameters: Sequence[nn.Parameter] = tuple(network.parameters())
        self.columns = sum(p.numel() for p in self.parameters)
        offsets, start = {}, 0
        for parameter in self.parameters:
            offsets[id(parameter)] = start
            start += parameter.numel()
        # By weight: inputs [copies, task, sample, in], gradients at the product [.., out];
        # by bias: gradients at the output [copies, task, sample, out].
        rows = (len(layers.losses), -1)
        self.weights: list[tuple[int, nn.Parameter, Tensor, Tensor]] = []
        self.biases: list[tuple[int, nn.Parameter, Tensor]] = []
        mlps = [module for module in network.modules() if isinstance(module, MLP)]
        pairs = [pair for mlp in mlps for pair in zip(mlp.weights, mlp.biases, strict=True)]
        for (weight, bias), *tensors in zip(pairs, *layers[2:], strict=True):
            x, at_product, at_output = (tensor.unflatten(1, rows) for tensor in tensors)
            self.weights.append((offsets[id(weight)], weight, x, at_product))
            self.biases.append((offsets[id(bias)], bias, at_output))

    def blocks(self, chunk_size: int | None) -> Iterator[Block]:
        for start, weight, x, gradient in self.weights:
            copies, fan_in, fan_out = weight.shape
            step = fan_in if chunk_size is None else min(fan_in, max(1, chunk_size // fan_out))
            for copy in range(copies):
                for first in range(0, fan_in, step):
                    rows = x[copy, ..., first : first + step].transpose(1, 2)
                    yield Block(
                        start + (copy * fan_in + first) * fan_out,
                        rows.shape[1] * fan_out,
                        _product(rows, gradient[copy]),
                    )
        for start, bias, gradient in self.biases:
            sums = gradient.sum(2).transpose(0, 1).flatten(1)
            yield Block(start, bias.numel(), _copy(sums))

    def weighted(self, weights: Tensor) -> tuple[Tensor, ...]:
        """sum_t w_t g_t, one joint product per layer."""
        w = weights[:, None, None]
        found = {}
        for _, weight, x, gradient in self.weights:
            scaled = (gradient * w).flatten(1, 2)
            found[id(weight)] = torch.bmm(x.flatten(1, 2).transpose(1, 2), scaled)
        for _, bias, gradient in self.biases:
            found[id(bias)] = (gradient * w).sum((1, 2)).view_as(bias)
        return tuple(found[id(p)] for p in self.parameters)


class ExpandedSplit:
    """Any network: vmap over its shared parameters, expanded (not copied) to [task, ...]."""

    def __init__(
        self,
        task_loss: TaskLoss,
        network: nn.Module,
        names: Sequence[str],
        own: Sequence[str],
        inputs: Sequence[Tensor],
    ) -> None:
        m = inputs[0].shape[0]
        everything = dict(network.named_parameters())
        self.parameters: Sequence[nn.Parameter] = [everything[name] for name in names]
        self.columns = sum(p.numel() for p in self.parameters)
        self.expanded = [p.expand(m, *p.shape) for p in self.parameters]
        rest = {name: p for name, p in everything.items() if name not in set(names)}

        def one_task(values: list[Tensor], *task_inputs: Tensor) -> tuple[Tensor, Tensor]:
            state = dict(zip(names, values, strict=True)) | rest
            return call(task_loss, network, state, task_inputs)

        split = vmap(one_task, in_dims=(0, *[0] * len(inputs)), randomness="different")
        self.graph, auxiliary = split(self.expanded, *inputs)
        self.losses, self.auxiliary = self.graph.detach(), auxiliary.detach()
        self.own_gradients: Sequence[Tensor] = (
            torch.autograd.grad(
                self.graph.mean(), [everything[name] for name in own], retain_graph=True
            )
            if own
            else ()
        )

    def blocks(self, chunk_size: int | None) -> Iterator[Block]:
        """With a chunk size: one backward per group of parameters."""
        groups: list[list[int]] = [[]]
        size = 0
        for index, parameter in enumerate(self.parameters):
            size += parameter.numel()
            if chunk_size is not None and groups[-1] and size > chunk_size:
                groups.append([])
                size = parameter.numel()
            groups[-1].append(index)
        start = 0
        keep = chunk_size is not None  # the weighted backward comes after
        for group in groups:
            wanted = [self.expanded[index] for index in group]
            pieces = torch.autograd.grad(self.graph.sum(), wanted, retain_graph=keep)
            for piece in pieces:
                rows = piece.reshape(len(piece), -1)
                yield Block(start, rows.shape[1], _copy(rows))
                start += rows.shape[1]

    def weighted(self, weights: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((weights * self.graph).sum(), self.parameters)
