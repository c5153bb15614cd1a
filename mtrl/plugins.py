"""Methods from a user's own files."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any, TypeVar

from mtrl.schema import ConfigError
from mtrl.smto import available

Configured = TypeVar("Configured", bound=Any)
"""A configuration of any kind that has `plugins`."""

_loaded: dict[Path, tuple[str, ...]] = {}


def load_plugins(config: Configured) -> Configured:
    """Import config.plugins, each once per process; -> the configuration with absolute paths,
    which `resume` and `evaluate` find from anywhere.

    Raises ConfigError for a missing file, a failing import, or a file that registers no method.
    """
    paths = []
    for given in config.plugins:
        path = Path(given).expanduser().resolve()
        if not path.is_file():
            raise ConfigError("plugins", given, f"no such file (looked for {path})")
        if path not in _loaded:
            _loaded[path] = _import(path, given)
        paths.append(str(path))
    return dataclasses.replace(config, plugins=tuple(paths))


def _import(path: Path, given: str) -> tuple[str, ...]:
    """-> names of the methods the file registers."""
    before = set(available())
    name = f"mtrl_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError("plugins", given, "must be a Python file, *.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look it up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else frames and frames[-1].lineno
        where = f", line {line}" if line else ""
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError("plugins", given, f"cannot be imported: {reason}{where}") from error
    names = tuple(name for name in available() if name not in before)
    if not names:
        raise ConfigError(
            "plugins", given, 'registers no method; wants a class under @register("name")'
        )
    return names
