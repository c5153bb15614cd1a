"""How much memory there is, and how much was used."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from mtrl.files.errors import first_line

CGROUP = Path("/sys/fs/cgroup")


def memory_error(error: BaseException) -> str:
    """What PyTorch says where memory does not suffice, in a line; '' for any other error."""
    if isinstance(error, torch.OutOfMemoryError):  # CUDA's
        return first_line(error)
    _, found, text = str(error).partition("DefaultCPUAllocator: ")
    return text.splitlines()[0] if isinstance(error, RuntimeError) and found else ""


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`; on the CPU, container limits count."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no limit ("max"), or no cgroup v2
        limit, used = (int((CGROUP / f"memory.{x}").read_text()) for x in ("max", "current"))
        lines = (CGROUP / "memory.stat").read_text().splitlines()
        said = dict(line.split() for line in lines)
        # Of the files read and written lately, what the system gives up when asked for memory.
        free = min(free, limit - used + int(said.get("inactive_file", 0)))
    return int(free)


def peak_memory_mib(device: torch.device) -> float:
    """Most memory of this process so far, MiB: tensors on a CUDA device, else resident pages.

    VmHWM, because getrusage's ru_maxrss counts a parent's pages too where one forked.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # no /proc here
        return math.nan


def forget_peak_memory(device: torch.device) -> None:
    """So that `peak_memory_mib` counts from now; OSError where the system has no such thing."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def snapshot(state: Any) -> Any:
    """A copy on the CPU that later training leaves alone; of views, only what they show."""
    if isinstance(state, Tensor):
        return torch.empty(state.shape, dtype=state.dtype).copy_(state.detach())
    if isinstance(state, dict):
        return {key: snapshot(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(snapshot(value) for value in state)
    return state
