"""mtrl: multi-task reinforcement learning with pluggable multi-task optimisers.

run = mtrl.train("toy", {"agent.smto.name": "pcgrad"}, seed=3)
run.success_mean, run.success["toy-east"], run.metrics("eval/")
policy = mtrl.load(run)
action = policy.act(observation, "toy-east")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtrl import smto
    from mtrl.commands.python import Policy, evaluate, load, train
    from mtrl.config import Config
    from mtrl.envs.tasks import make_env
    from mtrl.run.callbacks import Callback
    from mtrl.run.state import Run

__version__ = "0.1.0"
__all__ = [
    "Callback",
    "Config",
    "Policy",
    "Run",
    "evaluate",
    "load",
    "make_env",
    "smto",
    "train",
]

_PLACES = {
    **dict.fromkeys(("train", "load", "evaluate", "Policy"), "mtrl.commands.python"),
    "Callback": "mtrl.run.callbacks",
    "Config": "mtrl.config",
    "Run": "mtrl.run.state",
    "make_env": "mtrl.envs.tasks",
}


def __getattr__(name: str) -> Any:
    """Imported at their first use: simulation workers import this file, and need no torch."""
    if name == "smto":
        return importlib.import_module("mtrl.smto")
    if name not in _PLACES:
        raise AttributeError(f"module 'mtrl' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
