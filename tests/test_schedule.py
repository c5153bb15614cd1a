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
    steps = range(0, total + envs, envs)
    due = [step for step in steps if reset_due(config, step - envs, step, total)]
    assert len(due) == resets
    places = [0, *due, total]
    parts = [b - a for a, b in itertools.pairwise(places)]
    assert max(parts) - min(parts) <= envs, "but for whole vector steps"
