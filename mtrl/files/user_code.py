"""What a user's own class or function is, as far as its name and its signature tell."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any


def is_own(something: Any) -> bool:
    """Whether a class or a function is a user's, not one of ours."""
    places = [kind.__module__ for kind in getattr(something, "__mro__", [something])]
    return any(p.partition(".")[0] not in ("mtrl", "torch", "abc", "builtins") for p in places)


def redefines(new: Any, old: Any) -> bool:
    """Whether both come from the same lines of a user: a notebook's cell that is run again, or a
    file that is imported under two names."""
    same_name = new.__qualname__ == old.__qualname__
    return same_name and is_own(old) and _place(new) == _place(old)


def _place(something: Any) -> str:
    return file_of(something) or str(something.__module__)


def file_of(something: Any) -> str:
    """Of its module; empty in a notebook."""
    return getattr(sys.modules.get(something.__module__), "__file__", None) or ""


def options_in(function: Callable[..., Any], whose: str) -> dict[str, Any]:
    """{name: default} of a constructor's parameters that have defaults. ValueError for a
    keyword-only one without."""
    options: dict[str, Any] = {}
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty:
            raise ValueError(f"{whose}: its option {p.name!r} needs a default")
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is not p.empty:
            options[p.name] = p.default
    return options
