"""All networks of an agent."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtrl.config import Config
from mtrl.networks.layers import TaskTable
from mtrl.networks.make import make_encoder, make_networks
from mtrl.networks.paco import Divergence
from mtrl.networks.policy import DeterministicPolicy
from mtrl.networks.values import Value


class ActorCritic:
    """Encoder, actor, critics, target critics, and the policy, which shares encoder and actor."""

    def __init__(
        self,
        config: Config,
        observation_dim: int,
        action_dim: int,
        value: Value,
        device: torch.device,
    ) -> None:
        self.encoder = make_encoder(config, observation_dim).to(device)
        self._seed = config.seed
        self._new = partial(
            make_networks, config, self.encoder.output_dim, action_dim, value, device
        )
        self.actor, self.critic = self._new(config.seed)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.policy = DeterministicPolicy(self.encoder, self.actor)
        self.named: dict[str, nn.Module] = {
            "encoder": self.encoder,
            "actor": self.actor,
            "critic": self.critic,
            "target_critic": self.target_critic,
        }
        """By their keys in a checkpoint."""
        self._divergence = Divergence.of(self.actor, self.critic, self.target_critic)
        self._table: TaskTable | None = self.critic.table
        self.copy_codes()

    def copy_codes(self) -> None:
        """The actor is given the task codes that the critic has learned."""
        if self._table is not None:
            self.encoder.codes.copy_(F.normalize(self._table.rows.detach()[0, :, 0], dim=-1))

    def diverged(self, critic_losses: Tensor) -> Tensor | None:
        """Tasks [task] to be left out of an update; None: these networks restart no task."""
        return None if self._divergence is None else critic_losses > self._divergence.limit

    def restart(self, diverged: Tensor | None, generator: torch.Generator) -> None:
        """These tasks start again from the others."""
        if self._divergence is not None and diverged is not None:
            self._divergence.restart(diverged, generator)

    def renew(self, step: int) -> None:
        """New weights in place, other ones for each step 1, 2, ..."""
        actor, critic = self._new(self._seed + 1_000_003 * step)
        self.actor.load_state_dict(actor.state_dict())
        for network in (self.critic, self.target_critic):
            network.load_state_dict(critic.state_dict())
        self.copy_codes()
