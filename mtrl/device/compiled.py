"""torch.compile, as all of our functions need it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])
MANY = 1000  # agents in one process; PyTorch would compile for eight and then stop, without a word


def compiled(function: Function, *, fullgraph: bool = False, **settings: Any) -> Function:
    """The function, compiled at its first call. settings: of torch._dynamo.config.

    Sizes never change: left to guess, the compiler makes other code after other agents. The
    settings are made at every call, since they hold for one thread, and a compilation has its own.
    AttributeError for settings that this PyTorch lacks.
    """
    configured = torch._dynamo.config.patch(
        recompile_limit=MANY, accumulated_recompile_limit=MANY, **settings
    )
    made: Function = configured(torch.compile(function, fullgraph=fullgraph, dynamic=False))
    return made
