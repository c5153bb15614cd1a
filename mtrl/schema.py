"""Strict configurations: YAML mappings <-> nested frozen dataclasses, with errors that help."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml


class ConfigError(ValueError):
    """A bad option: says the key, the value and what is allowed, in one line."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key} = {value!r}: {allowed}")


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


def describe_type(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) in (tuple, Sequence):
        return f"a list of {typing.get_args(kind)[0].__name__}"
    if typing.get_origin(kind) is dict:
        return "a mapping of names to values"
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(describe_type(k) for k in typing.get_args(kind))
    return {int: "an integer", float: "a number", bool: "true or false", str: "text"}.get(
        kind, "empty (null)"
    )


def number_or_as_is(value: Any) -> Any:
    """3e-4, which YAML reads as text, as a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def coerce(value: Any, kind: Any) -> Any:
    """`value` as type `kind`, or ValueError. YAML reads 3e-4 as text, so floats accept text."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is Literal:
        if value in args and not isinstance(value, bool):
            return value
    elif origin in (types.UnionType, typing.Union):
        for option in args:
            try:
                return coerce(value, option)
            except ValueError:
                pass
    elif origin in (tuple, Sequence):
        if isinstance(value, list | tuple):
            return tuple(coerce(v, args[0]) for v in value)
    elif origin is dict:
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {key: number_or_as_is(item) for key, item in value.items()}
    elif kind is float:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif kind is type(None):
        if value is None:
            return None
    elif isinstance(value, kind):
        return value
    raise ValueError


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
        return yaml.safe_load(path.read_text())
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

    return yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False)
