"""Optimisers: their steps, as they are and compiled for a GPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.config import AgentConfig
from mtrl.gradients.muon import orthogonalized
from mtrl.gradients.optimizer import Optimizer, torch_optimizer

CUDA = torch.device("cuda")
SHAPES = ((2, 40, 30), (2, 1, 30), (3, 700, 200))
KINDS: dict[str, dict[str, Any]] = {
    "adam": {},
    "adamw": {"weight_decay": 0.01},
    "sgd": {"betas": (0.5, 0.999)},
    "muon": {"weight_decay": 0.01},
}


def made(kind: str, device: torch.device) -> tuple[list[Tensor], Optimizer]:
    generator = torch.Generator().manual_seed(1)
    parameters = [
        torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in SHAPES
    ]
    config = AgentConfig(optimizer=kind, **KINDS[kind])  # type: ignore[arg-type]  # one of three
    l2 = 1e-3 if kind in ("adam", "sgd") else 0.0
    return parameters, Optimizer(parameters, 1e-2, config, l2=l2)


def step(optimizer: Optimizer, k: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(k)
    optimizer.scale(1.0 - 0.1 * k)
    optimizer.step([torch.randn(shape, generator=generator).to(device) for shape in SHAPES])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_steps_equal_fused_ones(kind: str) -> None:
    """With step sizes that fall, and with state that goes from one to the other and back."""
    fused, plain = made(kind, CUDA)
    compiled, quick = made(kind, CUDA)
    quick.compile()
    for k in range(3):
        step(plain, k, CUDA)
        step(quick, k, CUDA)
    resumed, other = made(kind, CUDA)
    with torch.no_grad():
        for mine, its in zip(resumed, compiled, strict=True):
            mine.copy_(its)
    other.load_state_dict(copy.deepcopy(quick.state_dict()))
    for k in range(3, 6):
        step(plain, k, CUDA)
        step(quick, k, CUDA)
        step(other, k, CUDA)
    for expected, one, two in zip(fused, compiled, resumed, strict=True):
        # Rounding of one step is 1e-7 of a number of order 1, and there are six. Muon's iterations
        # multiply that of the small singular values by 3.4 each.
        within = 2e-3 if kind == "muon" else 2e-6
        torch.testing.assert_close(one, expected, rtol=within, atol=within)
        torch.testing.assert_close(two, expected, rtol=within, atol=within)


def test_orthogonalized_matrices_keep_their_singular_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 40, 30), (3, 8, 60), (1, 16, 16)):
        matrices = torch.randn(shape, generator=generator)
        u, s, v = torch.linalg.svd(matrices, full_matrices=False)
        inside = u.mT @ orthogonalized(7.0 * matrices) @ v.mT
        values = inside.diagonal(dim1=-2, dim2=-1)
        clear = s > 0.05 * s.amax(-1, keepdim=True)  # smaller ones take more iterations
        assert (values[clear] > 0.6).all()
        assert (values < 1.3).all()
        others = inside - torch.diag_embed(values)
        assert others.abs().max() < 1e-3


def test_muon_moves_matrices_by_its_own_rule_and_the_rest_by_adamw() -> None:
    cpu = torch.device("cpu")
    parameters, optimizer = made("muon", cpu)
    twins, adamw = made("adamw", cpu)
    before = [p.detach().clone() for p in parameters]
    for k in range(3):
        step(optimizer, k, cpu)
        step(adamw, k, cpu)
    torch.testing.assert_close(parameters[1], twins[1], rtol=1e-6, atol=1e-7)  # a bias
    for index in (0, 2):
        moved = (parameters[index] - before[index]).detach()
        root = moved.square().mean().sqrt()
        adam = (twins[index] - before[index]).detach().square().mean().sqrt()
        assert 0.2 < root / adam < 1.5, "lr means the same for both"
        rank = torch.linalg.svdvals(moved)
        assert rank.amin() > 0.1 * rank.amax(), "directions with small gradients move as far"


def test_a_kernel_is_one_matrix() -> None:
    """A convolution moves as its own matrix would, written as a linear layer."""
    generator = torch.Generator().manual_seed(1)
    kernel = torch.randn(8, 3, 5, 5, generator=generator)
    matrix = kernel.flatten(1).clone()
    twins = [torch_optimizer("muon", [kernel], 1e-2, kernels=True)]
    twins.append(torch_optimizer("muon", [matrix], 1e-2))
    for _ in range(3):
        kernel.grad = torch.randn(kernel.shape, generator=generator)
        matrix.grad = kernel.grad.flatten(1).clone()
        for optimizer in twins:
            optimizer.step()
    torch.testing.assert_close(kernel.flatten(1), matrix, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_state_brings_no_settings_of_another_device(kind: str) -> None:
    cpu = torch.device("cpu")
    _, first = made(kind, cpu)
    step(first, 0, cpu)
    state = first.state_dict()
    group = state["param_groups"][0]
    group.update(lr=torch.tensor(0.5), capturable=True, fused=False, foreach=True)
    parameters, second = made(kind, cpu)
    before = [p.detach().clone() for p in parameters]
    second.load_state_dict(state)
    own = second.torch.param_groups[0]
    assert (own["lr"], own["fused"], own["foreach"]) == (1e-2, True, None)
    step(second, 1, cpu)
    assert all(not torch.equal(a, b) for a, b in zip(parameters, before, strict=True))
