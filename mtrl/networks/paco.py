"""PaCo: every task's network is a mixture of shared sets of parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtrl.networks.layers import Mixture, TaskTable
from mtrl.networks.registry import register_network
from mtrl.networks.shape import Shape


class MixedLinear(nn.Module):
    """x W_t + b_t, where W_t and b_t are mixtures of shared sets."""

    def __init__(
        self, sets: int, fan_in: int, fan_out: int, *, copies: int = 1, bf16: bool = False
    ) -> None:
        super().__init__()
        self.bf16 = bf16
        self.weight = Mixture(sets, fan_in, fan_out, copies=copies)
        self.bias = Mixture(sets, 1, fan_out, copies=copies)
        nn.init.zeros_(self.bias.sets)

    def forward(self, x: Tensor, coefficients: Tensor, *, norm: bool = False) -> Tensor:
        """[copies, task, sample, in], [copies, task, 1, set] -> [copies, task, sample, out].
        norm: the product is standardised before the bias is added."""
        weight = self.weight(coefficients)
        y = (x.bfloat16() @ weight.bfloat16()).float() if self.bf16 else x @ weight
        if norm:
            y = F.layer_norm(y, y.shape[-1:])
        return y + self.bias(coefficients)


@register_network("paco")
class PaCo(nn.Module):
    """Sets of parameters for the whole network, mixed by each task's own coefficients
    (Sun et al. 2022).

    L. Sun, H. Zhang, W. Xu, M. Tomizuka, "PaCo: Parameter-Compositional Multi-Task Reinforcement
    Learning", equation 4: theta_t = Phi w_t, in every layer of actor and critics, with Phi shared
    and w_t the task's own. Five sets for MT10 and twenty for MT50 (sets=20), of three layers of
    400. The network sees no task code in the paper (`network.task_encoding=none`). With PopArt the
    last layer is each task's own instead.

    A task's parameters are mixed first, so that its rows meet one matrix instead of K. In the
    authors' code actor and critics share each task's w_t, which has an optimiser of its own, and
    all sets start from the same numbers. Here every network has its own w_t, in its optimiser, and
    every set numbers of its own.

    reset_above: what a task's critic loss must pass for the task to have diverged; 0, the default,
    is never. It is left out of that update, whose gradients would take the others along, and then
    starts again from the others: w_t becomes a random mixture of theirs, the same one in actor,
    critics and target critics. The authors compare the sum of critic, actor and temperature losses
    with 3000. The threshold is in units of the loss, and so of the rewards after normalisation. Its
    temperature moves all the same. The optimiser's memory of w_t stays, as in the authors' code,
    and so does a last layer for PopArt.
    """

    def __init__(self, shape: Shape, *, sets: int = 5, reset_above: float = 0.0) -> None:
        super().__init__()
        if sets < 1:
            raise ValueError(f"sets must be at least 1, not {sets}")
        if not reset_above >= 0:
            raise ValueError(f"reset_above must not be negative, but is {reset_above}")
        self.reset_above = reset_above
        self.copies, self.layer_norm = shape.copies, shape.layer_norm
        self.coefficients = TaskTable(shape.num_tasks, sets, copies=shape.copies)
        sizes = [shape.inputs, *[shape.width] * (shape.depth - 1)]
        self.hidden = nn.ModuleList(
            MixedLinear(sets, size, shape.width, copies=shape.copies, bf16=shape.bf16 and index > 0)
            for index, size in enumerate(sizes)
        )
        self.head = (
            shape.head(shape.width)
            if shape.task_head
            else MixedLinear(sets, shape.width, shape.outputs, copies=shape.copies)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[task, sample, inputs] -> [copies, task, sample, outputs]"""
        x = x.expand(self.copies, *x.shape)
        coefficients = self.coefficients()
        for layer in self.hidden:
            x = F.relu(layer(x, coefficients, norm=self.layer_norm))
        if isinstance(self.head, MixedLinear):
            return self.head(x, coefficients)
        outputs: Tensor = self.head(x)
        return outputs

    @torch.no_grad()
    def restart(self, diverged: Tensor, shares: Tensor) -> None:
        """The coefficients of diverged tasks [task] become mixtures of all, by shares
        [task, task], which are 0 for diverged ones."""
        rows = self.coefficients.rows
        chosen = diverged[:, None, None]
        others = torch.where(chosen, 0.0, rows).squeeze(2)  # whatever the diverged ones are
        rows.copy_(torch.where(chosen, (shares @ others)[:, :, None], rows))


class Divergence:
    """Tasks that have passed PaCo's `reset_above`: left out of an update, then restarted."""

    def __init__(self, limit: float, networks: Sequence[PaCo]) -> None:
        self.limit, self._networks = limit, networks

    @classmethod
    def of(cls, *networks: nn.Module) -> Divergence | None:
        """None: these networks restart no task."""
        found = [part for network in networks for part in network.modules()]
        restarted = [part for part in found if isinstance(part, PaCo) and part.reset_above > 0]
        return cls(restarted[0].reset_above, restarted) if restarted else None

    def restart(self, diverged: Tensor, generator: torch.Generator) -> None:
        """Diverged tasks [task] start again from the others, if there are any."""
        m = len(diverged)
        shares = torch.rand(m, m, generator=generator, device=generator.device) * ~diverged
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-30)
        for network in self._networks:
            network.restart(diverged & ~diverged.all(), shares)


def leave_out(losses: Tensor, diverged: Tensor | None = None) -> Tensor:
    """The same losses [task], of which those of diverged tasks have no gradient."""
    return losses if diverged is None else torch.where(diverged, losses.detach(), losses)
