"""What an environment says of its success."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


class TaskError(ValueError):
    """An environment says what cannot be; one line that names its task."""


def is_solved(task_name: str, info: Mapping[str, Any]) -> bool:
    """`info["success"]` or `info["is_success"]`; not solved where there is neither, or None.

    Raises TaskError where that is no finite number.
    """
    for key in ("success", "is_success"):
        value = info.get(key)
        if value is None:
            continue
        number = np.asarray(value)
        if number.size != 1 or number.dtype.kind not in "biuf" or not np.isfinite(number).all():
            raise TaskError(
                f"task {task_name}: info[{key!r}] is {value!r}; it must be true, false or a number"
            )
        return bool(number)
    return False
