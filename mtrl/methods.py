"""The methods a configuration names: do they exist, and do their options?"""

from __future__ import annotations

from typing import Any

from mtrl.config import Config, Loss
from mtrl.plugins import load_plugins
from mtrl.schema import ConfigError, coerce, describe_type, flatten, nearest
from mtrl.smto import available, create, describe
from mtrl.smto.base import is_compilable

LOSSES: tuple[Loss, ...] = ("critic", "actor", "temperature")
SET_BY_THE_RUN = ("seed", "device", "total_steps")


def method_options(name: str) -> dict[str, Any]:
    """{option: default} of a method, without those that the run itself sets."""
    options = describe(name).options
    return {key: value for key, value in options.items() if key not in SET_BY_THE_RUN}


def check_methods(config: Config) -> Config:
    """Load the plug-ins and raise ConfigError for a method or option that does not exist.

    -> the configuration, plug-ins with absolute paths.
    """
    config = load_plugins(config)
    values = flatten(config)

    def need(condition: bool, key: str, allowed: str) -> None:
        if not condition:
            raise ConfigError(key, values[key], allowed)

    known = [word for name in available() for word in (name, *describe(name).aliases)]
    for loss in LOSSES:
        smto, own = config.smto_of(loss), getattr(config.agent, f"{loss}_smto")
        source = "agent.smto" if own.name is None else f"agent.{loss}_smto"
        need(
            smto.name in known,
            f"{source}.name",
            f"must be one of {', '.join(available())}{nearest(smto.name, known)}",
        )
        source = f"agent.{loss}_smto.options" if own.options else "agent.smto.options"
        defaults = method_options(smto.name)
        for key, value in smto.options.items():
            if key not in defaults:
                raise ConfigError(
                    f"{source}.{key}",
                    value,
                    f"method {smto.name} has no such option; it has: "
                    f"{', '.join(defaults) or 'none'}{nearest(key, defaults)}",
                )
            kind = _kind(defaults[key])
            try:
                coerce(value, kind)
            except ValueError:
                raise ConfigError(
                    f"{source}.{key}", value, f"must be {describe_type(kind)}"
                ) from None
        try:
            run = {"total_steps": max(config.total_updates, 1)}
            set_by_run = {k: v for k, v in run.items() if k in describe(smto.name).options}
            create(smto.name, config.num_tasks, **set_by_run, **smto.options)
        except ValueError as error:
            raise ConfigError(source, smto.options, f"method {smto.name}: {error}") from None
        need(
            config.learner.compile != "on" or loss == "temperature" or is_compilable(smto.name),
            "learner.compile",
            f"method {smto.name} cannot be compiled; use auto or off",
        )
    return config


def _kind(default: Any) -> Any:
    """The type of an option, by its default."""
    if isinstance(default, tuple | list):
        return tuple[float, ...]
    return type(default) if isinstance(default, bool | int | float | str) else Any
