"""Agents saved by earlier versions: what was called by another name then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def upgraded(state: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> dict[str, Any]:
    """The state of an agent, as the agent of today has it.

    networks: today's, by their keys in the state.

    Before networks were made of recorded layers, each was one `mlp` that had all its weights, then
    all its biases, and optimisers counted parameters in this order.
    """
    state = {k: smto_state(v) if k.endswith("_smto") else v for k, v in state.items()}
    for key, network in networks.items():
        before = state.get(key)
        if not isinstance(before, Mapping) or "mlp.weights.0" not in before:
            continue
        today = [name for name, _ in network.named_parameters()]
        renamed = {name: _mlp_name(name, today) for name in before}
        if sorted(renamed.values()) != sorted(today):
            continue  # of another size: whoever loads it says so
        state[key] = {renamed[name]: value for name, value in before.items()}
        optimizer = state.get(f"{key}_optimizer")
        if optimizer is not None:
            # Both by position: the names as they were, in their order, and today's.
            position = {index: today.index(renamed[name]) for index, name in enumerate(before)}
            moments = {position[index]: value for index, value in optimizer["state"].items()}
            state[f"{key}_optimizer"] = dict(optimizer) | {"state": dict(sorted(moments.items()))}
    return state


def _mlp_name(name: str, today: list[str]) -> str:
    """mlp.weights.0 -> body.hidden.0.linear.weight; a bias is the layer's own or its LayerNorm's;
    the last layer is the head. Other names stay."""
    if not name.startswith("mlp."):
        return name
    _, kind, layer = name.split(".")
    candidates = (
        (f"body.hidden.{layer}.linear.weight", "body.head.weight")
        if kind == "weights"
        else (
            f"body.hidden.{layer}.linear.bias",
            f"body.hidden.{layer}.norm.bias",
            "body.head.bias",
        )
    )
    return next((candidate for candidate in candidates if candidate in today), name)


def smto_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a multi-task optimiser, which was no module once and had an Adam of its own."""
    state = dict(state)
    if "_extra_state" in state:
        return state
    extra: dict[str, Any] = {}
    if "held" in state:
        state["solved"], extra["step"] = state.pop("held"), state.pop("age")
    if "moment" in state:
        steps, moment, square = (state.pop(name) for name in ("updates", "moment", "square"))
        moments = {"step": steps.float(), "exp_avg": moment, "exp_avg_sq": square}
        extra["adam"] = {0: moments} if steps else {}
    if "calls" in state:
        calls = state.pop("calls")
        extra |= {"has_begun": bool(calls)} if "previous" in state else {"calls": calls}
    if "generator" in state:
        extra["generator"] = state.pop("generator")
    return state | {"_extra_state": extra}
