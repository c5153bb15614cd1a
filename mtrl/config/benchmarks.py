"""Benchmarks: which tasks, in which order. Names and numbers only."""

from __future__ import annotations

MAX_GOALS = 50  # Meta-World makes 50 goals per task

MT10 = (
    "reach-v3", "push-v3", "pick-place-v3", "door-open-v3", "drawer-open-v3", "drawer-close-v3",
    "button-press-topdown-v3", "peg-insert-side-v3", "window-open-v3", "window-close-v3",
)  # fmt: skip
MT25 = (
    *MT10, "coffee-pull-v3", "pick-out-of-hole-v3", "disassemble-v3", "pick-place-wall-v3",
    "basketball-v3", "stick-pull-v3", "button-press-wall-v3", "faucet-open-v3", "door-lock-v3",
    "lever-pull-v3", "sweep-into-v3", "faucet-close-v3", "coffee-button-v3",
    "button-press-topdown-wall-v3", "dial-turn-v3",
)  # fmt: skip
MT50 = (
    "assembly-v3", "basketball-v3", "bin-picking-v3", "box-close-v3", "button-press-topdown-v3",
    "button-press-topdown-wall-v3", "button-press-v3", "button-press-wall-v3", "coffee-button-v3",
    "coffee-pull-v3", "coffee-push-v3", "dial-turn-v3", "disassemble-v3", "door-close-v3",
    "door-lock-v3", "door-open-v3", "door-unlock-v3", "hand-insert-v3", "drawer-close-v3",
    "drawer-open-v3", "faucet-open-v3", "faucet-close-v3", "hammer-v3", "handle-press-side-v3",
    "handle-press-v3", "handle-pull-side-v3", "handle-pull-v3", "lever-pull-v3",
    "pick-place-wall-v3", "pick-out-of-hole-v3", "pick-place-v3", "plate-slide-v3",
    "plate-slide-side-v3", "plate-slide-back-v3", "plate-slide-back-side-v3",
    "peg-insert-side-v3", "peg-unplug-side-v3", "soccer-v3", "stick-push-v3", "stick-pull-v3",
    "push-v3", "push-wall-v3", "push-back-v3", "reach-v3", "reach-wall-v3", "shelf-place-v3",
    "sweep-into-v3", "sweep-v3", "window-open-v3", "window-close-v3",
)  # fmt: skip

TOY = ("toy-east", "toy-north", "toy-west", "toy-south")

STEP_COSTS = {
    "assembly-v3": 1.3, "basketball-v3": 0.98, "bin-picking-v3": 1.08, "box-close-v3": 1.44,
    "button-press-topdown-v3": 0.82, "button-press-topdown-wall-v3": 0.81, "button-press-v3": 0.8,
    "button-press-wall-v3": 0.83, "coffee-button-v3": 0.97, "coffee-pull-v3": 1.19,
    "coffee-push-v3": 1.15, "dial-turn-v3": 0.88, "disassemble-v3": 1.32, "door-close-v3": 0.87,
    "door-lock-v3": 0.85, "door-open-v3": 0.9, "door-unlock-v3": 0.86, "hand-insert-v3": 1.04,
    "drawer-close-v3": 0.88, "drawer-open-v3": 0.89, "faucet-open-v3": 0.83,
    "faucet-close-v3": 0.82, "hammer-v3": 1.22, "handle-press-side-v3": 0.8,
    "handle-press-v3": 0.81, "handle-pull-side-v3": 0.86, "handle-pull-v3": 0.83,
    "lever-pull-v3": 0.88, "pick-place-wall-v3": 1.14, "pick-out-of-hole-v3": 0.99,
    "pick-place-v3": 1.11, "plate-slide-v3": 0.83, "plate-slide-side-v3": 0.81,
    "plate-slide-back-v3": 0.85, "plate-slide-back-side-v3": 0.84, "peg-insert-side-v3": 1.08,
    "peg-unplug-side-v3": 1.18, "soccer-v3": 1.11, "stick-push-v3": 1.49, "stick-pull-v3": 1.37,
    "push-v3": 1.02, "push-wall-v3": 1.09, "push-back-v3": 1.12, "reach-v3": 0.87,
    "reach-wall-v3": 0.88, "shelf-place-v3": 1.13, "sweep-into-v3": 1.22, "sweep-v3": 1.11,
    "window-open-v3": 0.89, "window-close-v3": 0.97,
}  # fmt: skip
"""Time of a fast step relative to the mean of MT50: random actions, all tasks in turn, medians."""

BENCHMARKS: dict[str, tuple[str, ...]] = {
    "MT10": MT10,
    "MT25": MT25,
    "MT50": MT50,
    "toy": TOY,
}
"""Task order of each benchmark; Meta-World's own order (tests compare)."""


def benchmark_tasks(name: str) -> tuple[str, ...]:
    """Task names of a benchmark, in order; () for MT1, whose one task the user names."""
    return BENCHMARKS.get(name, ())


def all_tasks() -> tuple[str, ...]:
    return (*MT50, *TOY)
