"""CARE: encoders that are attended to by what is known of the task."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.networks.layers import Linear
from mtrl.networks.registry import register_network
from mtrl.networks.shape import Shape

RANDOM_WIDTH = 32
"""Of task embeddings that nobody gave."""


@register_network("care", files=("embeddings",))
class Care(nn.Module):
    """Encoders of the state, weighed by attention to an embedding of the task's description
    (Sodhani et al. 2021).

    S. Sodhani, A. Zhang, J. Pineau, "Multi-Task Reinforcement Learning with Context-based
    Representations", section 5. With d_t the fixed embedding of a task's description:

        c_t = C(d_t),   a_t = softmax(A(c_t)),   z = sum_k a_tk E_k(s),   y = F([z, c_t, action])

    C and A have one hidden layer of `context` units, as c_t has; the encoders E_k have two of
    `encoder_width` units and give `features`; F is the network of `network.width`, `network.depth`.
    Nothing belongs to one task alone. The defaults are for MT10; MT50 takes encoders=10.

    embeddings: a JSON file {task name: [numbers]}, all of one length; version suffixes of names
    (`-v2`) may differ from the run's. The paper embeds sentences that describe the tasks by a
    language model (RoBERTa, 768 numbers). Without a file the embeddings are random and fixed: they
    tell tasks apart and nothing else, which the run says.

    In the authors' code (mtrl, 2021) the actor uses the critics' encoders, which the critics alone
    train; here actor and critics have their own. There E_k has one hidden layer and gives 50
    features, C has hidden layers of 100, 50, 50 and 50, A has two, and takes c_t as a constant; the
    example for MT10 has four encoders.
    """

    embeddings: Tensor

    def __init__(
        self,
        shape: Shape,
        *,
        encoders: int = 6,
        encoder_width: int = 50,
        features: int = 64,
        context: int = 50,
        embeddings: str = "",
    ) -> None:
        super().__init__()
        sizes = (encoders, encoder_width, features, context)
        if min(sizes) < 1:
            raise ValueError(
                "encoders, encoder_width, features and context must be at least 1, not "
                + ", ".join(map(str, sizes))
            )
        copies = shape.copies
        self.copies, self.count, self.actions = copies, encoders, shape.actions
        self.is_random = not embeddings
        known = read_embeddings(embeddings, shape.tasks) if embeddings else _random(shape.num_tasks)
        self.register_buffer("embeddings", known)
        self.context = nn.Sequential(
            shape.hidden(known.shape[-1], context, exact=True),
            Linear(context, context, copies=copies),
        )
        self.attention = nn.Sequential(
            shape.hidden(context, context), Linear(context, encoders, copies=copies)
        )
        many = copies * encoders
        self.encoders = nn.Sequential(
            *shape.trunk(shape.inputs - shape.actions, 2, encoder_width, copies=many),
            Linear(encoder_width, features, copies=many, bf16=shape.bf16),
        )
        self.trunk = shape.trunk(features + context + shape.actions, shape.depth)
        self.head = shape.head(shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """[task, sample, inputs] -> [copies, task, sample, outputs]"""
        states = x[..., : x.shape[-1] - self.actions]
        actions = x[..., x.shape[-1] - self.actions :]
        context = self.context(self.embeddings[:, None].expand(self.copies, -1, -1, -1))
        attention = torch.softmax(self.attention(context), dim=-1)
        attention = attention.movedim(-1, 1)[..., None]  # [copies, encoder, task, 1, 1]
        encoded = self.encoders(states.expand(self.copies * self.count, *states.shape))
        encoded = (attention * encoded.unflatten(0, (self.copies, self.count))).sum(1)
        context = context.expand(-1, -1, x.shape[1], -1)
        joint = torch.cat([encoded, context, actions.expand(self.copies, *actions.shape)], dim=-1)
        outputs: Tensor = self.head(self.trunk(joint))
        return outputs

    def warnings(self) -> list[str]:
        if not self.is_random:
            return []
        return [
            "network care has no task embeddings (network.options embeddings=FILE): it uses "
            "random ones, which know nothing of the tasks"
        ]


def _random(num_tasks: int) -> Tensor:
    """The same for actor and critics, and for every seed: they stand for given ones."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_tasks, RANDOM_WIDTH, generator=generator) / math.sqrt(RANDOM_WIDTH)


def read_embeddings(path: str, tasks: tuple[str, ...]) -> Tensor:
    """[task, width] from a JSON file {task: [numbers]}; ValueError says what is wrong with it."""
    try:
        content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"embeddings {path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"embeddings {path} must be a mapping of task names to lists of numbers")
    by_stem = {_stem(name): values for name, values in content.items()}
    rows: list[Tensor] = []
    for task in tasks:
        values = content.get(task, by_stem.get(_stem(task)))
        if values is None:
            raise ValueError(f"embeddings {path} have none for task {task}")
        try:
            row = torch.tensor(values, dtype=torch.float32)
        except (TypeError, ValueError):
            row = torch.empty(0)
        if row.dim() != 1 or not len(row) or not row.isfinite().all():
            raise ValueError(f"embeddings {path}: task {task} needs a list of finite numbers")
        if rows and len(row) != len(rows[0]):
            raise ValueError(
                f"embeddings {path}: {len(row)} numbers for task {task}, but {len(rows[0])} "
                f"for {tasks[0]}"
            )
        rows.append(row)
    return torch.stack(rows)


def _stem(name: str) -> str:
    return re.sub(r"-v\d+$", "", name)
