"""`mtrl.smto.check`: whether a method of one's own keeps the contract."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from mtrl.smto.base import SMTO
from mtrl.smto.registry import create, describe

TASKS, SIZE = 4, 50


def check(
    name: str | type[SMTO], *, own_scale: bool = False, ordered: bool = False, **options: Any
) -> None:
    """AssertionError, which says what is wrong, unless the method

    gives finite directions of the right shape, for zero and for huge gradients too; gives the task
    gradient itself where all are equal (scale convention: a mean); gives the same whatever the
    order of the tasks; and continues from its saved state as if nothing had been.

    own_scale: its paper fixes another norm. ordered: the order of the tasks has a meaning. A method
    that draws random numbers (it has an option `seed`) is not asked for scale and order.
    """
    is_random = "seed" in describe(name).options
    methods = create(name, TASKS, **options), create(name, TASKS, **options)
    method = methods[0]
    generator = torch.Generator().manual_seed(0)
    usual = torch.randn(TASKS, SIZE, generator=generator)
    losses = torch.rand(TASKS, generator=generator) + 0.5

    for what, jacobian in (
        ("ordinary", usual),
        ("zero", torch.zeros_like(usual)),
        ("huge", 1e6 * usual),
        ("tiny", 1e-6 * usual),
    ):
        direction = copy.deepcopy(method).combine(jacobian, losses)
        _say(direction.shape == (SIZE,), f"direction of shape {tuple(direction.shape)}, not (P,)")
        _say(bool(direction.isfinite().all()), f"a direction that is not finite, {what} gradients")

    weights = copy.deepcopy(method)
    if method.needs != "jacobian":
        gramian = usual @ usual.T if method.needs == "gramian" else None
        found = weights.weights(losses=losses, gramian=gramian)
        _say(found.shape == (TASKS,), f"weights of shape {tuple(found.shape)}, not ({TASKS},)")

    equal = usual[:1].expand(TASKS, SIZE).contiguous()
    same = copy.deepcopy(method).combine(equal, torch.ones(TASKS))
    scale = float((same @ equal[0]) / (equal[0] @ equal[0]))
    _say(
        own_scale or is_random or abs(scale - 1.0) < 0.01,
        f"{scale:.3f} times the gradient where all tasks have the same one; the scale of a mean is "
        "what makes step sizes and l2 comparable",
    )

    if not (is_random or ordered):
        order = torch.tensor([2, 0, 3, 1])
        one = copy.deepcopy(method).combine(usual, losses)
        other = copy.deepcopy(method).combine(usual[order], losses[order])
        _say(_close(one, other), "another direction when the tasks come in another order")

    for step in range(3):
        method.combine(usual + 0.1 * step, losses / (step + 1))
        if method.wants_losses_after:
            method.after_step(losses / (step + 2))
    methods[1].load_state_dict(copy.deepcopy(method.state_dict()))
    one, other = (m.combine(usual, losses) for m in methods)
    _say(
        torch.equal(one, other),
        "another direction after its state was saved and loaded: state belongs into buffers, "
        "parameters or the extra state",
    )


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= 1e-3 * one.norm().clamp(min=1e-12))


def _say(right: bool, wrong: str) -> None:
    if not right:
        raise AssertionError(f"the method gives {wrong}")
