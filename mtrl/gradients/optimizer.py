"""Optimisers: made when first needed, with a step size that a schedule scales."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mtrl.config import AgentConfig
from mtrl.device.compiled import compiled
from mtrl.gradients.muon import Muon


def torch_optimizer(
    name: Literal["adam", "adamw", "sgd", "muon"],
    parameters: Iterable[Tensor],
    lr: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    l2: float = 0.0,
    weight_decay: float = 0.0,
    kernels: bool = False,
) -> torch.optim.Optimizer:
    """betas: of Adam's moments; the first is the momentum of SGD and Muon too. l2: coupled weight
    decay (adam, sgd), whose gradient is added to the direction. weight_decay: decoupled (adamw,
    muon). kernels: see Muon."""
    decoupled: dict[str, Any] = {"betas": betas, "weight_decay": weight_decay}
    match name:
        case "adam":
            return torch.optim.Adam(parameters, lr, betas, weight_decay=l2, fused=True)
        case "adamw":
            return torch.optim.AdamW(parameters, lr, **decoupled, fused=True)
        case "muon":
            return Muon(parameters, lr=lr, **decoupled, kernels=kernels, fused=True)
        case "sgd":
            return torch.optim.SGD(parameters, lr, betas[0], weight_decay=l2, fused=True)


class Optimizer:
    """An optimiser of torch's. Made late: the first one imports torch's compiler, two seconds for
    which the simulation need not wait."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        config: AgentConfig | None = None,
        *,
        l2: float = 0.0,
    ) -> None:
        """config: which optimiser; None = Adam. l2: coupled weight decay, whose gradient is added
        to the SMTO's direction."""
        self._parameters, self._lr, self._config, self._l2 = list(parameters), lr, config, l2
        self.lr = lr
        """The step size of the next step, on the host."""
        self._is_compiled = False

    @cached_property
    def torch(self) -> torch.optim.Optimizer:
        config = self._config
        if config is None:
            return torch_optimizer("adam", self._parameters, self._lr)
        return torch_optimizer(
            config.optimizer,
            self._parameters,
            self._lr,
            betas=config.betas,
            l2=self._l2,
            weight_decay=config.weight_decay,
        )

    def step(self, gradients: Sequence[Tensor], max_norm: float | None = None) -> Tensor:
        """-> the norm of all gradients together, a scalar; max_norm: clip it, after that."""
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.get_total_norm(gradients)
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, max_norm, norm)
        self._step()
        return norm

    def scale(self, factor: float) -> None:
        """Set the step size to `factor` times the configured one."""
        self.lr = self._lr * factor
        group = self.torch.param_groups[0]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(self.lr)
        else:
            group["lr"] = self.lr

    @cached_property
    def _step(self) -> Callable[[], object]:
        if not self._is_compiled:
            return self.torch.step
        # It says that the profiler's marks in torch.optim are left out.
        logging.getLogger("torch._dynamo.variables.ctx_manager").setLevel(logging.ERROR)
        self.make_capturable()
        self.torch.param_groups[0].update(fused=False, foreach=True)
        return compiled(self.torch.step)

    def compile(self) -> None:
        """Before the first step: on CUDA, compile it.

        torch's fused step gives 65,536 parameters to one multiprocessor: small networks keep a
        tenth of a large GPU busy. Compiled, all work.
        """
        self._is_compiled = self._parameters[0].device.type == "cuda"

    def make_capturable(self) -> None:
        """The step size becomes a tensor: as a number it would be fixed in a CUDA graph, and
        compiled again whenever a schedule changes it."""
        # Adam would warn of every step outside a graph, such as those of diagnostic updates.
        warnings.filterwarnings("ignore", message=".*capturable=True.*")
        group = self.torch.param_groups[0]
        if not isinstance(group["lr"], Tensor):
            lr = torch.tensor(group["lr"], device=self._parameters[0].device)
            group.update(lr=lr, capturable=True)

    def forget(self) -> None:
        """Moments and step counts become those of a new optimiser, in place."""
        for state in self.torch.state.values():
            for value in state.values():
                value.zero_()

    def state_dict(self) -> dict[str, Any]:
        return self.torch.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.torch.load_state_dict(dict(state))
        own = {"lr": self._lr, "capturable": False, "fused": True, "foreach": None}
        self.torch.param_groups[0].update(own)  # wherever it comes from
