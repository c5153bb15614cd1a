"""The machine that a benchmark runs on: set up, named, timed, and how much memory a work needs."""

from __future__ import annotations

import ctypes
import gc
import platform
import time
from collections.abc import Callable

import torch

from mtrl.device.memory import forget_peak_memory, peak_memory_mib
from mtrl.device.setup import choose_device


def set_up(device: str, threads: int | None = None) -> torch.device:
    """This process, as that of a run; ConfigError if there is no such device."""
    torch.set_flush_denormal(True)
    if threads:
        torch.set_num_threads(threads)
    return choose_device(device, "--device")


def machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"torch {torch.__version__}, {name}, {torch.get_num_threads()} CPU threads"


def seconds(device: torch.device, work: Callable[[], object], times: int = 1) -> float:
    """Of one work, where several follow each other."""
    started = time.perf_counter()
    for _ in range(times):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / times


def peak_memory(device: torch.device, work: Callable[[], object]) -> float:
    """MiB on top of what is held before it: tensors on a CUDA device, else resident pages."""
    gc.collect()
    if device.type == "cpu":
        ctypes.CDLL(None).malloc_trim(0)
    forget_peak_memory(device)
    held = peak_memory_mib(device)
    work()
    return max(peak_memory_mib(device) - held, 0.0)
