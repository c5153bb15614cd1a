"""Architectures by name: how the tasks share a network. Each is a class or a function under
`@register_network`, which makes a module from a `Shape`; its keyword arguments are its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mtrl.files.user_code import options_in, redefines
from mtrl.networks.bodies import MLP, Residual
from mtrl.networks.layers import TaskLinear, is_recorded
from mtrl.networks.shape import Shape
from mtrl.smto.first_step import Unusable, wrong_with

DEFAULT = "shared"

Made = TypeVar("Made", bound=Callable[..., nn.Module])


class Body(nn.Module):
    """A network for any leading dimensions: [task, ..., inputs] -> [copies, task, ..., outputs]."""

    def __init__(self, network: nn.Module) -> None:
        """network: [task, sample, inputs] -> [copies, task, sample, outputs]"""
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(len(x), -1, x.shape[-1])
        outputs: Tensor = self.network(rows)
        return outputs.reshape(len(outputs), *x.shape[:-1], outputs.shape[-1])

    @torch.no_grad()
    def check(self, x: Tensor, copies: int, outputs: int) -> None:
        """Unusable unless inputs [task, sample, inputs] give what is expected."""
        buffers = [buffer.clone() for buffer in self.buffers()]
        expected = (copies, *x.shape[:2], outputs)
        if wrong := wrong_with(self.network(x), expected, x, dtype=True):
            raise Unusable(
                f"{type(self.network).__name__}.forward gave {wrong}, must give finite "
                f"{str(x.dtype).removeprefix('torch.')} outputs [copies, task, sample, dim] = "
                f"{list(expected)}"
            )
        for buffer, before in zip(self.buffers(), buffers, strict=True):
            buffer.copy_(before)

    @torch.no_grad()
    def check_gradients(self, shape: Shape) -> None:
        """Unusable where there are no task gradients, or wrong ones: where a task's outputs depend
        on another task's inputs, or those of PyTorch's own modules on more than the row."""
        for module in self.network.modules():
            if isinstance(module, _BatchNorm):
                kind = type(module).__name__
                raise Unusable(f"{kind} takes its statistics from the rows of all tasks together")
        names: dict[nn.Parameter, str] = {}
        for name, parameter in self.network.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad:
                raise Unusable(f"{name} requires no gradient; what is not trained is a buffer")
            if names.setdefault(parameter, name) != name and is_recorded(self.network):
                raise Unusable(
                    f"{names[parameter]} and {name} are one parameter; recorded layers have each "
                    "their own"
                )
        m = shape.num_tasks
        generator = torch.Generator().manual_seed(0)
        x, other = torch.randn(2, m, m + 1, shape.inputs, generator=generator)  # m + 1 samples
        modes = {module: module.training for module in self.modules()}
        self.eval()  # no dropout; statistics stay
        try:
            outputs = self(x)
            other[1:] = x[1:]  # another first task
            if not _equal(self(other)[:, 1:], outputs[:, 1:]):
                raise Unusable("a task's outputs depend on the inputs of other tasks")
            if not is_recorded(self.network):
                alone, why = outputs[:0], ""
                try:
                    alone = self(x[-1])
                except Exception as error:  # whatever a user's network raises: it is named below
                    why = f" ({type(error).__name__}: {error})".splitlines()[0]
                if not _equal(alone, outputs[:, -1]):
                    raise Unusable(
                        "gives other outputs for the rows of one task alone, without the task "
                        "dimension; PyTorch's own modules must act on every row alike: a part for "
                        f"every task is a TaskLinear, in a network of recorded layers alone{why}"
                    )
        finally:
            for module, mode in modes.items():
                module.training = mode

    @property
    def head(self) -> nn.Module | None:
        """The last layer, if the network calls it so."""
        return getattr(self.network, "head", None)

    def warnings(self) -> list[str]:
        """What a user of the network should know at the start."""
        found: list[str] = getattr(self.network, "warnings", list)()
        return found


class Network(NamedTuple):
    """What a listing shows of one architecture."""

    name: str
    make: Callable[..., nn.Module]
    """(shape, **options) -> module"""
    options: dict[str, Any]
    """Name -> default."""
    files: tuple[str, ...]
    """Options that name a file; stored as absolute paths."""
    any_body: bool
    """Whether `network.body` means something to it."""

    @property
    def text(self) -> str:
        """The first paragraph of its docstring."""
        return " ".join((inspect.getdoc(self.make) or "").split("\n\n")[0].split())


def _equal(found: Tensor, expected: Tensor) -> bool:
    """But for rounding."""
    if found.shape != expected.shape:
        return False
    scale = float(expected.nan_to_num(0, 0, 0).abs().max()) if expected.numel() else 0.0
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)


_NETWORKS: dict[str, Network] = {}


def register_network(
    name: str, *, files: tuple[str, ...] = (), any_body: bool = False
) -> Callable[[Made], Made]:
    """Decorator of a class or function (shape, *, **options) -> module, which takes
    [task, sample, inputs] to [copies, task, sample, outputs]."""

    def add(make: Made) -> Made:
        if name in _NETWORKS and not redefines(make, _NETWORKS[name].make):
            raise ValueError(f"the network name {name!r} is taken")
        options = options_in(make, f"network {name}")
        _NETWORKS[name] = Network(name, make, options, files, any_body)
        return make

    return add


def available_networks() -> tuple[str, ...]:
    """Names of all architectures, the default first."""
    return tuple(sorted(_NETWORKS, key=lambda name: (name != DEFAULT, name)))


def describe_network(name: str) -> Network:
    if name not in _NETWORKS:
        raise ValueError(f"unknown network {name!r}; available: {', '.join(available_networks())}")
    return _NETWORKS[name]


def create_network(name: str, shape: Shape, options: Mapping[str, Any]) -> nn.Module:
    """[task, ..., inputs] -> [copies, task, ..., outputs]. ValueError for an unknown name or an
    option out of range; Unusable for a network that no update can use."""
    network = describe_network(name).make(shape, **options)
    if isinstance(network, MLP | Residual):  # these take any leading dimensions
        return network
    inputs = torch.zeros(shape.num_tasks, shape.num_tasks + 1, shape.inputs)
    with torch.no_grad():
        found = network(inputs).shape
    expected = shape.copies, *inputs.shape[:2], shape.outputs
    if found != expected:
        raise Unusable(
            f"gives outputs {tuple(found)} for inputs {tuple(inputs.shape)}, "
            f"not [copies, task, sample, outputs] = {expected}"
        )
    if shape.task_head and not isinstance(getattr(network, "head", None), TaskLinear):
        raise Unusable("needs `self.head = shape.head(...)` for critic.kind = popart")
    return Body(network)
