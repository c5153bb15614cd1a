"""What a learner keeps in a checkpoint, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtrl.gradients.optimizer import Optimizer
from mtrl.run.checkpoint import check_fit
from mtrl.smto.base import continue_stream


class Kept:
    """Parts with a `state_dict`, tensors that stay in place, and streams of random numbers."""

    def __init__(
        self,
        parts: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        generators: Mapping[str, torch.Generator],
    ) -> None:
        self.parts, self.tensors, self.generators = parts, tensors, generators

    def state_dict(self) -> dict[str, Any]:
        return {
            **{name: part.state_dict() for name, part in self.parts.items()},
            **{name: tensor.detach() for name, tensor in self.tensors.items()},
            **{name: generator.get_state() for name, generator in self.generators.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Raises CheckpointError, before anything is changed, where sizes differ.

        False: the random numbers are others from here on, since the state is from another kind of
        device.
        """
        sized = {
            name: part.state_dict()
            for name, part in self.parts.items()
            if not isinstance(part, Optimizer)  # empty before its first step
        }
        check_fit(sized | dict(self.tensors), state)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        for name, tensor in self.tensors.items():
            tensor.copy_(state[name])
        continued = [continue_stream(g, state[name]) for name, g in self.generators.items()]
        return all(continued)
