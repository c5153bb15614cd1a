"""Multi-task Soft Actor-Critic: batch -> losses per task -> SMTO -> Adam -> target networks.

One fully shared actor and one ensemble of critics for all tasks. The update never waits for the
device: metrics come back as detached tensors.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtrl import losses
from mtrl.config import Config, Loss
from mtrl.device.compiled import compiled
from mtrl.device.streams import stream_seed
from mtrl.gradients.buffer import Buffer
from mtrl.gradients.objective import Objective
from mtrl.gradients.optimizer import Optimizer
from mtrl.networks.actor_critic import ActorCritic
from mtrl.networks.critic import move_target
from mtrl.networks.exploration import Exploration
from mtrl.networks.paco import leave_out
from mtrl.networks.values import create_value
from mtrl.replay import Batch
from mtrl.run.kept import Kept
from mtrl.smto import SMTO, RandomSMTO
from mtrl.smto.registry import create_for_run
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
        self.config, self.device = config.agent, device
        self.num_tasks, self.action_dim = config.num_tasks, action_dim
        self.envs_per_task = config.train.envs_per_task
        self.value = create_value(config, device)
        networks = ActorCritic(config, observation_dim, action_dim, self.value, device)
        self.networks, self.encoder, self.policy = networks, networks.encoder, networks.policy
        self.target_critic, self._move_target = networks.target_critic, move_target
        settings, actor, critic = config.agent, networks.actor, networks.critic
        self._new_smto = partial(create_smto, config, device=device)
        learning: dict[str, Any] = {
            "buffer": Buffer(),  # critic and actor take turns
            "chunk_size": settings.chunk_size,
            "max_grad_norm": settings.max_grad_norm,
        }
        self.critic = Objective(
            critic,
            self.critic_inputs,
            self._critic_loss,
            self._new_smto("critic"),
            Optimizer(critic.parameters(), settings.critic_lr, settings),
            **learning,
        )
        self.actor = Objective(
            actor,
            self.actor_inputs,
            self._actor_loss,
            self._new_smto("actor"),
            Optimizer(actor.parameters(), settings.actor_lr, settings, l2=settings.actor_l2),
            **learning,
        )
        self.temperature = Temperature(
            settings,
            self.num_tasks,
            -settings.target_entropy_scale * action_dim,
            self._new_smto("temperature"),
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
        self._of_actor = torch.zeros(5, self.num_tasks, device=device)
        """Metrics of its last update: loss, entropy, value, weight, gradient norm."""
        # Separate streams: exploration must not depend on the number of updates.
        lanes = (self.num_tasks, self.envs_per_task, action_dim)
        seeds = {use: stream_seed(config.seed, use) for use in ("exploration", "updates")}
        self.exploration = Exploration(lanes, seeds["exploration"], settings.noise_repeat, device)
        self.generator = torch.Generator(device).manual_seed(seeds["updates"])
        self._kept = Kept(
            {
                **networks.named,
                "value": self.value,
                "noise": self.exploration,
                **{f"{loss}_smto": part.smto for loss, part in self.parts.items()},
                **{f"{loss}_optimizer": part.optimizer for loss, part in self.parts.items()},
            },
            {"log_alpha": self.temperature.log_alpha, "of_actor": self._of_actor},
            {"exploration": self.exploration.generator, "generator": self.generator},
        )

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
        gramians: leave that of each loss in its objective's `gramian`; changes nothing else.
        """
        alpha = self.temperature.alpha()
        next_noise, noise = (_noise(batch.actions.shape, self.generator) for _ in range(2))

        critic = self.critic.step(batch, next_noise, alpha, return_bound, gramian=gramians)
        self.value.follow(critic.auxiliary, (self.critic.network, self.target_critic))
        self.networks.copy_codes()
        diverged = self.networks.diverged(critic.losses)
        if actor:
            self._update_actor(batch.observations, noise, alpha, diverged, gramian=gramians)
        self._move_target(self.target_critic, self.critic.network, self.config.tau)
        self.networks.restart(diverged, self.generator)

        loss, entropy, value, weight, norm = self._of_actor.clone()
        return Metrics(
            critic.losses, loss, alpha, entropy, value, critic.weights, weight, critic.norm, norm
        )

    def _update_actor(self, *given: Any, gramian: bool) -> None:
        """given: as `actor_inputs` is."""
        actor = self.actor.step(*given, gramian=gramian)
        _, _, alpha, _ = given
        loss, log_prob = actor.losses, actor.auxiliary
        self.temperature.step(log_prob)
        value = alpha * log_prob - loss  # the Q in the loss
        self._of_actor.copy_(torch.stack([loss, -log_prob, value, actor.weights, actor.norm]))

    def reset(self, step: int) -> None:
        """Actor and critics start again from new weights, their optimisers without memory.

        In place. step: of the run, at which the weights are drawn: each reset has other ones.
        """
        self.networks.renew(step)
        for loss in ("critic", "actor"):
            part = self.parts[loss]
            part.optimizer.forget()
            part.smto.start_again(self._new_smto(loss))

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
        return leave_out(loss, self.networks.diverged(loss)), summary

    def _actor_loss(self, actor: Any, *args: Tensor) -> tuple[Tensor, Tensor]:
        loss, log_prob = losses.actor_loss(actor, self.critic.network, self.value, *args[:3])
        return leave_out(loss, *args[3:]), log_prob

    def compile(self, batch: Batch, return_bound: Tensor | None = None) -> None:
        """Compile what lies between a batch like this one and the optimisers; on CUDA, with the
        next update, the optimisers and the target networks too.

        Changes no state. Raises what torch.compile raises.
        """
        noise, alpha = torch.zeros_like(batch.actions), self.temperature.alpha()
        self.critic.compile(batch, noise, alpha, return_bound)
        self.actor.compile(batch.observations, noise, alpha, self.networks.diverged(alpha))
        if self.device.type == "cuda":  # many small kernels; a CPU is as fast without
            self.critic.optimizer.compile()
            self.actor.optimizer.compile()
            self._move_target = compiled(move_target)

    @property
    def generators(self) -> list[torch.Generator]:
        """All that an update draws from."""
        smtos = [part.smto for part in self.parts.values()]
        return [self.generator, *(s.generator for s in smtos if isinstance(s, RandomSMTO))]

    def certificates(self, losses: Container[str]) -> dict[str, Tensor]:
        """{"<loss>/<name>": scalar}: how well the solvers did in these losses' last steps."""
        return {
            f"{loss}/{name}": value
            for loss, part in self.parts.items()
            if loss in losses
            for name, value in part.smto.certificates().items()
        }

    def state_dict(self) -> dict[str, Any]:
        return self._kept.state_dict() | {"action_dim": self.action_dim}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises CheckpointError, before anything is changed, for the state of another agent."""
        self.moved = not self._kept.load_state_dict(state)


def create_smto(config: Config, loss: Loss, device: torch.device) -> SMTO:
    """The method of one loss, with a stream of random numbers of its own."""
    chosen = config.smto_of(loss)
    return create_for_run(
        chosen.name,
        config.num_tasks,
        chosen.options,
        seed=stream_seed(config.seed, f"{loss}_smto"),
        total_steps=max(config.updates_of(loss), 1),
    ).to(device)


def _noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)
