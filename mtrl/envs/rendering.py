"""Which library MuJoCo renders with on a machine without a screen.

MuJoCo reads MUJOCO_GL when it is first imported, so the choice must stand before that.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys

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

    MUJOCO_GL, where the user has set it, goes first. Each is tried in a process of its own.
    Raises RenderingError if none works.
    """
    wanted = os.environ.get("MUJOCO_GL", "")
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


def import_without_screen() -> None:
    """Let `import mujoco` work for simulation: with a renderer it fails where that fails."""
    os.environ.setdefault("MUJOCO_GL", "disabled")
