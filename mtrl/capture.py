"""One update as a CUDA graph: from sampling to the target networks in a single launch.

A graph reads and writes the addresses it was captured with, and Python does not run again. What
changes from one update to the next must therefore be a tensor on the device that changes in place:
the networks, log temperatures and observation statistics; moments, step counts and step sizes
(`Optimizer.make_capturable`); the replay's transitions, their number, reward moments and maxima;
the tensors that a multi-task optimiser keeps. Random numbers come from generators that the graph
knows: every replay goes on in their streams.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtrl.smto import SMTO

WARM_UPS = 3  # updates before the capture, in which libraries and buffers come into being


class CapturedUpdate:
    """A function that makes one update, captured as soon as that is possible.

    Until then, and for good where capturing fails, updates are made as they are. An update cannot
    be captured while a step of one of `smtos` changes anything but tensors in place: counters
    (`update_every`, AutoScale while it explores) would stand still in a graph.
    """

    def __init__(
        self,
        update: Callable[[], Tensor],
        smtos: Sequence[SMTO],
        generators: Sequence[torch.Generator],
        device: torch.device,
        warn: Callable[[str], None],
    ) -> None:
        """update: makes one update and returns its metrics. generators: all it draws from."""
        self._update, self._smtos, self._generators = update, smtos, generators
        self._device, self._warn = device, warn
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._equal_steps = 0
        self._failed = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._metrics: Tensor | None = None

    @property
    def is_captured(self) -> bool:
        """False: not yet, or not possible."""
        return self._graph is not None

    def __call__(self) -> Tensor:
        """Make one update; -> its metrics."""
        if self._graph is None and self._equal_steps >= WARM_UPS and not self._failed:
            self._capture()
        if self._graph is None or self._metrics is None:
            return self._update() if self._failed else self._warm_up()
        self._graph.replay()
        return self._metrics.clone()  # the next replay writes there again

    def _warm_up(self) -> Tensor:
        before = [python_state(smto) for smto in self._smtos]
        if self._stream is None:
            metrics = self._update()
        else:  # PyTorch wants the updates before a capture on a stream beside the default one
            main = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(main)
            with torch.cuda.stream(self._stream):
                metrics = self._update()
            main.wait_stream(self._stream)
        equal = before == [python_state(smto) for smto in self._smtos] and None not in before
        self._equal_steps = self._equal_steps + 1 if equal else 0
        return metrics

    def _capture(self) -> None:
        """Record one update without making it."""
        states = [generator.get_state() for generator in self._generators]
        registered: list[torch.Generator] = []
        try:
            graph = torch.cuda.CUDAGraph()
            for generator in self._generators:
                graph.register_generator_state(generator)
                registered.append(generator)
            with torch.cuda.device(self._device), torch.cuda.graph(graph, stream=self._stream):
                metrics = self._update()
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
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            self._warn(f"the update could not be captured, going on without: {reason}")
        else:
            self._graph, self._metrics = graph, metrics


def python_state(smto: SMTO) -> bytes | None:
    """What a graph would freeze of a method: everything but the contents of its tensors.

    Two equal results: nothing has changed but tensors in place. Certificates are only results.
    None: it holds something that cannot be compared.
    """
    file = io.BytesIO()
    attributes = {name: value for name, value in vars(smto).items() if name != "_certificates"}
    try:
        _AddressPickler(file).dump(attributes)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return file.getvalue()


class _AddressPickler(pickle.Pickler):
    """Writes the addresses of tensors instead of their contents."""

    def persistent_id(self, value: object) -> str | None:
        if isinstance(value, Tensor):
            return f"tensor at {value.data_ptr()}"
        return "generator" if isinstance(value, torch.Generator) else None
