"""What a user's own method or network gives at first: a line that names what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mtrl.smto.base import SMTO


class Unusable(ValueError):
    """The message names class and method, what they gave, and what they must give."""


def wrong_with(found: Any, shape: tuple[int, ...], like: Tensor, *, dtype: bool = False) -> str:
    """What is wrong with `found` as a finite tensor of this shape, on the device of `like`; '' if
    nothing is. dtype: of its dtype, too."""
    if not isinstance(found, Tensor):
        return f"a {type(found).__name__}"
    if found.shape != shape:
        return f"a tensor of shape {list(found.shape)}"
    if found.is_complex() or (dtype and found.dtype != like.dtype):
        return f"numbers of type {str(found.dtype).removeprefix('torch.')}"
    if found.device != like.device:
        return f"a tensor on {found.device} instead of {like.device}"
    if not (bad := ~found.isfinite()).any():
        return ""
    kind = "NaN" if found.isnan().any() else "infinite values"
    return f"{kind} in {int(bad.sum()):,} of {bad.numel():,} numbers"


@contextmanager
def checked(smto: SMTO) -> Iterator[None]:
    """Inside the block, Unusable where the method gives something that no update can use."""

    def gives(name: str, what: str, found: Any, shape: tuple[int, ...], like: Tensor) -> None:
        if wrong := wrong_with(found, shape, like):
            raise Unusable(
                f"{type(smto).__name__}.{name} gave {wrong}, must give finite {what} = "
                f"{list(shape)}"
            )

    weights, direction = smto.weights, smto.direction

    def checked_weights(*, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        found = weights(losses=losses, gramian=gramian)
        like = losses if losses is not None else gramian
        assert like is not None
        gives("weights", "weights [task]", found, (smto.num_tasks,), like)
        return found

    def checked_direction(jacobian: Tensor, losses: Tensor) -> Tensor:
        found = direction(jacobian, losses)
        gives("direction", "direction [parameter]", found, (jacobian.shape[1],), jacobian)
        return found

    own = vars(smto)  # before the class's methods, as long as they are there
    own.update(weights=checked_weights, direction=checked_direction)
    try:
        yield
    finally:
        del own["weights"], own["direction"]
