"""Multi-task Soft Actor-Critic: batch -> losses per task -> SMTO -> Adam -> target networks.

One fully shared actor and twin critic for all tasks. The update never waits for the device:
metrics come back as detached tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mtrl import losses
from mtrl.config import Config
from mtrl.networks import Actor, InputEncoder, TwinCritic, sample_action
from mtrl.replay import Batch
from mtrl.smto import SMTO, create
from mtrl.smto.base import options_of
from mtrl.task_gradients import Combined, combined_gradients


class Metrics(NamedTuple):
    """Per task [task], detached, on the learner's device."""

    critic_loss: Tensor
    actor_loss: Tensor
    alpha: Tensor
    entropy: Tensor
    critic_weight: Tensor
    actor_weight: Tensor


class Agent:
    def __init__(
        self, config: Config, observation_dim: int, action_dim: int, device: torch.device
    ) -> None:
        self.config, self.device = config.agent, device
        self.num_tasks, self.action_dim = config.num_tasks, action_dim
        self.envs_per_task = config.train.envs_per_task
        net, settings = config.network, config.agent
        with torch.random.fork_rng(devices=[]):  # built on the CPU: equal weights on any device
            torch.manual_seed(config.seed)
            self.encoder = InputEncoder(
                self.num_tasks,
                observation_dim,
                observation_norm=net.observation_norm,
                task_encoding=net.task_encoding,
            ).to(device)
            inputs = self.encoder.output_dim
            shape = (inputs, action_dim, net.width, net.depth, net.layer_norm)
            bounds = (net.log_std_min, net.log_std_max, net.log_std_bound)
            self.actor = Actor(*shape, *bounds).to(device)
            self.critic = TwinCritic(*shape).to(device)
            self.target_critic = TwinCritic(*shape).to(device).requires_grad_(False)
        self.target_critic.load_state_dict(self.critic.state_dict())
        entries = self.num_tasks if settings.temperature == "per_task" else 1
        log_alpha = torch.full((entries,), settings.initial_temperature).log()
        self.log_alpha = log_alpha.to(device).requires_grad_()
        self.target_entropy = -settings.target_entropy_scale * action_dim

        # Coupled weight decay (Adam, not AdamW): the l2 gradient is added to the SMTO's direction.
        self.actor_optimizer = self._adam(
            self.actor.parameters(), settings.actor_lr, weight_decay=settings.actor_l2
        )
        self.critic_optimizer = self._adam(self.critic.parameters(), settings.critic_lr)
        self.temperature_optimizer = self._adam([self.log_alpha], settings.temperature_lr)
        self.critic_smto = self._create_smto(config, "critic")
        self.actor_smto = self._create_smto(config, "actor")
        # Separate streams: exploration must not depend on the number of updates.
        self.exploration = torch.Generator(device).manual_seed(config.seed + 1)
        self.generator = torch.Generator(device).manual_seed(config.seed + 2)
        self._critic_gradients, self._actor_gradients = self.critic_gradients, self.actor_gradients

    @staticmethod
    def _adam(parameters: Any, lr: float, weight_decay: float = 0.0) -> torch.optim.Adam:
        return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)

    def _create_smto(self, config: Config, loss: Literal["critic", "actor"]) -> SMTO:
        chosen = config.smto_of(loss)
        options: dict[str, Any] = {"weights": chosen.weights} if chosen.weights else {}
        if "seed" in options_of(chosen.name):
            offset = 3 if loss == "critic" else 4
            options |= {"seed": config.seed + offset, "device": self.device}
        return create(chosen.name, self.num_tasks, **options)

    # -- acting ---------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, observations: Tensor, *, deterministic: bool = False) -> Tensor:
        """Observations [task, ..., obs] on the device -> actions [task, ..., action] in [-1, 1]."""
        mean, log_std = self.actor(self.encoder(observations))
        if deterministic:
            return torch.tanh(mean)
        return sample_action(mean, log_std, self._noise(mean.shape, self.exploration))[0]

    def random_actions(self) -> Tensor:
        """Uniform actions [task, env, action] of the warm-up, from the exploration stream."""
        shape = (self.num_tasks, self.envs_per_task, self.action_dim)
        uniform = torch.rand(shape, generator=self.exploration, device=self.device)
        return 2.0 * uniform - 1.0

    def _noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, device=self.device)

    # -- learning -------------------------------------------------------------------------------

    def update(self, batch: Batch, return_bound: Tensor | None = None) -> Metrics:
        """One step of critic, actor, temperature and target critic, in this order.

        return_bound [task]: upper clip of the Q targets, if target clipping is on.
        """
        config = self.config
        alpha = self._alpha()
        next_noise = self._noise(batch.actions.shape, self.generator)
        noise = self._noise(batch.actions.shape, self.generator)

        critic = self._critic_gradients(batch, next_noise, alpha, return_bound)
        self._step(self.critic_optimizer, self.critic, critic)

        actor = self._actor_gradients(batch.observations, noise, alpha)
        self._step(self.actor_optimizer, self.actor, actor)

        log_prob = actor.auxiliary
        temperature = losses.temperature_loss(self.log_alpha, log_prob, self.target_entropy)
        (self.log_alpha.grad,) = torch.autograd.grad(temperature.mean(), [self.log_alpha])
        self.temperature_optimizer.step()

        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.target_critic.parameters()), list(self.critic.parameters()), config.tau
            )
        none = torch.full_like(alpha, torch.nan)
        return Metrics(
            critic.losses,
            actor.losses,
            alpha,
            -log_prob,
            none if critic.weights is None else critic.weights.float(),
            none if actor.weights is None else actor.weights.float(),
        )

    def scale_learning_rates(self, factor: float) -> None:
        """Set all step sizes to `factor` times the configured ones."""
        config = self.config
        for optimizer, lr in (
            (self.actor_optimizer, config.actor_lr),
            (self.critic_optimizer, config.critic_lr),
            (self.temperature_optimizer, config.temperature_lr),
        ):
            optimizer.param_groups[0]["lr"] = lr * factor

    def compile(self, batch: Batch, return_bound: Tensor | None = None) -> None:
        """Compile what lies between a batch like this one and the optimisers.

        Changes no state. Raises what torch.compile raises; the agent then goes on uncompiled.
        """
        critic = torch.compile(self.critic_gradients, fullgraph=True)
        actor = torch.compile(self.actor_gradients, fullgraph=True)
        noise, alpha = torch.zeros_like(batch.actions), self._alpha()
        critic(batch, noise, alpha, return_bound)
        actor(batch.observations, noise, alpha)
        self._critic_gradients, self._actor_gradients = critic, actor

    def _alpha(self) -> Tensor:
        return self.log_alpha.detach().exp().expand(self.num_tasks)

    def critic_gradients(
        self, batch: Batch, noise: Tensor, alpha: Tensor, return_bound: Tensor | None
    ) -> Combined:
        """Direction of the critic; noise [task, sample, action] of the next actions."""

        def task_loss(critic: Any, *args: Tensor) -> tuple[Tensor, Tensor]:
            loss = losses.critic_loss(critic, *args)
            return loss, loss

        with torch.no_grad():
            targets = losses.bellman_target(
                self.actor,
                self.target_critic,
                self.encoder(batch.next_observations),
                batch.rewards,
                batch.terminated,
                noise,
                alpha[:, None],
                self.config.gamma,
            )
            if return_bound is not None:
                targets = torch.minimum(targets, return_bound[:, None])
        inputs = (self.encoder(batch.observations), batch.actions, targets)
        return combined_gradients(self.critic_smto, task_loss, self.critic, inputs)

    def actor_gradients(self, observations: Tensor, noise: Tensor, alpha: Tensor) -> Combined:
        """Direction of the actor; noise [task, sample, action]; auxiliary: log-probability."""

        def task_loss(actor: Any, *args: Tensor) -> tuple[Tensor, Tensor]:
            return losses.actor_loss(actor, self.critic, *args)

        inputs = (self.encoder(observations), noise, alpha[:, None])
        return combined_gradients(self.actor_smto, task_loss, self.actor, inputs)

    def _step(self, optimizer: torch.optim.Optimizer, network: nn.Module, given: Combined) -> None:
        limit = self.config.max_grad_norm
        for parameter, gradient in zip(network.parameters(), given.gradients, strict=True):
            parameter.grad = gradient
        if limit is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), limit)
        optimizer.step()

    # -- state ----------------------------------------------------------------------------------

    def _stateful(self) -> dict[str, Any]:
        names = (
            "encoder", "actor", "critic", "target_critic", "critic_smto", "actor_smto",
            "actor_optimizer", "critic_optimizer", "temperature_optimizer",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        state = {name: part.state_dict() for name, part in self._stateful().items()}
        return state | {
            "log_alpha": self.log_alpha.detach(),
            "exploration": self.exploration.get_state(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
        self.exploration.set_state(state["exploration"])
        self.generator.set_state(state["generator"])
