"""Importing a user's own Python file, in any process; needs no torch, as workers do it too."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_imported: set[Path] = set()
_neighbours: dict[Path, dict[str, ModuleType]] = {}
"""{folder: {name: module}} that plug-ins have imported from their folder."""


def import_file(path: Path) -> None:
    """Import a Python file, once per process. Raises ImportError and whatever the file raises.

    As a script's, its imports look in its own folder first.
    """
    path = path.resolve()
    if path in _imported:
        return
    name = f"mtrl_plugin_{path.stem}_{_digest(path)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("must be a Python file, *.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look it up
    with _folder_first(path.parent):
        spec.loader.exec_module(module)
    _imported.add(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:12]


@contextmanager
def _folder_first(folder: Path) -> Iterator[None]:
    """Imports inside look in `folder` first. Afterwards `sys.path` is as before, and what came from
    there is out of the way, so that files of one name in two folders stay apart.
    """
    names = {path.stem for path in folder.glob("*.py")}
    names |= {path.parent.name for path in folder.glob("*/__init__.py")}
    # What Python and mtrl consist of must not be imported a second time.
    names -= {"mtrl", *sys.builtin_module_names, *sys.stdlib_module_names}
    before = _modules(names)
    elsewhere = {name: module for name, module in before.items() if not _is_in(folder, module)}
    for name in elsewhere:
        del sys.modules[name]
    sys.modules.update(_neighbours.get(folder, {}))
    importable = any(Path(entry).resolve() == folder for entry in sys.path)  # without us, too
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()  # files may have been written just now
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        kept = before.keys() - elsewhere.keys()
        own = {
            name: module
            for name, module in _modules(names).items()
            if name not in kept and (name in elsewhere or not importable)
        }
        _neighbours.setdefault(folder, {}).update(own)
        for name, module in own.items():
            del sys.modules[name]
            # The name by which torch.compile finds the globals of a function in it.
            module.__name__ = f"mtrl_plugin_{name}_{_digest(folder)}"
            sys.modules[module.__name__] = module
        sys.modules.update(elsewhere)


def _modules(names: set[str]) -> dict[str, ModuleType]:
    """What is imported of these top-level names, with their submodules."""
    return {name: m for name, m in list(sys.modules.items()) if name.partition(".")[0] in names}


def _is_in(folder: Path, module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and folder in Path(file).resolve().parents
