"""The contract of a multi-task optimiser.

m tasks, P shared parameters; losses l [m], Jacobian J [m, P] (rows: task gradients), Gramian
G = J J^T [m, m]. The step is `parameters -= lr * direction`. Scale convention: mean (when all
task gradients are equal, the direction is that gradient); a method whose paper fixes another
norm says so in its docstring.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from mtrl.smto.source import Backwards, Chosen, Form, Rows, Source

Needs = Literal["losses", "gramian", "jacobian"]

MARGIN = 0.1
"""Share of |lower bound| that a shifted loss keeps as its distance from zero."""
SMALLEST_LOSS = 1e-8


class SMTO(nn.Module, ABC):
    """Base class of all methods. A subclass declares what it `needs` and gets no more.

    needs = "losses":   override `weights(losses=...)`
    needs = "gramian":  override `weights(gramian=...)`, or derive from `GramianSMTO`
    needs = "jacobian": override `direction`

    A module, so that state is a buffer or a parameter, in float64, changed in place; what is
    neither goes into the extra state. `.to(device)` of the learner, once, before the first step.
    """

    needs: Needs = "losses"
    """The most expensive input of the next step; may change while training."""
    wants_positive_losses: bool = False
    """Whether losses of any sign are first shifted by a tracked lower bound (`observe`)."""
    wants_losses_after: bool = False
    """Whether every step must end with `after_step`."""

    lower_bound: Tensor

    compilable = False
    """Whether `weights` is a pure function of its tensors, fit for torch.compile: no random
    numbers, no state that changes. Of other methods everything before them is compiled."""

    @property
    def weighs_losses(self) -> bool:
        """Whether it trains the loss w @ losses, the heads of single tasks included. Methods that
        combine gradients of what tasks share do not."""
        return type(self).needs == "losses"  # `needs` of a step may be less

    def head_weights(self, weights: Tensor | None) -> Tensor | None:
        """[m] by which the gradients of parameters of one task alone are multiplied in this step;
        None: all by 1/m, as in the mean of the losses. weights: what the step's choice has.

        Of supervised networks and `backward`; the agent's are always multiplied by 1/m.
        """
        return weights if self.weighs_losses else None

    @property
    def capturable(self) -> bool:
        """Whether every step from here on is the same operations on the same tensors, changed in
        place if at all, and never waits for the device: fit for a CUDA graph. A method says so."""
        return False

    def __init__(self, num_tasks: int) -> None:
        if num_tasks < 1:
            raise ValueError(f"num_tasks must be at least 1, not {num_tasks}")
        super().__init__()
        self.num_tasks = num_tasks
        self._certificates: dict[str, Callable[[], Tensor]] = {}
        if self.wants_positive_losses:
            self.register_buffer("lower_bound", torch.zeros(num_tasks, dtype=torch.float64))

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        """Task weights w [m]; the direction is w @ J. To be called once per training step.

        losses [m], gramian [m, m]: only what `needs` names has to be given; with a Gramian, the
        losses too if there are any. Never waits for the device.
        """
        raise NotImplementedError(f"{type(self).__name__} has no task weights")

    def direction(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """Jacobian [m, P], losses [m] -> direction [P]. Inputs are not checked: no device sync."""
        return self.choose(Rows(jacobian, losses)).direction

    def choose(self, source: Source[Form]) -> Chosen[Form]:
        """The direction of this step, from no more than the method needs."""
        gramian: Tensor | None = None
        match self.needs:
            case "jacobian":
                direction = self.direction(source.jacobian(), source.losses)
                return Chosen(source.shaped(direction), None, None)
            case "gramian":
                gramian = source.gramian()
        weights = self.weights(losses=source.losses, gramian=gramian)
        return Chosen(source.weighted(weights), weights, gramian)

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

    def backward(
        self,
        losses: Tensor,
        shared_parameters: Iterable[Tensor],
        task_parameters: Iterable[Tensor] = (),
    ) -> None:
        """Instead of `losses.mean().backward()`, in a training loop of your own.

        losses [m], with their graph. Adds the method's direction to `.grad` of the shared
        parameters. Those that one task alone uses (heads) get their loss's gradient, times the
        task's weight if the method weighs losses (`head_weights`), else times 1/m: no other task's
        gradient conflicts with theirs. Costs one ordinary backward for methods that need the losses
        alone, else one for every task. A method with `wants_losses_after` (FAMO) must then be given
        them: `after_step`, after the optimiser's.

        ValueError for losses of another shape, or that are not finite.
        """
        shared, own = list(shared_parameters), list(task_parameters)
        if losses.shape != (self.num_tasks,):
            raise ValueError(f"expected losses [{self.num_tasks}], not {tuple(losses.shape)}")
        if not losses.isfinite().all():
            raise ValueError(f"losses must be finite, not {losses.tolist()}")
        chosen = self.choose(Backwards(losses, shared))
        gradients = chosen.direction
        if own:
            factors = self.head_weights(chosen.weights)
            if factors is None:
                factors = torch.full_like(losses, 1.0 / self.num_tasks)
            gradients = gradients + Backwards(losses, own).weighted(factors)
        with torch.no_grad():
            for parameter, gradient in zip([*shared, *own], gradients, strict=True):
                if parameter.grad is None:
                    parameter.grad = gradient.clone()
                else:
                    parameter.grad += gradient

    def after_step(self, losses: Tensor) -> None:
        """Losses [m] of the step's own batch at the new parameters, after the optimiser's step.

        Only for methods with `wants_losses_after`; one more forward.
        """
        raise NotImplementedError(f"{type(self).__name__} has no after_step")

    def certificates(self) -> dict[str, Tensor]:
        """How well the last solve went (residual, duality gap), as scalars; {} if closed form.

        Computed only now, from the tensors of that solve."""
        return {name: compute() for name, compute in self._certificates.items()}

    # -- for subclasses -------------------------------------------------------------------------

    def observe(self, losses: Tensor | None) -> Tensor:
        """Losses as float64, detached, and shifted if the method needs positive ones."""
        if losses is None:
            raise ValueError(f"{type(self).__name__} needs the losses")
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

    @torch.no_grad()
    def start_again(self, fresh: Self) -> None:
        """Take the memory of an instance just made, in place: the networks are new ones.

        fresh: made with the same options. What has no size before a first step becomes zero.
        Streams of random numbers continue. Subclasses with state that is neither a buffer nor a
        parameter override it.
        """
        begins = dict(fresh.named_buffers()) | dict(fresh.named_parameters())
        for name, tensor in [*self.named_buffers(), *self.named_parameters()]:
            first = begins.get(name)
            if first is not None and first.shape == tensor.shape:
                tensor.copy_(first)
            else:
                tensor.zero_()

    def get_extra_state(self) -> dict[str, Any]:
        """What a resumed run needs beside buffers and parameters; subclasses add to it."""
        return {}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Subclasses take their own out of it. ValueError for the state of another method."""
        own = self.get_extra_state()
        if set(state) != set(own):
            raise ValueError(f"{type(self).__name__} has {sorted(own)}, but got {sorted(state)}")


class GramianSMTO(SMTO):
    """A method whose weights come from the Gramian: subclasses override `solve`.

    update_every=k solves in one of k steps and uses its weights for the others, which then need
    the losses only and cost a plain backward (Nash-MTL, Navon et al. 2022, Section 5).
    """

    needs: Needs = "gramian"
    precision: float
    """Relative rounding error of the Gramian, by the dtype in which it was given: solvers are to be
    indifferent to changes of that size."""
    solved: Tensor
    """[m] weights of the last solve, with update_every above 1."""

    def __init__(self, num_tasks: int, *, update_every: int = 1, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        if update_every < 1:
            raise ValueError(f"update_every must be at least 1, not {update_every}")
        self.update_every = update_every
        self.precision = torch.finfo(torch.float32).eps
        self._step = 0
        """In its round of update_every."""
        if update_every > 1:
            self.register_buffer("solved", torch.zeros(num_tasks, dtype=torch.float64))

    @property
    def capturable(self) -> bool:
        return self.update_every == 1

    @abstractmethod
    def solve(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        """Gramian [m, m] in float64 -> weights [m]; `observe` the losses if they matter."""

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        if self.needs == "losses":
            self._go_to(self._step + 1)
            return self.solved.clone()
        if gramian is None:
            raise ValueError(f"{type(self).__name__} needs the Gramian")
        self.precision = torch.finfo(gramian.dtype).eps
        weights = self.solve(gramian.detach().double(), losses)
        if self.update_every > 1:
            self.solved.copy_(weights)
            self._go_to(1)
        return weights

    def start_again(self, fresh: Self) -> None:
        super().start_again(fresh)
        self._go_to(0)

    def _go_to(self, step: int) -> None:
        self._step = step % self.update_every
        self.needs = "losses" if self._step else "gramian"

    def get_extra_state(self) -> dict[str, Any]:
        own = {"step": self._step} if self.update_every > 1 else {}
        return super().get_extra_state() | own

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        super().set_extra_state(state)
        if self.update_every > 1:
            self._go_to(state["step"])


class RandomSMTO(SMTO):
    """A method that draws random numbers, from a generator of its own.

    `.to(device)` moves it too: on another kind of device its stream begins with the seed again.
    """

    def __init__(self, num_tasks: int, *, seed: int = 0, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        self.generator = torch.Generator().manual_seed(seed)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `.to`, `.cuda` and their like call for every tensor."""
        device = fn(torch.empty(0)).device
        if device.type != self.generator.device.type:
            seed = self.generator.initial_seed()
            self.generator = torch.Generator(device).manual_seed(seed)
        return super()._apply(fn, recurse)

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {"generator": self.generator.get_state()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        super().set_extra_state(state)
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

    lr: step size of that Adam, in units of the learned number.
    """

    def __init__(self, num_tasks: int, *, lr: float = 1e-3, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        if not lr > 0:
            raise ValueError(f"lr must be positive, not {lr}")
        self.lr = lr
        # Gradients come from formulas, not from autograd.
        zeros = torch.zeros(num_tasks, dtype=torch.float64)
        self.parameter = nn.Parameter(zeros, requires_grad=False)

    @cached_property
    def adam(self) -> torch.optim.Adam:
        """Made late: it is to see the device, and the first one imports torch's compiler."""
        on_gpu = self.parameter.is_cuda
        return torch.optim.Adam([self.parameter], lr=self.lr, capturable=on_gpu, fused=True)

    def descend(self, gradient: Tensor) -> None:
        """One step of Adam on the learned numbers; gradient [m]."""
        self.parameter.grad = gradient
        self.adam.step()

    def start_again(self, fresh: Self) -> None:
        super().start_again(fresh)
        for state in self.adam.state.values():
            for moment in state.values():
                moment.zero_()

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {"adam": self.adam.state_dict()["state"]}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        super().set_extra_state(state)
        moments = copy.deepcopy(state["adam"])  # Adam would continue in the tensors it is given
        self.adam.load_state_dict(self.adam.state_dict() | {"state": moments})


class Averaged(SMTO):
    """Weights averaged over steps: ema times the last average, plus 1 - ema times the new weights.

    CR-MOGM (Zhou et al. 2022, Algorithm 1), with a constant ema; the first average is the first
    weights (TorchJD: equal ones). `create` makes a class of this one and a method, for the option
    `ema`.
    """

    compilable = False
    average: Tensor

    def __init__(self, num_tasks: int, *, ema: float, **options: Any) -> None:
        super().__init__(num_tasks, **options)
        if not 0 <= ema < 1:
            raise ValueError(f"ema must be in [0, 1), not {ema}")
        self.ema = ema
        unknown = torch.full((num_tasks,), torch.nan, dtype=torch.float64)
        self.register_buffer("average", unknown)

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        fresh = super().weights(losses=losses, gramian=gramian).double()
        last = torch.where(self.average.isnan(), fresh, self.average)
        return self.average.copy_(self.ema * last + (1.0 - self.ema) * fresh).clone()
