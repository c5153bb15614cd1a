"""Compiling the update: whether, and beside the warm-up."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import threading
from typing import NoReturn

import psutil
import torch
from torch import Tensor

from mtrl.agent import Agent
from mtrl.config import Config
from mtrl.replay import Batch
from mtrl.smto.base import is_compilable

COMPILE_FROM = 20_000  # updates of a run that are worth half a minute of compilation


def decide_compile(config: Config, device: torch.device) -> Config:
    """`learner.compile: auto` -> on or off, for this run and this machine."""
    if config.learner.compile != "auto":
        return config
    possible = (
        device.type == "cpu"
        and config.total_updates >= COMPILE_FROM
        and is_compilable(config.smto_of("critic").name)
        and is_compilable(config.smto_of("actor").name)
        and shutil.which(os.environ.get("CXX", "g++")) is not None
    )
    learner = dataclasses.replace(config.learner, compile="on" if possible else "off")
    return dataclasses.replace(config, learner=learner)


class Compilation(threading.Thread):
    """Compiles the agent's update for batches like this one; starts at once.

    A daemon: a run that ends meanwhile, for whatever reason, does not wait for it.
    """

    def __init__(self, agent: Agent, batch: Batch, return_bound: Tensor | None) -> None:
        super().__init__(name="compilation", daemon=True)
        self._work = agent, batch, return_bound
        self.failure = ""
        """First line of the error; the agent then goes on uncompiled."""
        # In this process: a pool of compiler processes is no faster here, and could be left behind.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        self.start()

    def run(self) -> None:
        agent, batch, return_bound = self._work
        try:
            agent.compile(batch, return_bound)
        except Exception as error:  # PyTorch raises many kinds; all mean the same here
            self.failure = (str(error).strip() or type(error).__name__).splitlines()[0]


def exit_now(code: int) -> NoReturn:
    """End this process although a compilation goes on in it, and the compiler with it."""
    sys.stdout.flush()
    sys.stderr.flush()
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(code)
