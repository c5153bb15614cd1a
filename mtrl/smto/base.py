"""The contract of a multi-task optimiser, and the registry of methods.

m tasks, P shared parameters; losses l [m], Jacobian J [m, P] (rows: task gradients), Gramian
G = J J^T [m, m]. The step is `parameters -= lr * direction`. Scale convention: mean (when all
task gradients are equal, the direction is that gradient); a method whose paper fixes another
norm says so in its docstring.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor

Needs = Literal["losses", "gramian", "jacobian"]

MARGIN = 0.1
"""Share of |lower bound| that a shifted loss keeps as its distance from zero."""
SMALLEST_LOSS = 1e-8


class SMTO(ABC):
    """Base class of all methods. A subclass declares what it `needs` and gets nothing dearer.

    needs = "losses":   override `weights(losses=...)`
    needs = "gramian":  override `weights(gramian=...)`, or derive from `GramianSMTO`
    needs = "jacobian": override `direction`
    """

    needs: Needs = "losses"
    """The dearest input of the next step; may change while training."""
    wants_positive_losses: bool = False
    """Whether losses of any sign are first shifted by a tracked lower bound (`take`)."""

    lower_bound: Tensor

    compilable = False
    """Whether `weights` is a pure function of its tensors, fit for torch.compile: no random
    numbers, no state that changes. Of other methods everything before them is compiled."""

    def __init__(self, num_tasks: int) -> None:
        if num_tasks < 1:
            raise ValueError(f"num_tasks must be at least 1, not {num_tasks}")
        self.num_tasks = num_tasks
        self._kept: list[str] = []
        self._certificates: dict[str, Callable[[], Tensor]] = {}
        if self.wants_positive_losses:
            self.keep(lower_bound=torch.zeros(num_tasks, dtype=torch.float64))

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        """Task weights w [m]; the direction is w @ J. To be called once per training step.

        losses [m], gramian [m, m]: only what `needs` names has to be given; with a Gramian, the
        losses too if there are any. Never waits for the device.
        """
        raise NotImplementedError(f"{type(self).__name__} has no task weights")

    def direction(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """Jacobian [m, P], losses [m] -> direction [P]. Inputs are not checked: no device sync."""
        gramian = gram_matrix(jacobian) if self.needs == "gramian" else None
        return self.weights(losses=losses, gramian=gramian).to(jacobian.dtype) @ jacobian

    def combine(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """`direction` with checked inputs: ValueError for a wrong shape or a non-finite task."""
        m = self.num_tasks
        if jacobian.ndim != 2 or len(jacobian) != m or losses.shape != (m,):
            shapes = f"{tuple(jacobian.shape)} and {tuple(losses.shape)}"
            raise ValueError(f"expected a Jacobian [{m}, P] and losses [{m}], not {shapes}")
        for what, finite in (
            ("gradient", jacobian.isfinite().all(1)),
            ("loss", losses.isfinite()),
        ):
            if not finite.all():
                tasks = ", ".join(str(i) for i in (~finite).nonzero().flatten().tolist())
                raise ValueError(f"non-finite {what} of task {tasks}")
        return self.direction(jacobian, losses)

    def certificates(self) -> dict[str, Tensor]:
        """How well the last solve went (residual, duality gap), as scalars; {} if closed form.

        Computed only now, from the tensors of that solve."""
        return {name: compute() for name, compute in self._certificates.items()}

    # -- for subclasses -------------------------------------------------------------------------

    def keep(self, **state: Tensor | int) -> None:
        """Set attributes that `state_dict` holds. Change the tensors in place only."""
        for name, value in state.items():
            setattr(self, name, value)
            self._kept.append(name)

    def follow(self, device: torch.device) -> None:
        """Move the kept tensors to the inputs' device (once, at the first step)."""
        for name in self._kept:
            value = getattr(self, name)
            if isinstance(value, Tensor) and value.device != device:
                setattr(self, name, value.to(device))

    def take(self, losses: Tensor | None) -> Tensor:
        """Losses as float64, detached, and shifted if the method needs positive ones."""
        if losses is None:
            raise ValueError(f"{type(self).__name__} needs the losses")
        self.follow(losses.device)
        losses = losses.detach().double()
        if self.wants_positive_losses:
            torch.minimum(self.lower_bound, losses, out=self.lower_bound)
            losses = self.shift(losses)
        return losses

    def shift(self, losses: Tensor) -> Tensor:
        """l - (1 + MARGIN) b, with b the smallest loss a task has had so far, or 0.

        Positive losses are left alone until a task's first negative loss. The margin keeps 1/l
        and log l tame when a loss (the actor's falls for most of the training) is at its minimum.
        """
        return (losses - (1.0 + MARGIN) * self.lower_bound).clamp(min=SMALLEST_LOSS)

    # -- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs; tensors and plain values."""
        values = {name: getattr(self, name) for name in self._kept}
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in values.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != set(self._kept):
            wanted = sorted(self._kept) or "no state"
            raise ValueError(f"{type(self).__name__} has {wanted}, but got {sorted(state)}")
        for name in self._kept:
            own, value = getattr(self, name), state[name]
            if not isinstance(own, Tensor):
                setattr(self, name, value)
            elif own.shape == value.shape:
                own.copy_(value)
            else:
                raise ValueError(
                    f"{type(self).__name__}: {name} must have shape {tuple(own.shape)}, "
                    f"not {tuple(value.shape)}"
                )


class GramianSMTO(SMTO):
    """A method whose weights come from the Gramian: subclasses override `solve`.

    update_every=k solves in one of k steps and uses its weights for the others, which then need
    the losses only and cost a plain backward (Nash-MTL, Navon et al. 2022, Section 5).
    """

    needs: Needs = "gramian"
    precision: float
    """Relative rounding error of the Gramian, by the dtype in which it was given: solvers are to be
    indifferent to changes of that size."""
    held: Tensor
    age: int

    def __init__(self, num_tasks: int, *, update_every: int = 1, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        if update_every < 1:
            raise ValueError(f"update_every must be at least 1, not {update_every}")
        self.update_every = update_every
        self.precision = torch.finfo(torch.float32).eps
        if update_every > 1:
            self.keep(held=torch.zeros(num_tasks, dtype=torch.float64), age=0)

    @abstractmethod
    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        """Gramian [m, m] in float64 -> weights [m]; `take` the losses if they matter."""

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        if self.needs == "losses":
            self._grow_older()
            return self.held.clone()
        if gramian is None:
            raise ValueError(f"{type(self).__name__} needs the Gramian")
        self.follow(gramian.device)
        self.precision = torch.finfo(gramian.dtype).eps
        weights = self.solve(gramian.detach().double(), losses)
        if self.update_every > 1:
            self.held.copy_(weights)
            self._grow_older()
        return weights

    def _grow_older(self) -> None:
        self.age = (self.age + 1) % self.update_every
        self.needs = "losses" if self.age else "gramian"

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if self.update_every > 1:
            self.needs = "losses" if self.age else "gramian"


class RandomSMTO(SMTO):
    """A method that draws random numbers, from a generator of its own."""

    def __init__(
        self, num_tasks: int, *, seed: int = 0, device: str | torch.device = "cpu", **options: Any
    ) -> None:
        super().__init__(num_tasks, **options)
        self.generator = torch.Generator(device).manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict({k: v for k, v in state.items() if k != "generator"})
        continue_stream(self.generator, state["generator"])


def continue_stream(generator: torch.Generator, state: Tensor) -> bool:
    """Set the generator's state. The state of another kind of device seeds it: then False."""
    state = state.cpu()
    if state.shape == generator.get_state().shape:
        generator.set_state(state)
        return True
    digest = hashlib.sha256(state.numpy().tobytes()).digest()
    generator.manual_seed(int.from_bytes(digest[:7], "big"))
    return False


class LearnedSMTO(SMTO):
    """A method with one learned number per task, moved by its own Adam inside `weights`.

    lr: step size of that Adam (betas .9, .999, eps 1e-8), in units of the learned number.
    """

    parameter: Tensor
    moment: Tensor
    square: Tensor
    updates: Tensor

    def __init__(self, num_tasks: int, *, lr: float = 1e-3, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        if not lr > 0:
            raise ValueError(f"lr must be positive, not {lr}")
        self.lr = lr
        zeros = torch.zeros(num_tasks, dtype=torch.float64)
        self.keep(parameter=zeros.clone(), moment=zeros.clone(), square=zeros.clone())
        self.keep(updates=torch.zeros((), dtype=torch.float64))

    def descend(self, gradient: Tensor) -> None:
        """One step of Adam on the learned numbers; gradient [m]."""
        self.updates += 1.0
        self.moment.lerp_(gradient, 0.1)
        self.square.lerp_(gradient * gradient, 0.001)
        mean = self.moment / (1.0 - 0.9**self.updates)
        scale = (self.square / (1.0 - 0.999**self.updates)).sqrt() + 1e-8
        self.parameter -= self.lr * mean / scale


BLOCK = 4096
"""Columns of J whose products are summed in its own precision. One float32 sum over 10^6 columns
may be wrong by 1e-4, by other amounts on every processor; over a block it is by 1e-7."""


def gram_matrix(jacobian: Tensor) -> Tensor:
    """J J^T [m, m] in the Jacobian's precision, never TF32; summed in float64 over blocks."""
    dtype, (m, columns) = jacobian.dtype, jacobian.shape
    whole = columns - columns % BLOCK
    rest = jacobian[:, whole:]
    with _without_tf32() if jacobian.is_cuda else contextlib.nullcontext():
        total = (rest @ rest.T).double()
        if whole:
            blocks = jacobian[:, :whole].view(m, -1, BLOCK).transpose(0, 1)
            total += torch.bmm(blocks, blocks.mT).sum(0, dtype=torch.float64)
    return total.to(dtype)


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """float32 products on CUDA in float32, whatever the program allows elsewhere."""
    matmul = torch.backends.cuda.matmul
    # Before PyTorch 2.9 a flag, and since then an error to read where the new setting was used.
    new = hasattr(matmul, "fp32_precision")
    name, exact = ("fp32_precision", "ieee") if new else ("allow_tf32", False)
    before = getattr(matmul, name)
    setattr(matmul, name, exact)
    try:
        yield
    finally:
        setattr(matmul, name, before)


# -- registry -----------------------------------------------------------------------------------

_METHODS: dict[str, type[SMTO]] = {}
_ALIASES: dict[str, str] = {}
Class = TypeVar("Class", bound=type[SMTO])


class Method(NamedTuple):
    """What a listing shows of one method."""

    name: str
    aliases: tuple[str, ...]
    needs: Needs
    """Of the first step, with default options."""
    wants_positive_losses: bool
    """With default options."""
    options: dict[str, Any]
    """Name -> default."""
    text: str
    """First line of the docstring."""


def register(name: str, *aliases: str) -> Callable[[Class], Class]:
    """Class decorator: make a method known by `name` to `create` and the command line."""

    def add(cls: Class) -> Class:
        for word in (name, *aliases):
            if word in _METHODS or word in _ALIASES:
                taken = _METHODS[_ALIASES.get(word, word)].__name__
                raise ValueError(f"the method name {word!r} is taken by {taken}")
        _METHODS[name] = cls
        _ALIASES.update(dict.fromkeys(aliases, name))
        return cls

    return add


def available() -> tuple[str, ...]:
    """Names of all registered methods, the cheapest inputs first; aliases left out."""
    costs = get_args(Needs)
    return tuple(sorted(_METHODS, key=lambda name: costs.index(_METHODS[name].needs)))


def _find(name: str | type[SMTO]) -> tuple[str, type[SMTO]]:
    if isinstance(name, type):  # a method of the caller's own, registered or not
        return name.__name__, name
    name = _ALIASES.get(name, name)
    if name not in _METHODS:
        raise ValueError(f"unknown method {name!r}; available: {', '.join(available())}")
    return name, _METHODS[name]


def _defaults(cls: type[SMTO]) -> dict[str, Any]:
    """Keyword options of the constructor, base classes' included where it passes them on."""
    options: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]  # classes are safe here
        for p in parameters:
            if p.kind is p.KEYWORD_ONLY:
                options.setdefault(p.name, p.default)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return dict(sorted(options.items()))


def options_of(name: str | type[SMTO]) -> tuple[str, ...]:
    """Option names of a method, `seed` and `device` of random methods included."""
    return tuple(_defaults(_find(name)[1]))


def describe(name: str | type[SMTO]) -> Method:
    """Everything a listing of methods shows; `name` may be an alias, or a class."""
    name, cls = _find(name)
    return Method(
        name,
        tuple(alias for alias, of in _ALIASES.items() if of == name),
        cls.needs,
        cls.wants_positive_losses,
        _defaults(cls),
        (inspect.getdoc(cls) or "").split("\n")[0],
    )


def create(name: str | type[SMTO], num_tasks: int, **options: Any) -> SMTO:
    """A fresh instance; ValueError for an unknown name or option, listing the valid ones.

    A class instead of a name: a method that is not in the registry."""
    name, cls = _find(name)
    allowed = _defaults(cls)
    for option in options:
        if option not in allowed:
            raise ValueError(
                f"method {name!r} has no option {option!r}; valid: {', '.join(allowed) or 'none'}"
            )
    return cls(num_tasks, **options)
