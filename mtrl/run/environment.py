"""What ran a run: versions, machine, state of the code."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

MACHINE = ("cpu", "cores", "gpu")
"""What times depend on."""


def environment() -> dict[str, Any]:
    """Versions, machine and code state, to tell later what produced a run."""
    import torch  # late: the simulation workers start before

    versions = {}
    for name in ("mtrl-smto", "torch", "metaworld", "mujoco", "gymnasium", "numpy", "tensorboard"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(
                ["git", "-C", str(Path(__file__).parent), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            ).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            return ""

    # Installed below a repository of the user's own, it is not that repository's code.
    ours = bool(git("ls-files", ":/mtrl/run/environment.py"))
    cuda = torch.cuda.is_available()
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "versions": versions,
        "git_commit": git("rev-parse", "HEAD") if ours else "",
        "git_diff": git("diff", "HEAD") if ours else "",
    }


def processor() -> str:
    """Its name, as the system has it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
