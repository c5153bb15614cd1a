"""The contract of a multi-task optimiser, and the registry of methods.

m tasks, P shared parameters; losses l [m], Jacobian J [m, P] (rows: task gradients), Gramian
G = J J^T [m, m]. The step is `parameters -= lr * direction`. Scale convention: mean (when all
task gradients are equal, the direction is that gradient).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Needs = Literal["losses", "gramian", "jacobian"]


class SMTO:
    """Base class of all methods. A subclass declares what it `needs` and gets nothing dearer.

    needs = "losses":   override `weights(losses=...)`
    needs = "gramian":  override `weights(gramian=...)`
    needs = "jacobian": override `combine`
    """

    needs: Needs = "losses"
    """The dearest input of the next step; may change while training."""

    compilable = False
    """Whether `weights` is a pure function of its tensors, fit for torch.compile: no random
    numbers, no state that changes."""

    def __init__(self, num_tasks: int) -> None:
        if num_tasks < 1:
            raise ValueError(f"num_tasks must be at least 1, not {num_tasks}")
        self.num_tasks = num_tasks

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        """Task weights w [m]; the direction is w @ J.

        losses [m], gramian [m, m]: only what `needs` names has to be given.
        """
        raise NotImplementedError(f"{type(self).__name__} has no task weights")

    def combine(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """Jacobian [m, P], losses [m] -> direction [P]."""
        gramian = gram_matrix(jacobian) if self.needs == "gramian" else None
        return self.weights(losses=losses, gramian=gramian).to(jacobian.dtype) @ jacobian

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs; tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError(f"{type(self).__name__} has no state, but got {sorted(state)}")


class RandomSMTO(SMTO):
    """A method that draws random numbers, from a generator of its own."""

    def __init__(
        self, num_tasks: int, *, seed: int = 0, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(num_tasks)
        self.generator = torch.Generator(device).manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"].cpu())


def gram_matrix(jacobian: Tensor) -> Tensor:
    """J J^T [m, m] in float64. Products in the Jacobian's own precision, never TF32."""
    if jacobian.is_cuda and torch.backends.cuda.matmul.allow_tf32:
        jacobian = jacobian.double()
    return (jacobian @ jacobian.T).double()


_METHODS: dict[str, type[SMTO]] = {}
Method = TypeVar("Method", bound=type[SMTO])


def register(name: str) -> Callable[[Method], Method]:
    """Class decorator: make a method known by `name` to `create` and the command line."""

    def add(cls: Method) -> Method:
        if name in _METHODS:
            raise ValueError(f"the method name {name!r} is taken by {_METHODS[name].__name__}")
        _METHODS[name] = cls
        return cls

    return add


def available() -> tuple[str, ...]:
    """Names of all registered methods."""
    return tuple(_METHODS)


def options_of(name: str) -> tuple[str, ...]:
    """Option names of a method, `seed` and `device` of random methods included."""
    parameters: set[str] = set()
    for cls in _METHODS[name].__mro__:
        if "__init__" in vars(cls):
            signature = inspect.signature(cls.__init__)  # type: ignore[misc]
            parameters |= {
                p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY
            }
    return tuple(sorted(parameters))


def describe(name: str) -> tuple[str, str]:
    """(needs, first line of the docstring) of a method."""
    cls = _METHODS[name]
    return cls.needs, (inspect.getdoc(cls) or "").split("\n")[0]


def is_compilable(name: str) -> bool:
    return _METHODS[name].compilable


def create(name: str, num_tasks: int, **options: Any) -> SMTO:
    """A fresh instance; ValueError for an unknown name or option, listing the valid ones."""
    if name not in _METHODS:
        raise ValueError(f"unknown method {name!r}; available: {', '.join(_METHODS)}")
    allowed = options_of(name)
    for option in options:
        if option not in allowed:
            raise ValueError(
                f"method {name!r} has no option {option!r}; valid: {', '.join(allowed) or 'none'}"
            )
    return _METHODS[name](num_tasks, **options)
