"""`python -m mtrl.commands.child PARENT_PID train|resume ...`: `mtrl` that ends with its parent.

A run whose sweep is killed is asked by the kernel to stop (SIGTERM): it saves at its next
episode end and leaves nothing behind; the next `mtrl sweep` resumes it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    parent, *arguments = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != int(parent):  # it died before we asked
        raise SystemExit(128 + signal.SIGTERM)

    from mtrl.commands.main import main as mtrl

    sys.argv = ["mtrl", *arguments]  # what environment.json records
    mtrl(arguments)


if __name__ == "__main__":
    main()
