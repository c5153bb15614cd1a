"""Which versions of Meta-World and MuJoCo the fast step is for."""

from __future__ import annotations

import functools
import warnings
from importlib import metadata

VERIFIED = {"metaworld": ("3.1.1",), "mujoco": ("3.3.0",)}
"""Versions compared with upstream; run bench/verify_simulation.py before adding one."""


@functools.cache
def is_verified() -> bool:
    """Whether the installed versions are ones that were verified; warns once if they are not."""
    found = {name: metadata.version(name) for name in VERIFIED}
    if all(found[name] in versions for name, versions in VERIFIED.items()):
        return True
    warnings.warn(
        "the fast Meta-World step is verified for "
        + ", ".join(f"{name} {'/'.join(versions)}" for name, versions in VERIFIED.items())
        + f", not for {', '.join(f'{name} {version}' for name, version in found.items())}: "
        "using Meta-World's own, slower step",
        stacklevel=2,
    )
    return False
