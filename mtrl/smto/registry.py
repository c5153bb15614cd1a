"""The methods by their names: `create`, and what a listing of them shows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, get_args

from mtrl.files.user_code import options_in, redefines
from mtrl.smto.base import SMTO, Averaged, Needs

_METHODS: dict[str, type[SMTO]] = {}
_ALIASES: dict[str, str] = {}
Class = TypeVar("Class", bound=type[SMTO])
SET_BY_THE_RUN = ("seed", "total_steps")
"""Options that a run gives to the methods that have them."""


class Method(NamedTuple):
    """What a listing shows of one method."""

    name: str
    aliases: tuple[str, ...]
    needs: Needs
    """Of the first step, with default options."""
    wants_positive_losses: bool
    """With default options."""
    options: dict[str, Any]
    """Name -> default."""
    text: str
    """First line of the docstring."""


def register(name: str, *others: str) -> Callable[[Class], Class]:
    """Class decorator: make a method known by `name` to `create` and the command line."""

    def add(cls: Class) -> Class:
        if not (isinstance(cls, type) and issubclass(cls, SMTO)):
            raise ValueError(f"method {name}: must be a class derived from mtrl.smto.SMTO")
        if cls.needs not in get_args(Needs):
            allowed = ", ".join(get_args(Needs))
            raise ValueError(f"method {name}: needs = {cls.needs!r} must be one of {allowed}")
        _own_options(cls)
        for word in (name, *others):
            taken = _METHODS.get(_ALIASES.get(word, word))
            if taken is not None and not redefines(cls, taken):
                raise ValueError(f"the method name {word!r} is taken by {taken.__name__}")
        _METHODS[name] = cls
        _ALIASES.update(dict.fromkeys(others, name))
        return cls

    return add


def available() -> tuple[str, ...]:
    """Names of all registered methods, the cheapest inputs first; aliases left out."""
    costs = get_args(Needs)
    return tuple(sorted(_METHODS, key=lambda name: costs.index(_METHODS[name].needs)))


def aliases() -> dict[str, str]:
    """Other names of methods -> the names."""
    return dict(_ALIASES)


def find(name: str | type[SMTO]) -> type[SMTO]:
    """The class of a method; ValueError for an unknown name."""
    return _find(name)[1]


def _find(name: str | type[SMTO]) -> tuple[str, type[SMTO]]:
    if isinstance(name, type):  # a method of the caller's own, registered or not
        return name.__name__, name
    name = _ALIASES.get(name, name)
    if name not in _METHODS:
        raise ValueError(f"unknown method {name!r}; available: {', '.join(available())}")
    return name, _METHODS[name]


def _defaults(cls: type[SMTO]) -> dict[str, Any]:
    """All options of a method: those of its constructor, and `ema` if it has weights that vary."""
    own = _own_options(cls)
    has_weights = cls.weights is not SMTO.weights and not cls.compilable
    return dict(sorted((({"ema": 0.0} if has_weights else {}) | own).items()))


def _own_options(cls: type[SMTO]) -> dict[str, Any]:
    """Keyword options of the constructor, base classes' included where it passes them on."""
    options: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        start = base.__init__  # type: ignore[misc]  # classes are safe here
        options = options_in(start, f"method {base.__name__}") | options
        parameters = inspect.signature(start).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return options


def describe(name: str | type[SMTO]) -> Method:
    """Everything a listing of methods shows; `name` may be an alias, or a class."""
    name, cls = _find(name)
    return Method(
        name,
        tuple(alias for alias, of in aliases().items() if of == name),
        cls.needs,
        cls.wants_positive_losses,
        _defaults(cls),
        (inspect.getdoc(cls) or "").split("\n")[0],
    )


def create(name: str | type[SMTO], num_tasks: int, **options: Any) -> SMTO:
    """A fresh instance; ValueError for an unknown name or option, listing the valid ones.

    A class instead of a name: a method that is not in the registry."""
    name, cls = _find(name)
    allowed = _defaults(cls)
    for option in options:
        if option not in allowed:
            raise ValueError(
                f"method {name!r} has no option {option!r}; valid: {', '.join(allowed) or 'none'}"
            )
    if "ema" in options and "ema" not in _own_options(cls):
        cls = type(cls.__name__, (Averaged, cls), {})
    return cls(num_tasks, **options)


def create_for_run(
    name: str | type[SMTO],
    num_tasks: int,
    options: Mapping[str, Any],
    *,
    seed: int,
    total_steps: int,
) -> SMTO:
    """`create`, with those of `SET_BY_THE_RUN` that the method has; given options come first."""
    known = dict(zip(SET_BY_THE_RUN, (seed, total_steps), strict=True))
    own = {key: value for key, value in known.items() if key in _defaults(find(name))}
    return create(name, num_tasks, **own | dict(options))
