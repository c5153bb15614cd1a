"""Methods, networks and environments from a user's own files."""

from __future__ import annotations

import dataclasses
import traceback
from pathlib import Path
from typing import Any, TypeVar

import gymnasium

from mtrl.envs.rendering import without_renderer
from mtrl.files.python_files import import_file
from mtrl.networks import available_networks, describe_network
from mtrl.schema import ConfigError, user_path
from mtrl.smto import available
from mtrl.smto.registry import find

Configured = TypeVar("Configured", bound=Any)
"""A configuration of any kind that has `plugins`."""

_loaded: dict[Path, tuple[str, ...]] = {}


def load_plugins(config: Configured) -> Configured:
    """Import config.plugins, each once per process; -> the configuration with absolute paths,
    which `resume` and `evaluate` find from anywhere.

    Raises ConfigError for a missing file, a failing import, or a file that registers nothing.
    """
    paths = []
    for given in config.plugins:
        path = user_path(given).resolve()
        if not path.is_file():
            raise ConfigError(
                "plugins",
                given,
                f"no such file (looked for {path}); if it has moved, name its new place",
            )
        if path not in _loaded:
            _loaded[path] = _import(path, given)
        paths.append(str(path))
    return dataclasses.replace(config, plugins=tuple(paths))


def _import(path: Path, given: str) -> tuple[str, ...]:
    """-> names of the methods, networks and environments that the file registers."""
    before = _registered()
    try:
        with without_renderer():
            import_file(path)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        reason = reason_of(error, str(path))
        raise ConfigError("plugins", given, f"cannot be imported: {reason}") from error
    new = {key for key, thing in _registered().items() if before.get(key) is not thing}
    names = tuple(name for _, name in sorted(new))
    if not names:
        raise ConfigError(
            "plugins",
            given,
            'registers no method; needs a class under @register("name"), a network under '
            '@register_network("name"), or an environment by gymnasium.register',
        )
    return names


def reason_of(error: BaseException, *paths: str) -> str:
    """One line: kind, message, and the line of the last of these files that it came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in paths]
    line = frames and frames[-1].lineno
    if isinstance(error, SyntaxError) and error.filename in paths:
        line = error.lineno
    where = f", line {line}" if line else ""
    return f"{type(error).__name__}: {error}".splitlines()[0] + where


def _registered() -> dict[tuple[str, str], Any]:
    """By kind and name: one name may be a method's and a network's, too."""
    found: dict[tuple[str, str], Any] = {("method", name): find(name) for name in available()}
    found |= {("network", name): describe_network(name).make for name in available_networks()}
    return found | {("environment", name): spec for name, spec in gymnasium.registry.items()}
