"""The methods a configuration names: do they exist, and do their options?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtrl.config import Config, Loss
from mtrl.options.plugins import load_plugins
from mtrl.schema import ConfigError, coerce, describe_type, nearest
from mtrl.smto import SMTO, available, create, describe

LOSSES: tuple[Loss, ...] = ("critic", "actor", "temperature")
SET_BY_THE_RUN = ("seed", "device", "total_steps")


def method_options(name: str | type[SMTO]) -> dict[str, Any]:
    """{option: default} of a method, without those that the run itself sets."""
    options = describe(name).options
    return {key: value for key, value in options.items() if key not in SET_BY_THE_RUN}


def check_methods(config: Config) -> Config:
    """Load the plug-ins and raise ConfigError for a method or option that does not exist.

    -> the configuration, plug-ins with absolute paths.
    """
    config = load_plugins(config)
    for loss in LOSSES:
        smto, own = config.smto_of(loss), getattr(config.agent, f"{loss}_smto")
        source = "agent.smto" if own.name is None else f"agent.{loss}_smto"
        options_source = f"agent.{loss}_smto.options" if own.options else "agent.smto.options"
        check_method(
            smto.name,
            smto.options,
            f"{source}.name",
            options_source,
            config.num_tasks,
            config.total_updates,
        )
    return config


def check_method(
    name: str,
    options: Mapping[str, Any],
    name_key: str,
    options_key: str,
    num_tasks: int,
    total_updates: int,
    own: Mapping[str, type[SMTO]] | None = None,
) -> None:
    """ConfigError, at one of the two keys, unless there is such a method with such options.

    own: the caller's methods that are not in the registry.
    """
    own = own or {}
    names = (*available(), *own)
    known = [
        *own,
        *(word for method in available() for word in (method, *describe(method).aliases)),
    ]
    if name not in known:
        allowed = f"must be one of {', '.join(names)}{nearest(name, known)}"
        raise ConfigError(name_key, name, allowed)
    method = own.get(name, name)
    defaults = method_options(method)
    for key, value in options.items():
        if key not in defaults:
            raise ConfigError(
                f"{options_key}.{key}",
                value,
                f"method {name} has no such option; it has: "
                f"{', '.join(defaults) or 'none'}{nearest(key, defaults)}",
            )
        kind = _kind(defaults[key])
        if not _is_of(value, kind):
            raise ConfigError(f"{options_key}.{key}", value, f"must be {describe_type(kind)}")
    try:
        run = {"total_steps": max(total_updates, 1)}
        set_by_run = {k: v for k, v in run.items() if k in describe(method).options}
        create(method, num_tasks, **set_by_run, **options)
    except ValueError as error:
        raise ConfigError(options_key, dict(options), f"method {name}: {error}") from None


def _is_of(value: Any, kind: Any) -> bool:
    """Whether an option, which is handed on as it is, is of this type already."""
    try:
        plain = tuple(value) if isinstance(value, list) else value
        return kind is Any or bool(coerce(value, kind) == plain)
    except ValueError:
        return False


def _kind(default: Any) -> Any:
    """The type of an option, by its default."""
    if isinstance(default, tuple | list):
        return tuple[float, ...]
    return type(default) if isinstance(default, bool | int | float | str) else Any
