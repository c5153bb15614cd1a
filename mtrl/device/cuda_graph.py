"""Functions as CUDA graphs: acting, storing and the whole update, each in a single launch.

A graph reads and writes the addresses it was captured with, and Python does not run again. What
changes from one call to the next must therefore be a tensor on the device that changes in place:
the networks, log temperatures and observation statistics; moments, step counts and step sizes
(`Optimizer.make_capturable`); the replay's transitions, their number, reward moments and maxima;
the tensors that a multi-task optimiser keeps; the metrics of the log window. Random numbers come
from generators that the graph knows: every replay continues their streams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

from mtrl.files.errors import first_line
from mtrl.smto import SMTO

WARM_UPS = 3  # calls before the capture, in which libraries and buffers come into being

Result = TypeVar("Result")


class Captured(Generic[Result]):
    """A function of nothing but tensors on the device, captured after its first calls.

    Until then, and for good where capturing fails, it is called as it is.
    """

    def __init__(
        self,
        function: Callable[[], Result],
        generators: Sequence[torch.Generator],
        device: torch.device,
        warn: Callable[[str], None],
        *,
        name: str,
    ) -> None:
        """generators: all that the function draws from. name: what a warning calls it."""
        self._function, self._generators = function, generators
        self._device, self._warn, self._name = device, warn, name
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ready_calls = 0
        self._failed = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Result

    @property
    def is_captured(self) -> bool:
        """False: not yet, or not possible."""
        return self._graph is not None

    def __call__(self) -> Result:
        """Once captured, the result is the same tensor each time: the next call writes there."""
        if self._graph is None and self._ready_calls >= WARM_UPS and not self._failed:
            self._capture()
        if self._graph is None:
            return self._function() if self._failed else self._warm_up()
        self._graph.replay()
        return self._result

    def _is_ready(self) -> bool:
        """Whether all calls from here on are alike."""
        return True

    def _warm_up(self) -> Result:
        ready = self._is_ready()
        if self._stream is None:
            result = self._function()
        else:  # PyTorch asks for calls before a capture on a stream beside the default one
            main = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(main)
            with torch.cuda.stream(self._stream):
                result = self._function()
            main.wait_stream(self._stream)
        self._ready_calls = self._ready_calls + 1 if ready else 0
        return result

    def _capture(self) -> None:
        """Record one call without making it."""
        states = [generator.get_state() for generator in self._generators]
        registered: list[torch.Generator] = []
        try:
            graph = torch.cuda.CUDAGraph()
            for generator in self._generators:
                graph.register_generator_state(generator)
                registered.append(generator)
            with torch.cuda.device(self._device), torch.cuda.graph(graph, stream=self._stream):
                result = self._function()
        except RuntimeError as error:  # CUDA's errors too
            self._failed = True
            if self._device.type == "cuda":  # PyTorch does not leave the capture's stream then
                torch.cuda.set_stream(torch.cuda.default_stream(self._device))
            for generator, state in zip(registered, states, strict=False):
                # Nor does it tell the generators that the capture is over: they get a new life.
                fresh = torch.Generator(generator.device)
                fresh.set_state(state)
                generator.graphsafe_set_state(fresh)
            cause = error.__context__ or error  # what invalidated the capture, before it was ended
            reason = first_line(cause)
            self._warn(f"{self._name} could not be captured, continuing without: {reason}")
        else:
            self._graph, self._result = graph, result
            if self._stream is not None:
                # The capture has set the generators' offsets on its stream. The first replay sets
                # them again, on this one, and must not come before.
                torch.cuda.current_stream(self._device).wait_stream(self._stream)


class CapturedUpdate(Captured[Result]):
    """A function that makes one update.

    It cannot be captured while a method of `smtos` is not `capturable`: counters (`update_every`,
    AutoScale while it explores) would stand still in a graph.
    """

    def __init__(
        self,
        update: Callable[[], Result],
        smtos: Sequence[SMTO],
        generators: Sequence[torch.Generator],
        device: torch.device,
        warn: Callable[[str], None],
    ) -> None:
        super().__init__(update, generators, device, warn, name="the update")
        self._smtos = smtos

    def _is_ready(self) -> bool:
        return all(smto.capturable for smto in self._smtos)
