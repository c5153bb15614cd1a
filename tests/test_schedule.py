"""When networks are reset."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mtrl.config import AgentConfig
from mtrl.gradients.schedule import reset_due


@given(st.integers(1, 50), st.integers(0, 12), st.integers(40, 400))
def test_resets_cut_a_run_into_equal_parts(envs: int, resets: int, vector_steps: int) -> None:
    total, config = envs * vector_steps, AgentConfig(resets=resets)
    due = [
        (step, number)
        for step in range(envs, total + envs, envs)
        if (number := reset_due(config, step - envs, step, total)) is not None
    ]
    assert [number for _, number in due] == list(range(1, resets + 1))
    places = [0, *(step for step, _ in due), total]
    parts = [b - a for a, b in itertools.pairwise(places)]
    assert max(parts) - min(parts) <= envs, "but for whole vector steps"
