"""The methods and the network that a configuration names: do they exist, and their options?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from mtrl.config import LOSSES, Config
from mtrl.envs import tasks as env_tasks
from mtrl.files.user_code import file_of, is_own
from mtrl.networks import available_networks, describe_network
from mtrl.networks.make import make_encoder, make_networks
from mtrl.networks.registry import DEFAULT
from mtrl.networks.values import create_value
from mtrl.options.plugins import load_plugins, reason_of
from mtrl.schema import ConfigError, coerce, describe_type, nearest, user_path
from mtrl.smto import SMTO, available, describe
from mtrl.smto.registry import SET_BY_THE_RUN, aliases, create_for_run, find


def method_options(name: str | type[SMTO]) -> dict[str, Any]:
    """{option: default} of a method, without those that the run itself sets."""
    options = describe(name).options
    return {key: value for key, value in options.items() if key not in SET_BY_THE_RUN}


def check_methods(config: Config) -> Config:
    """Load the plug-ins and raise ConfigError for a method, a network or an option that does not
    exist.

    -> the configuration, plug-ins and files of the network with absolute paths.
    """
    config = check_network(load_plugins(config))
    common = config.agent.smto
    check_name(common.name, "agent.smto.name")
    for loss in LOSSES:
        smto, own = config.smto_of(loss), getattr(config.agent, f"{loss}_smto")
        key = f"agent.{loss}_smto"
        check_name(smto.name, f"{key}.name")
        options_key = f"{key}.options"
        if loss != "temperature" and find(smto.name) is find(common.name):
            if smto.name != common.name:
                same = f"is {common.name}, which agent.smto.name has; must be written like it"
                raise ConfigError(f"{key}.name", smto.name, same)
            known = method_options(common.name)
            _check_options(f"method {common.name}", common.options, known, "agent.smto.options")
            if not own.options:
                options_key = "agent.smto.options"
        name_key = "agent.smto.name" if own.name is None else f"{key}.name"
        updates = config.updates_of(loss)
        check_method(smto.name, smto.options, name_key, options_key, config.num_tasks, updates)
    return config


def check_name(name: str, key: str, own: Mapping[str, type[SMTO]] | None = None) -> None:
    """ConfigError unless there is such a method. own: beside those of the registry."""
    known = [*(own or ()), *available(), *aliases()]
    if name not in known:
        names = ", ".join((*available(), *(own or ())))
        raise ConfigError(key, name, f"must be one of {names}{nearest(name, known)}")


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
    check_name(name, name_key, own)
    method = (own or {}).get(name, name)
    _check_options(f"method {name}", options, method_options(method), options_key)
    try:
        made = create_for_run(method, num_tasks, options, seed=0, total_steps=max(total_updates, 1))
    except ValueError as error:
        raise ConfigError(options_key, dict(options), f"method {name}: {error}") from None
    except Exception as error:  # whatever a user's method raises
        kind = find(method)
        if not is_own(kind):
            raise
        raise ConfigError(
            name_key, name, f"cannot be made: {reason_of(error, file_of(kind))}"
        ) from error
    if not ("_modules" in vars(made) and hasattr(made, "num_tasks")):
        raise ConfigError(name_key, name, "must call super().__init__(num_tasks)")


def _check_options(
    whose: str, options: Mapping[str, Any], defaults: Mapping[str, Any], options_key: str
) -> None:
    """ConfigError for an option that is not among the defaults, or of another type."""
    for key, value in options.items():
        if key not in defaults:
            raise ConfigError(
                f"{options_key}.{key}",
                value,
                f"{whose} has no such option; it has: "
                f"{', '.join(defaults) or 'none'}{nearest(key, defaults)}",
            )
        kind = _kind(defaults[key])
        if not _is_of(value, kind):
            raise ConfigError(f"{options_key}.{key}", value, f"must be {describe_type(kind)}")


def check_network(config: Config) -> Config:
    """ConfigError unless the architecture exists, has these options, and can be made."""
    net = config.network
    name, names = net.architecture, available_networks()
    if name not in names:
        allowed = f"must be one of {', '.join(names)}{nearest(name, names)}"
        raise ConfigError("network.architecture", name, allowed)
    network = describe_network(name)
    _check_options(f"network {name}", net.options, network.options, "network.options")
    for key, body in (("network.body", net.body), ("critic.body", config.critic.body)):
        if body == "residual" and not network.any_body:
            takes = [name for name in names if describe_network(name).any_body]
            allowed = f"is for the networks {' and '.join(takes)}; {name} has layers of its own"
            raise ConfigError(key, body, allowed)
    given = {
        key: str(user_path(value).resolve()) if key in network.files and value else value
        for key, value in net.options.items()
    }
    config = dataclasses.replace(config, network=dataclasses.replace(net, options=given))
    if name != DEFAULT:
        cpu, dims = torch.device("cpu"), env_tasks.dimensions(config.task_names, config.plugins)
        inputs = make_encoder(config, dims[0]).output_dim
        value = create_value(config, cpu)
        try:
            make_networks(config, inputs, dims[1], value, cpu, config.seed)
        except ConfigError:
            raise
        except Exception as error:  # whatever a user's network raises
            if not config.plugins:
                raise
            reason = f"cannot be made: {reason_of(error, *config.plugins)}"
            raise ConfigError("network.architecture", name, reason) from error
    return config


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
