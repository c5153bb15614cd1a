"""From a per-task loss to one direction, computing only what the SMTO asks for.

Tasks own disjoint rows of the batch, so all task gradients come out of one batched backward, at
about the cost of the backward of their sum. Networks made of `MLP`s alone: an ordinary forward,
one backward to the layers' outputs, then dW_t = X_t^T D_t for all tasks t at once, straight into
one buffer [task, P] (X: a layer's inputs, D: the loss gradients at its outputs). Any other
network: vmap over parameters expanded along a task dimension. `layer_gradients`, the part before
the products, is a pure function that torch.compile takes; `combined_layers` does the rest.

Given J, the direction w @ J is one matrix-vector product, a few percent of the backward, where a
second, weighted backward costs a whole one. So J is kept; only with `chunk_size`, for networks
whose J does not fit, is it made piecewise for the Gramian and the direction computed anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from mtrl.networks import MLP, LayerRecord
from mtrl.replay import free_memory
from mtrl.smto.base import SMTO, gram_matrix

TaskLoss = Callable[..., tuple[Tensor, Tensor]]
"""(network, *inputs) -> (loss, auxiliary). With inputs [task, ...] both are [task]; without the
task dimension (under vmap) both are scalars."""

GRAMIAN_CHUNK = 1 << 18
"""Columns of J at a time where only its Gramian is wanted: as fast as all at once, less memory."""


class Combined(NamedTuple):
    losses: Tensor
    """[task] detached."""
    auxiliary: Tensor
    """[task] detached."""
    gradients: tuple[Tensor, ...]
    """The SMTO's direction, shaped like the network's parameters."""
    weights: Tensor | None
    """[task] the SMTO's weights, where it has weights."""
    gramian: Tensor | None = None
    """[task, task] float64, where the SMTO needed it."""


class Buffer:
    """Memory for task gradients, kept from one update to the next: fresh pages cost as much time
    as the products that fill them."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def take(self, tasks: int, columns: int, like: Tensor) -> Tensor:
        """[tasks, columns], uninitialised; MemoryError, before allocating, if it will not fit."""
        held = self._memory
        if held is None or held.numel() < tasks * columns or held.device != like.device:
            self._memory = held = None
            need, free = like.element_size() * tasks * columns, free_memory(like.device)
            if need > free:
                raise MemoryError(
                    f"the gradients of {tasks} tasks, {columns:,} parameters each, need "
                    f"{need / 2**30:.1f} GiB on {like.device}, where {free / 2**30:.1f} GiB are "
                    "free; agent.chunk_size bounds this for methods that need the Gramian"
                )
            self._memory = held = torch.empty(tasks * columns, dtype=like.dtype, device=like.device)
        return held[: tasks * columns].view(tasks, columns)


def combined_gradients(
    smto: SMTO,
    task_loss: TaskLoss,
    network: nn.Module,
    inputs: Sequence[Tensor],
    *,
    shared: Collection[str] | None = None,
    chunk_size: int | None = None,
    buffer: Buffer | None = None,
) -> Combined:
    """Per-task losses on `inputs` (each [task, ...]) and the SMTO's direction for `network`.

    shared: names of the parameters in the Gramian; None = all. The others (task-specific heads)
    get the gradient of the plain mean of the losses, whatever the method.
    chunk_size: at most about this many of J's columns exist at a time (a Jacobian method needs
    all P in any case). Raises MemoryError, before allocating, if the columns do not fit.
    """
    buffer = buffer or Buffer()
    names, own = _shared_and_own(network, shared)
    everything = dict(network.named_parameters())
    m = inputs[0].shape[0]

    if smto.needs == "losses":
        values = {name: p.detach() for name, p in everything.items()}
        with torch.no_grad():  # networks the loss also uses (the actor's critic): no graph
            losses, backward, auxiliary = vjp(  # type: ignore[misc]  # three values with has_aux
                lambda v: _call(task_loss, network, v, inputs), values, has_aux=True
            )
            weights = smto.weights(losses=losses)
            (gradients,) = backward(weights.to(losses.dtype))
            if own:
                (plain,) = backward(torch.full_like(losses, 1.0 / m))
                gradients |= {name: plain[name] for name in own}
        return Combined(losses, auxiliary, tuple(gradients[name] for name in everything), weights)

    split = _split(task_loss, network, names, own, inputs)
    pieces, *of_smto = _direction(smto, split, chunk_size, buffer)
    found = dict(zip(names, pieces, strict=True)) | dict(zip(own, split.own_gradients, strict=True))
    directions = tuple(found[name] for name in everything)
    return Combined(split.losses, split.auxiliary, directions, *of_smto)


def combined_layers(
    smto: SMTO, network: nn.Module, layers: Layers, *, chunk_size: int | None, buffer: Buffer
) -> Combined:
    """`combined_gradients` of MLPs, from their `layer_gradients`."""
    split = _LayerSplit(network, layers)
    return Combined(split.losses, split.auxiliary, *_direction(smto, split, chunk_size, buffer))


def _direction(
    smto: SMTO, split: _Split, chunk_size: int | None, buffer: Buffer
) -> tuple[tuple[Tensor, ...], Tensor | None, Tensor | None]:
    """-> the direction, shaped like the parameters in J, and weights and Gramian if there are."""
    weights: Tensor | None = None
    matrix: Tensor | None = None
    losses, dtype, m = split.losses, split.parameters[0].dtype, len(split.losses)
    if smto.needs == "losses":
        with torch.no_grad():
            weights = smto.weights(losses=losses)
            return split.weighted(weights.to(dtype)), weights, None
    if smto.needs == "gramian" and chunk_size is not None:
        matrix = _gramian(split, m, chunk_size, buffer)
        weights = smto.weights(losses=losses, gramian=matrix)
        pieces = split.weighted(weights.to(dtype))
    else:
        rows = _jacobian(split, m, buffer)
        if smto.needs == "gramian":
            matrix = gram_matrix(rows)
            weights = smto.weights(losses=losses, gramian=matrix)
            direction = weights.to(dtype) @ rows
        else:
            direction = smto.direction(rows, losses)
        parts = direction.split([p.numel() for p in split.parameters])
        pieces = tuple(d.view_as(p) for d, p in zip(parts, split.parameters, strict=True))
    return pieces, weights, matrix


def task_gramian(
    task_loss: TaskLoss,
    network: nn.Module,
    inputs: Sequence[Tensor],
    *,
    shared: Collection[str] | None = None,
    chunk_size: int | None = None,
    buffer: Buffer | None = None,
) -> Tensor:
    """G = J J^T [task, task] in float64, for methods that do without it; as combined_gradients."""
    names, _ = _shared_and_own(network, shared)
    split = _split(task_loss, network, names, [], inputs)
    return _gramian(split, inputs[0].shape[0], chunk_size or GRAMIAN_CHUNK, buffer or Buffer())


def jacobian(
    task_loss: TaskLoss, network: nn.Module, inputs: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """-> J [task, P], parameters flattened in the network's order; losses, auxiliary [task]."""
    names = [name for name, _ in network.named_parameters()]
    split = _split(task_loss, network, names, [], inputs)
    return _jacobian(split, inputs[0].shape[0], Buffer()), split.losses, split.auxiliary


def _shared_and_own(
    network: nn.Module, shared: Collection[str] | None
) -> tuple[list[str], list[str]]:
    names = [name for name, _ in network.named_parameters()]
    if shared is None:
        return names, []
    if unknown := set(shared) - set(names):
        raise ValueError(f"shared names no parameters of the network: {sorted(unknown)}")
    return [n for n in names if n in shared], [n for n in names if n not in shared]


def _call(
    task_loss: TaskLoss, network: nn.Module, values: dict[str, Tensor], inputs: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The task loss with these values for the network's parameters."""
    return task_loss(lambda *args: functional_call(network, values, args), *inputs)


class _Block(NamedTuple):
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


class _Split(Protocol):
    """A backward that has gone as far as all tasks' gradients can share."""

    losses: Tensor
    auxiliary: Tensor
    parameters: Sequence[nn.Parameter]
    columns: int
    own_gradients: Sequence[Tensor]

    def blocks(self, chunk_size: int | None) -> Iterator[_Block]: ...
    def weighted(self, weights: Tensor) -> tuple[Tensor, ...]: ...


def _split(
    task_loss: TaskLoss,
    network: nn.Module,
    names: Sequence[str],
    own: Sequence[str],
    inputs: Sequence[Tensor],
) -> _Split:
    mlps = [module for module in network.modules() if isinstance(module, MLP)]
    covered = {id(p) for mlp in mlps for p in mlp.parameters()}
    parameters = dict(network.named_parameters())
    if len(names) == len(parameters) and covered == {id(p) for p in parameters.values()}:
        return _LayerSplit(network, layer_gradients(task_loss, network, inputs))
    return _ExpandedSplit(task_loss, network, names, own, inputs)


def _jacobian(split: _Split, m: int, buffer: Buffer) -> Tensor:
    matrix = buffer.take(m, split.columns, split.losses)
    for block in split.blocks(None):
        block.fill(matrix[:, block.start : block.start + block.size])
    return matrix


def _gramian(split: _Split, m: int, chunk_size: int, buffer: Buffer) -> Tensor:
    """G [task, task] in float64, from blocks of J that are dropped at once."""
    total = torch.zeros(m, m, dtype=torch.float64, device=split.losses.device)
    for block in split.blocks(chunk_size):
        columns = buffer.take(m, block.size, split.losses)
        block.fill(columns)
        total += gram_matrix(columns)
    return total


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


class _LayerSplit:
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

    def blocks(self, chunk_size: int | None) -> Iterator[_Block]:
        for start, weight, x, gradient in self.weights:
            copies, fan_in, fan_out = weight.shape
            step = fan_in if chunk_size is None else min(fan_in, max(1, chunk_size // fan_out))
            for copy in range(copies):
                for first in range(0, fan_in, step):
                    rows = x[copy, ..., first : first + step].transpose(1, 2)
                    yield _Block(
                        start + (copy * fan_in + first) * fan_out,
                        rows.shape[1] * fan_out,
                        _product(rows, gradient[copy]),
                    )
        for start, bias, gradient in self.biases:
            sums = gradient.sum(2).transpose(0, 1).flatten(1)
            yield _Block(start, bias.numel(), _copy(sums))

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


class _ExpandedSplit:
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
            return _call(task_loss, network, state, task_inputs)

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

    def blocks(self, chunk_size: int | None) -> Iterator[_Block]:
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
                yield _Block(start, rows.shape[1], _copy(rows))
                start += rows.shape[1]

    def weighted(self, weights: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((weights * self.graph).sum(), self.parameters)
