"""The folder of what can always be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`MTRL_CACHE`, else the user's cache folder; an empty variable counts as none."""
    if chosen := os.environ.get("MTRL_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mtrl")
