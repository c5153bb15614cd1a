"""Upstream's own functions with other names: other globals, and looked-up simulation data."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


def rebind(value: Any, replacements: dict[str, Any], owner: type | None = None) -> Any:
    """The same function, static method or property with other globals; None for anything else.

    A function that calls super() needs the class to start from, `owner`.
    """
    if isinstance(value, staticmethod):
        return staticmethod(rebind(value.__func__, replacements))
    if isinstance(value, property):
        return property(rebind(value.fget, replacements))
    if not isinstance(value, types.FunctionType):
        return None
    closure = value.__closure__
    if closure:
        if value.__code__.co_freevars != ("__class__",) or owner is None:
            return None
        closure = (types.CellType(owner),)
    names = value.__globals__
    known = {name: new for name, new in replacements.items() if name in names}
    rebound = types.FunctionType(
        _rename_data(value.__code__), names | known, value.__name__, value.__defaults__, closure
    )
    rebound.__kwdefaults__ = value.__kwdefaults__
    return rebound


def _rename_data(code: types.CodeType) -> types.CodeType:
    """`self.data` -> `self.named_data`, also in comprehensions and inner functions."""
    return code.replace(
        co_names=tuple("named_data" if name == "data" else name for name in code.co_names),
        co_consts=tuple(
            _rename_data(constant) if isinstance(constant, types.CodeType) else constant
            for constant in code.co_consts
        ),
    )


def undecorated(function: Any) -> Any:
    """What `assert_task_is_set` wraps."""
    if function.__closure__ and "func" in function.__code__.co_freevars:
        return function.__closure__[function.__code__.co_freevars.index("func")].cell_contents
    return function


class _Body(NamedTuple):
    id: int
    xpos: NDArray[np.float64]
    xquat: NDArray[np.float64]
    xmat: NDArray[np.float64]


class _Geom(NamedTuple):
    id: int
    xpos: NDArray[np.float64]
    xmat: NDArray[np.float64]


class _Site(NamedTuple):
    id: int
    xpos: NDArray[np.float64]
    xmat: NDArray[np.float64]


class _Joint(NamedTuple):
    qpos: NDArray[np.float64]
    qvel: NDArray[np.float64]


class _Lookup(dict):
    """name -> views, made at the first use. Read-only: step code that wrote would raise."""

    def __init__(self, accessor: Callable[[str], Any], kind: Any) -> None:
        super().__init__()
        self.accessor, self.kind = accessor, kind

    def __missing__(self, name: str) -> Any:
        views = self.accessor(name)
        self[name] = self.kind(*(getattr(views, field) for field in self.kind._fields))
        return self[name]


class NamedData:
    """Stands in for mjData in upstream's step code: the same names, each looked up only once.

    The arrays are MuJoCo's own views; they stay valid as long as the mjData lives.
    """

    def __init__(self, data: Any) -> None:
        self._data = data
        self.body = _Lookup(data.body, _Body).__getitem__
        self.geom = _Lookup(data.geom, _Geom).__getitem__
        self.site = _Lookup(data.site, _Site).__getitem__
        self.joint = _Lookup(data.joint, _Joint).__getitem__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)
