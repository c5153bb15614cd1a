"""Importing a user's own Python file, in any process; needs no torch, as workers do it too."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_imported: set[Path] = set()


def import_file(path: Path) -> None:
    """Import a Python file, once per process. Raises ImportError and whatever the file raises."""
    if path in _imported:
        return
    name = f"mtrl_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("must be a Python file, *.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look it up
    spec.loader.exec_module(module)
    _imported.add(path)
