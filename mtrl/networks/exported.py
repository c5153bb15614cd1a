"""A trained policy as one file that PyTorch loads without mtrl."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from mtrl.config import Config
from mtrl.files.atomic import replaced
from mtrl.networks.policy import DeterministicPolicy
from mtrl.networks.registry import DEFAULT

METADATA = "mtrl.json"


class ExportedPolicy(nn.Module):
    """Observations [n, obs] and task indices [n] -> actions [n, action] in [-1, 1], float32.

    Observations and indices of any type; an index that no task has is refused.
    """

    def __init__(self, policy: DeterministicPolicy, num_tasks: int, *, by_task: bool) -> None:
        """by_task: the actor knows the task by its index, and acts for every task first."""
        super().__init__()
        self.encoder, self.actor, self.num_tasks = policy.encoder, policy.actor, num_tasks
        self.by_task = by_task

    def forward(self, observations: Tensor, tasks: Tensor) -> Tensor:
        known = ((tasks >= 0) & (tasks < self.num_tasks)).all()
        torch._assert_async(known, f"tasks must be in 0..{self.num_tasks - 1}")
        # Copied into the type: an exported `to` would be fixed to the type of the example.
        observations = torch.zeros(observations.shape).copy_(observations)
        tasks = torch.zeros(tasks.shape, dtype=torch.int64).copy_(tasks)
        # Encoded for every task, [task, n, input]: the encoder needs the task as leading index.
        inputs = self.encoder(observations.expand(self.num_tasks, *observations.shape))
        rows = tasks, torch.arange(tasks.shape[0])
        mean = self.actor(inputs)[0][rows] if self.by_task else self.actor(inputs[rows])[0]
        return torch.tanh(mean)


def export_policy(
    policy: DeterministicPolicy, config: Config, observation_dim: int, action_dim: int, path: Path
) -> None:
    """Write the policy, on the CPU, with `torch.export`; `path` then holds all of it, or is as it
    was.

    With it in the file: METADATA, JSON with the task names in order, dimensions and protocol.
    """
    example = (torch.zeros(2, observation_dim), torch.zeros(2, dtype=torch.int64))
    n = torch.export.Dim("n")
    by_task = config.network.architecture != DEFAULT
    module = ExportedPolicy(policy, config.num_tasks, by_task=by_task).eval()
    program = torch.export.export(
        module.requires_grad_(False),  # for `.numpy()` of the actions
        example,
        dynamic_shapes={"observations": {0: n}, "tasks": {0: n}},
    )
    metadata = {
        "tasks": config.task_names,
        "observation_dim": observation_dim,
        "action_dim": action_dim,
        "method": config.method,
        "protocol": config.protocol_stamp,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()  # PyTorch takes files by certain names alone
    torch.export.save(program, content, extra_files={METADATA: json.dumps(metadata)})
    with replaced(path) as temporary:
        temporary.write_bytes(content.getvalue())
