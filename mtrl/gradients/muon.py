"""Muon: momentum whose singular values are all made one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for weight matrices, AdamW for everything else.

    A matrix moves by lr 0.2 sqrt(max(in, out)) O, with O the orthogonalised Nesterov momentum: the
    root mean square of AdamW's steps, so that one lr serves both (Liu et al. 2025). Weight decay is
    decoupled; the first beta is the momentum too. torch.optim.Muon takes matrices alone, and no
    copies side by side.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, kernels: bool = False, **options: Any
    ) -> None:
        """kernels: more than two dimensions are a convolution's kernel [out, in, ...], one matrix
        [out, in * ...], not copies of a matrix side by side. options: AdamW's."""
        super().__init__(parameters, **options)
        self._kernels = kernels

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        group = self.param_groups[0]
        beta = group["betas"][0]
        for p in group["params"]:
            if p.grad is None or p.dim() < 2:
                continue
            gradient = p.grad.flatten(1) if self._kernels else p.grad
            if min(gradient.shape[-2:]) == 1:
                continue
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
                state["step"] = torch.zeros((), device=p.device)  # AdamW looks for it when loading
            momentum = state["momentum_buffer"].view_as(gradient).lerp_(gradient, 1.0 - beta)
            nesterov = torch.lerp(gradient, momentum, beta)
            size = group["lr"] * 0.2 * math.sqrt(max(gradient.shape[-2:]))
            p.mul_(1.0 - group["lr"] * group["weight_decay"])
            p.sub_((size * orthogonalized(nesterov)).view_as(p))
            p.grad = None  # AdamW has the others
        return super().step(closure)


def orthogonalized(matrices: Tensor) -> Tensor:
    """About U V^T of U S V^T [..., rows, columns]: its singular values lie between 0.7 and 1.2.

    Newton-Schulz iterations with a quintic polynomial (Jordan et al. 2024).
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.mT if tall else x
