"""Which library MuJoCo renders with on a machine without a screen.

MuJoCo reads MUJOCO_GL when it is first imported, and cannot be imported where that names what this
machine does not have. What only simulates therefore imports it `without_renderer`.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DISABLED = "disabled"
"""MUJOCO_GL where nothing is drawn."""

PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(mujoco.MjData(model))
renderer.render()
"""
ADVICE = {
    "egl": "EGL needs libEGL (Debian: libegl1) and a GPU driver or Mesa (libgl1-mesa-dri)",
    "osmesa": "OSMesa needs libOSMesa (Debian: libosmesa6)",
}


class RenderingError(RuntimeError):
    """This machine cannot render; says what was tried and what is missing."""


@functools.cache
def choose_renderer() -> str:
    """What MuJoCo renders with here, without a screen: egl (GPU), else osmesa (CPU).

    MUJOCO_GL, where the user has set it, is tried first. Each is tried in a process of its own.
    Raises RenderingError if none works.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    candidates = [wanted] if wanted in ("glfw", "glx") else []
    candidates += sorted(ADVICE, key=lambda name: name != wanted)
    reasons = []
    for name in candidates:
        tried = subprocess.run(
            [sys.executable, "-c", PROBE],
            env=os.environ | {"MUJOCO_GL": name},
            capture_output=True,
            text=True,
            check=False,
        )
        if tried.returncode == 0:
            return name
        said = [line for line in tried.stderr.splitlines() if line and line[0] not in " <"]
        reasons.append(f"{name}: {said[-1] if said else f'exit code {tried.returncode}'}")
    raise RenderingError(f"cannot render: {'; '.join(reasons)}. {'; '.join(ADVICE.values())}")


@contextmanager
def without_renderer() -> Iterator[None]:
    """`import mujoco` works inside, for simulation, whatever MUJOCO_GL says."""
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = DISABLED
    try:
        yield
    finally:
        if before is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = before


def set_up_process(renderer: str) -> None:
    """Let this process, which has not imported MuJoCo yet, draw with `renderer`; or not at all."""
    os.environ["MUJOCO_GL"] = renderer
    if renderer != DISABLED:
        import mujoco  # noqa: F401 - now, since later imports are made `without_renderer`


def make_renderer(model: Any, height: int, width: int) -> Any:
    """`mujoco.Renderer`, also where MuJoCo was imported without one. May raise RenderingError."""
    import mujoco
    from mujoco import gl_context

    imported = getattr(gl_context, "GLContext", None)
    if imported is not None and os.environ.get("MUJOCO_GL"):  # somebody's choice
        return mujoco.Renderer(model, height, width)
    library = choose_renderer().replace("glx", "glfw")  # two names of one
    gl_context.GLContext = importlib.import_module(f"mujoco.{library}").GLContext
    try:
        return mujoco.Renderer(model, height, width)
    finally:
        if imported is None:
            del gl_context.GLContext
        else:
            gl_context.GLContext = imported
