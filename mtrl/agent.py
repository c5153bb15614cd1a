"""Multi-task Soft Actor-Critic: batch -> losses per task -> SMTO -> Adam -> target networks.

One fully shared actor and one ensemble of critics for all tasks. The update never waits for the
device: metrics come back as detached tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtrl import losses
from mtrl.config import Config, Loss
from mtrl.device.compiled import compiled
from mtrl.gradients.buffer import Buffer
from mtrl.gradients.objective import Objective, create_smto
from mtrl.gradients.optimizer import Optimizer
from mtrl.networks.critic import move_target
from mtrl.networks.exploration import Exploration
from mtrl.networks.layers import TaskTable
from mtrl.networks.make import make_encoder, make_networks
from mtrl.networks.paco import Divergence, leave_out
from mtrl.networks.policy import DeterministicPolicy
from mtrl.networks.values import create_value
from mtrl.replay import Batch
from mtrl.run.earlier_checkpoints import upgraded
from mtrl.run.kept import Kept
from mtrl.smto import RandomSMTO
from mtrl.temperature import Temperature


class Metrics(NamedTuple):
    """Per task [task], detached, on the learner's device."""

    critic_loss: Tensor
    actor_loss: Tensor
    alpha: Tensor
    entropy: Tensor
    value: Tensor
    critic_weight: Tensor
    actor_weight: Tensor
    critic_grad_norm: Tensor
    """Of the whole direction, so the same for every task."""
    actor_grad_norm: Tensor


class Agent:
    def __init__(
        self, config: Config, observation_dim: int, action_dim: int, device: torch.device
    ) -> None:
        self.config, self.device, self._seed = config.agent, device, config.seed
        self.num_tasks, self.action_dim = config.num_tasks, action_dim
        self.envs_per_task = config.train.envs_per_task
        self.value = create_value(config, device)
        self.encoder = make_encoder(config, observation_dim).to(device)
        self._new_networks = partial(
            make_networks, config, self.encoder.output_dim, action_dim, self.value, device
        )
        actor, critic = self._new_networks(config.seed)
        self.target_critic = copy.deepcopy(critic).requires_grad_(False)
        self._move_target = move_target
        self._divergence = Divergence.of(actor, critic, self.target_critic)
        self._table: TaskTable | None = critic.table
        self._copy_codes()
        self.policy = DeterministicPolicy(self.encoder, actor)

        settings = config.agent
        learning: dict[str, Any] = {
            "buffer": Buffer(),  # critic and actor take turns
            "chunk_size": settings.chunk_size,
            "max_grad_norm": settings.max_grad_norm,
        }
        self.critic = Objective(
            critic,
            self.critic_inputs,
            self._critic_loss,
            create_smto(config, "critic", device),
            Optimizer(critic.parameters(), settings.critic_lr, settings),
            **learning,
        )
        self.actor = Objective(
            actor,
            self.actor_inputs,
            self._actor_loss,
            create_smto(config, "actor", device),
            Optimizer(actor.parameters(), settings.actor_lr, settings, l2=settings.actor_l2),
            **learning,
        )
        self.temperature = Temperature(
            settings,
            self.num_tasks,
            -settings.target_entropy_scale * action_dim,
            create_smto(config, "temperature", device),
            device,
        )
        self.parts: dict[Loss, Objective | Temperature] = {
            "critic": self.critic,
            "actor": self.actor,
            "temperature": self.temperature,
        }
        """What learns, by its loss: each has an SMTO and an optimiser."""
        self.moved = False
        """Whether the state loaded last is from another kind of device."""
        self.gramians: dict[str, Tensor] = {}
        """{loss: [task, task]} of the last update that was asked for them."""
        self._of_actor = torch.zeros(5, self.num_tasks, device=device)
        """Metrics of its last update: loss, entropy, value, weight, gradient norm."""
        # Separate streams: exploration must not depend on the number of updates.
        lanes = (self.num_tasks, self.envs_per_task, action_dim)
        self.exploration = Exploration(lanes, config.seed + 1, settings.noise_repeat, device)
        self.generator = torch.Generator(device).manual_seed(config.seed + 2)
        self._kept = Kept(
            {
                "encoder": self.encoder,
                "actor": actor,
                "critic": critic,
                "target_critic": self.target_critic,
                "value": self.value,
                "noise": self.exploration,
                **{f"{loss}_smto": part.smto for loss, part in self.parts.items()},
                **{f"{loss}_optimizer": part.optimizer for loss, part in self.parts.items()},
            },
            {"log_alpha": self.temperature.log_alpha, "of_actor": self._of_actor},
            {"exploration": self.exploration.generator, "generator": self.generator},
        )

    # -- acting ---------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, observations: Tensor, *, deterministic: bool = False) -> Tensor:
        """Observations [task, ..., obs] on the device -> actions [task, ..., action] in [-1, 1]."""
        if deterministic:
            actions: Tensor = self.policy(observations)
            return actions
        mean, log_std = self.actor.network(self.encoder(observations))
        noise = self.exploration.noise(mean.shape)
        # As `sample_action`, without the log-probability.
        return torch.addcmul(mean, log_std.exp(), noise).tanh()

    # -- learning -------------------------------------------------------------------------------

    def update(
        self,
        batch: Batch,
        return_bound: Tensor | None = None,
        *,
        actor: bool = True,
        gramians: bool = False,
    ) -> Metrics:
        """One step of critic, actor, temperature and target critic, in this order.

        return_bound [task]: upper clip of the Q targets, if target clipping is on.
        actor: False leaves out actor and temperature, whose metrics are the last update's then.
        gramians: leave the Gramians of both losses in `self.gramians`; changes nothing else.
        """
        alpha = self.temperature.alpha()
        next_noise = _noise(batch.actions.shape, self.generator)
        noise = _noise(batch.actions.shape, self.generator)

        critic = self.critic.step(batch, next_noise, alpha, return_bound, gramian=gramians)
        self.value.follow(critic.auxiliary, (self.critic.network, self.target_critic))
        self._copy_codes()
        if gramians and critic.gramian is not None:
            self.gramians = {"critic": critic.gramian}
        diverged = self._diverged(critic.losses)
        if actor:
            self._update_actor(batch.observations, noise, alpha, diverged, gramians=gramians)
        self._move_target(self.target_critic, self.critic.network, self.config.tau)
        if self._divergence is not None and diverged is not None:
            self._divergence.restart(diverged, self.generator)

        actor_loss, entropy, value, actor_weight, actor_norm = self._of_actor.clone()
        weights = critic.weights
        none = torch.full_like(alpha, torch.nan)
        critic_weight = none if weights is None else weights.float()
        return Metrics(
            critic.losses,
            actor_loss,
            alpha,
            entropy,
            value,
            critic_weight,
            actor_weight,
            critic.norm.expand_as(alpha),
            actor_norm,
        )

    def _update_actor(
        self,
        observations: Tensor,
        noise: Tensor,
        alpha: Tensor,
        diverged: Tensor | None,
        *,
        gramians: bool,
    ) -> None:
        found = self.actor.step(observations, noise, alpha, diverged, gramian=gramians)
        loss, log_prob, weights = found.losses, found.auxiliary, found.weights
        self.temperature.step(log_prob)
        if gramians and found.gramian is not None:
            self.gramians["actor"] = found.gramian
        value = alpha * log_prob - loss  # the Q in the loss
        none = torch.full_like(alpha, torch.nan)
        weight = none if weights is None else weights.float()
        rows = [loss, -log_prob, value, weight, found.norm.expand_as(alpha)]
        self._of_actor.copy_(torch.stack(rows))

    def _copy_codes(self) -> None:
        """The actor is given the task codes that the critic has learned."""
        if self._table is not None:
            self.encoder.codes.copy_(F.normalize(self._table.rows.detach()[0, :, 0], dim=-1))

    def reset(self, number: int) -> None:
        """Actor and critics start again from new weights, the optimisers without memory.

        In place. number: of the reset, 1, 2, ...: each draws other weights.
        """
        actor, critic = self._new_networks(self._seed + 1_000_003 * number)
        self.actor.network.load_state_dict(actor.state_dict())
        for network in (self.critic.network, self.target_critic):
            network.load_state_dict(critic.state_dict())
        self.actor.optimizer.forget()
        self.critic.optimizer.forget()
        self._copy_codes()

    def critic_inputs(
        self, batch: Batch, noise: Tensor, alpha: Tensor, return_bound: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of the critic's loss; noise [task, sample, action] of the next actions."""
        with torch.no_grad():
            targets = losses.bellman_target(
                self.policy.actor,
                self.target_critic,
                self.value,
                self.encoder(batch.next_observations),
                batch.rewards,
                batch.discounts * (1.0 - batch.terminated),
                noise,
                alpha[:, None],
                None if return_bound is None else return_bound[:, None],
            )
        return self.encoder(batch.observations), batch.actions, targets

    def actor_inputs(
        self, observations: Tensor, noise: Tensor, alpha: Tensor, diverged: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Inputs of the actor's loss; noise [task, sample, action]; diverged [task]: left out."""
        inputs = self.encoder(observations), noise, alpha[:, None]
        return inputs if diverged is None else (*inputs, diverged)

    def _critic_loss(self, critic: Any, *args: Tensor) -> tuple[Tensor, Tensor]:
        loss, summary = losses.critic_loss(critic, self.value, *args)
        return leave_out(loss, self._diverged(loss)), summary

    def _actor_loss(
        self,
        actor: Any,
        inputs: Tensor,
        noise: Tensor,
        alpha: Tensor,
        diverged: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        critic = self.critic.network
        loss, log_prob = losses.actor_loss(actor, critic, self.value, inputs, noise, alpha)
        return leave_out(loss, diverged), log_prob

    def _diverged(self, critic_losses: Tensor) -> Tensor | None:
        """Which tasks are to be left out [task]; None: this is not asked for."""
        return None if self._divergence is None else critic_losses > self._divergence.limit

    def compile(self, batch: Batch, return_bound: Tensor | None = None) -> None:
        """Compile what lies between a batch like this one and the optimisers; on CUDA, with the
        next update, the optimisers and the target networks too.

        Changes no state. Raises what torch.compile raises.
        """
        noise, alpha = torch.zeros_like(batch.actions), self.temperature.alpha()
        self.critic.compile(batch, noise, alpha, return_bound)
        self.actor.compile(batch.observations, noise, alpha, self._diverged(alpha))
        if self.device.type == "cuda":  # many small kernels; a CPU is as fast without
            self.critic.optimizer.compile()
            self.actor.optimizer.compile()
            self._move_target = compiled(move_target)

    # -- its parts --------------------------------------------------------------------------------

    @property
    def generators(self) -> list[torch.Generator]:
        """All that an update draws from."""
        smtos = [part.smto for part in self.parts.values()]
        return [self.generator, *(s.generator for s in smtos if isinstance(s, RandomSMTO))]

    def certificates(self) -> dict[str, Tensor]:
        """{"<loss>/<name>": scalar}: how well the solvers did in the last update."""
        return {
            f"{loss}/{name}": value
            for loss, part in (("critic", self.critic), ("actor", self.actor))
            for name, value in part.smto.certificates().items()
        }

    def state_dict(self) -> dict[str, Any]:
        return self._kept.state_dict() | {"action_dim": self.action_dim}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises CheckpointError, before anything is changed, for the state of another agent."""
        parts = self._kept.parts
        networks = {name: parts[name] for name in ("actor", "critic", "target_critic")}
        state = {"value": {}, "noise": {}} | upgraded(state, networks)  # absent in older ones
        metrics = self._of_actor.clone()  # absent or fewer in older ones
        for row, before in zip(metrics, state.get("of_actor", ()), strict=False):
            row.copy_(before)
        self.moved = not self._kept.load_state_dict(state | {"of_actor": metrics})


def _noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)
