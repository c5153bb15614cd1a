"""Methods, networks and environments from a user's own files."""

from __future__ import annotations

import dataclasses
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

import gymnasium

from mtrl.envs.rendering import without_renderer
from mtrl.files.python_files import import_file
from mtrl.networks import available_networks
from mtrl.schema import ConfigError, user_path
from mtrl.smto import available

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
    before = Counter(_registered())
    try:
        with without_renderer():
            import_file(path)
    except Exception as error:  # whatever the user's file raises
        reason = reason_of(error, str(path))
        raise ConfigError("plugins", given, f"cannot be imported: {reason}") from error
    names = tuple(Counter(_registered()) - before)
    if not names:
        raise ConfigError(
            "plugins",
            given,
            'registers no method; needs a class under @register("name"), a network under '
            '@register_network("name"), or an environment by gymnasium.register',
        )
    return names


def reason_of(error: Exception, *paths: str) -> str:
    """One line: kind, message, and the line of the last of these files that it came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in paths]
    line = frames and frames[-1].lineno
    if isinstance(error, SyntaxError) and error.filename in paths:
        line = error.lineno
    where = f", line {line}" if line else ""
    return f"{type(error).__name__}: {error}".splitlines()[0] + where


def _registered() -> tuple[str, ...]:
    """One name may be a method's and a network's, too."""
    return (*available(), *available_networks(), *gymnasium.registry)
