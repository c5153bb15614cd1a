"""A trained policy as one file that PyTorch loads without mtrl."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mtrl.agent import Agent
from mtrl.config import Config

METADATA = "mtrl.json"


def export_policy(agent: Agent, config: Config, observation_dim: int, path: Path) -> None:
    """Write the policy of `agent`, on the CPU, with `torch.export`.

    Beside it in the file: METADATA, JSON with the task names in order, dimensions and protocol.
    """
    example = (torch.zeros(2, observation_dim), torch.zeros(2, dtype=torch.int64))
    n = torch.export.Dim("n")
    program = torch.export.export(
        agent.policy.eval(),
        example,
        dynamic_shapes={"observations": {0: n}, "tasks": {0: n}},
    )
    metadata = {
        "tasks": config.task_names,
        "observation_dim": observation_dim,
        "action_dim": agent.action_dim,
        "method": config.method,
        "protocol": config.protocol_stamp,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})
