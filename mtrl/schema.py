"""Strict configurations: YAML mappings <-> nested frozen dataclasses, with errors that help."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from mtrl.files import yaml12

NOTHING = ("null", "none", "~")
"""How people write that there is no value; in lower case."""
SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""How people write a switch; in lower case."""


class ConfigError(ValueError):
    """A bad option: says the key, the value and what is allowed, in one line."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
        super().__init__(f"{key} = {'null' if value is None else shown}: {allowed}")


class UsageError(ValueError):
    """A wrong command line, in one line."""


@dataclass(frozen=True)
class Bound:
    """What a field's numbers may be, said beside its type: `Annotated[float, within("[0, 1)")]`.

    Words that the type allows beside numbers (auto, None) are allowed.
    """

    allowed: str
    holds: Callable[[float], bool]

    def check(self, key: str, value: Any, kind: Any) -> None:
        """kind: the field's type. ConfigError unless all numbers of the value are within."""
        several = isinstance(value, tuple)
        numbers = value if several else (value,)
        if all(self.holds(n) for n in numbers if isinstance(n, int | float)):
            return
        words: list[str] = []
        for option in typing.get_args(kind):
            if option is type(None):
                words.append("None")
            elif typing.get_origin(option) is Literal:
                words += typing.get_args(option)
        allowed = " or ".join((*words, self.allowed))
        raise ConfigError(key, value, f"{'all must' if several else 'must'} be {allowed}")


POSITIVE = Bound("positive and finite", lambda n: 0 < n < math.inf)
OFF_OR_POSITIVE = Bound("zero (off) or positive", lambda n: n >= 0)
ZERO_OR_POSITIVE = Bound("zero or positive", lambda n: n >= 0)
NOT_NEGATIVE = Bound("zero or positive, and finite", lambda n: 0 <= n < math.inf)


def at_least(low: float, allowed: str = "") -> Bound:
    return Bound(allowed or f"at least {low}", lambda n: n >= low)


def between(low: float, high: float) -> Bound:
    """Ends included."""
    return Bound(f"between {low} and {high}", lambda n: low <= n <= high)


def within(interval: str) -> Bound:
    """[0, 1), (0, 1], ...: a round bracket leaves its end out."""
    low, high = map(float, interval[1:-1].split(","))
    ends = {low: interval[0] == "[", high: interval[-1] == "]"}
    return Bound(f"in {interval}", lambda n: low < n < high or ends.get(n, False))


def check_bounds(options: Any, prefix: str = "") -> None:
    """ConfigError for the first number that is outside the bound beside its field."""
    kinds = typing.get_type_hints(type(options), include_extras=True)
    for item in dataclasses.fields(options):
        key, value, kind = prefix + item.name, getattr(options, item.name), kinds[item.name]
        if dataclasses.is_dataclass(value):
            check_bounds(value, f"{key}.")
        for bound in getattr(kind, "__metadata__", ()):
            if isinstance(bound, Bound):
                bound.check(key, value, kind.__origin__)


def user_path(text: str | Path) -> Path:
    """A path as a user writes it, in a file or on the command line: `~` is the home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~nobody: taken literally, as a shell does
        return Path(text)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known spelling, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.65)
    return f"; did you mean {close[0]!r}?" if close else ""


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dataclasses -> {"agent.smto.name": "pcgrad", ...}."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = value
    return flat


def types_of(cls: Any, prefix: str = "") -> dict[str, Any]:
    """{"agent.smto.name": str, ...} of a dataclass of dataclasses."""
    kinds: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            kinds |= types_of(kind, f"{prefix}{name}.")
        else:
            kinds[prefix + name] = kind
    return kinds


NAMED = ("name", "architecture")
"""The keys that say whose `options` stand beside them."""


def with_values(default: Any, settings: Mapping[str, Any]) -> Any:
    """`default`, a configuration of any kind, with {"agent.smto.name": "pcgrad", ...} set.

    The one way in which configurations are laid over one another: files, command lines, sweeps and
    Python all come here. `options` belong to what their section names: new ones are added to those
    of the same method, and those of another method are dropped. A key may reach into them
    ("agent.smto.options.c"). ConfigError for a key or a value that is not allowed.
    """
    kinds = types_of(type(default))
    data = dataclasses.asdict(default)
    for section in (key.removesuffix(".options") for key in kinds if key.endswith(".options")):
        place = _at(data, section)
        chosen = next(name for name in NAMED if name in place)
        if settings.get(f"{section}.{chosen}", place[chosen]) != place[chosen]:
            place["options"] = {}
    for key, value in settings.items():
        known = next((k for k in kinds if key == k or key.startswith(f"{k}.")), key)
        *sections, name = known.split(".")
        place = data
        for section in sections:  # an unknown one: `build` refuses it by name
            place = place.setdefault(section, {})
        if key != known:
            if not is_mapping(kinds[known]):
                raise ConfigError(key, value, f"{name} has no keys of its own")
            value = {key.removeprefix(f"{known}."): value}
        both = known in kinds and is_mapping(kinds[known]) and isinstance(value, dict)
        place[name] = place[name] | value if both else value
    return build(type(default), data)


def _at(data: Mapping[str, Any], key: str) -> Any:
    return functools.reduce(lambda place, part: place[part], key.split("."), data)


def is_mapping(kind: Any) -> bool:
    return typing.get_origin(kind) is dict


def leaves(content: Any, kind: Any, prefix: str = "") -> dict[str, Any]:
    """What a YAML file for a `kind` of configuration holds: {"agent.smto.name": "pcgrad", ...}."""
    kinds = types_of(kind)
    found: dict[str, Any] = {}
    if not isinstance(content, dict):
        raise ConfigError(prefix.rstrip(".") or "config", content, "must be a mapping")
    for key, value in content.items():
        whole = f"{prefix}{key}"
        is_section = any(known.startswith(f"{whole}.") for known in kinds)
        found |= leaves(value, kind, f"{whole}.") if is_section else {whole: value}
    return found


def describe_type(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(str(word) or "''" for word in typing.get_args(kind))
    if typing.get_origin(kind) in (tuple, Sequence):
        number = "" if (fixed := length(kind)) is None else f"{fixed} "
        return f"a list of {number}{typing.get_args(kind)[0].__name__}"
    if typing.get_origin(kind) is dict:
        return "a mapping of names to values"
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(describe_type(k) for k in typing.get_args(kind))
    return {int: "an integer", float: "a number", bool: "true or false", str: "text"}.get(
        kind, "empty (null)"
    )


def length(kind: Any) -> int | None:
    """Of a tuple of a fixed length; None where any length is allowed."""
    args = typing.get_args(kind)
    return None if typing.get_origin(kind) is not tuple or args[-1] is ... else len(args)


def coerce(value: Any, kind: Any) -> Any:
    """`value` as type `kind`, or ValueError.

    `value` is what YAML 1.2 makes of a word, or the word itself. Switches and missing values may
    be written in each of the usual ways; floats as text.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is Literal:
        return _choose(value, args)
    if origin in (types.UnionType, typing.Union):
        for option in sorted(args, key=lambda option: option is not type(None)):
            try:
                return coerce(value, option)
            except ValueError:
                pass
    elif origin in (tuple, Sequence):
        if isinstance(value, list | tuple) and length(kind) in (None, len(value)):
            return tuple(coerce(v, args[0]) for v in value)
    elif origin is dict:
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return dict(value)
    elif kind is bool:
        if (switch := _switch(value)) is not None:
            return switch
    elif kind is float:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:  # an integer beyond all floats
                raise ValueError from None
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif kind is type(None):
        if _is_nothing(value):
            return None
    elif isinstance(value, kind):
        return value
    raise ValueError


def _choose(value: Any, choices: Sequence[Any]) -> Any:
    """The choice that `value` names: on and off by any word for a switch, none by null."""
    if value in choices and not isinstance(value, bool):
        return value
    meant: tuple[str, ...] = ("none", "")
    if not _is_nothing(value):
        meant = {True: ("on",), False: ("off",), None: ()}[_switch(value)]
    for choice in meant:
        if choice in choices:
            return choice
    raise ValueError


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.lower() in NOTHING)


def _switch(value: Any) -> bool | None:
    """What a word for a switch means; None: it is none."""
    if isinstance(value, str):
        return SWITCH.get(value.lower())
    return value if isinstance(value, bool) else None


def build(cls: Any, data: Any, prefix: str = "") -> Any:
    """A mapping, as YAML gives it, as dataclass `cls`; ConfigError names what does not fit."""
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(
            prefix.rstrip(".") or "config", data, "must be a mapping of keys to values"
        )
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in data.items():
        full = f"{prefix}{key}"
        if key not in hints:
            raise ConfigError(
                full, value, f"unknown key; allowed: {', '.join(hints)}{nearest(str(key), hints)}"
            )
        if dataclasses.is_dataclass(hints[key]):
            values[key] = build(hints[key], value, full + ".")
            continue
        try:
            values[key] = coerce(value, hints[key])
        except ValueError:
            raise ConfigError(full, value, f"must be {describe_type(hints[key])}") from None
    return cls(**values)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; ConfigError if it cannot be read."""
    try:
        return yaml12.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("CONFIG", str(path), f"cannot be read: {error}") from None
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError("CONFIG", str(path), f"is not valid YAML: {problem}") from None


def dump_yaml(config: Any) -> str:
    """The resolved configuration; `build` gives the same object back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return yaml12.dump(plain(dataclasses.asdict(config)))
