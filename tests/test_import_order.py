"""The rooms of the house: imports point one way, and nothing imports in a circle."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "mtrl"
# What stands further up may import what stands further down. docs/code.md says what each is.
ROOMS = [
    *("__main__", "commands", "tune", "sweep", "supervised", "report", "trainer", "options"),
    *("evaluation", "learner", "collector", "agent", "replay", "temperature", "reward_scale"),
    *("losses", "run", "envs", "gradients", "networks", "device", "smto"),
    *("config", "schema", "files"),
]
FIRST_SHELF = 12


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


def imports(path: Path, known: set[str]) -> Iterator[str]:
    """Modules of ours that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def graph() -> dict[str, set[str]]:
    known = modules()
    return {
        name: {found for found in imports(path, set(known)) if found in known} - {name, "mtrl"}
        for name, path in known.items()
        if name != "mtrl"
    }


def room(module: str) -> str:
    return module.split(".")[1]


def test_imports_point_down() -> None:
    upward = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in others
        if ROOMS.index(room(other)) < ROOMS.index(room(module))
    ]
    assert not upward


def test_nothing_imports_in_a_circle() -> None:
    tuple(TopologicalSorter(graph()).static_order())  # CycleError names the circle


def test_the_first_shelf_is_short() -> None:
    files = [path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")]
    assert len(files) <= FIRST_SHELF
    assert sorted(ROOMS) == sorted({room(module) for module in graph()})


@pytest.mark.parametrize("name", ["mtrl.commands.main", "mtrl.envs.vector", "mtrl.config"])
def test_what_starts_first_imports_no_torch(name: str) -> None:
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_file_stands_in_the_documented_tree() -> None:
    text = (REPOSITORY / "docs/code.md").read_text()
    for path in PACKAGE.rglob("*.py"):
        if path.name.startswith("__") or path.parent.name in ("smto", "fast_metaworld", "kernels"):
            continue
        assert re.search(rf"\b{re.escape(path.name)}", text), f"{path} is not in docs/code.md"
