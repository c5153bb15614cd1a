"""Multi-task Soft Actor-Critic: batch -> losses per task -> SMTO -> Adam -> target networks.

One fully shared actor and twin critic for all tasks. The update never waits for the device:
metrics come back as detached tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtrl import losses
from mtrl.checkpoint import check_fit
from mtrl.config import Config, CriticConfig, Loss
from mtrl.networks import Critic, sample_action
from mtrl.policy import make_actor, make_encoder
from mtrl.replay import Batch
from mtrl.shared_backward import TaskLoss, layer_gradients
from mtrl.smto import SMTO, RandomSMTO, create
from mtrl.smto.base import continue_stream, options_of
from mtrl.task_gradients import (
    Buffer,
    Combined,
    combined_gradients,
    combined_layers,
    task_gramian,
)


class Metrics(NamedTuple):
    """Per task [task], detached, on the learner's device."""

    critic_loss: Tensor
    actor_loss: Tensor
    alpha: Tensor
    entropy: Tensor
    value: Tensor
    critic_weight: Tensor
    actor_weight: Tensor


def _value(config: CriticConfig, device: torch.device) -> losses.Value:
    if config.kind == "categorical":
        return losses.CategoricalValue(config.bins, config.support, device, config.ensemble)
    return losses.ScalarValue(config.ensemble)


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
            self.encoder = make_encoder(config, observation_dim).to(device)
            inputs = self.encoder.output_dim
            self.actor = make_actor(config, inputs, action_dim).to(device)
            self.value = _value(config.critic, device)
            self.critic, self.target_critic = (
                Critic(
                    inputs,
                    action_dim,
                    config.critic.width or net.width,
                    config.critic.depth or net.depth,
                    net.layer_norm,
                    config.learner.precision == "bf16",
                    members=config.critic.members,
                    outputs=self.value.outputs,
                ).to(device)
                for _ in range(2)
            )
        self.target_critic.requires_grad_(False)
        self.target_critic.load_state_dict(self.critic.state_dict())
        entries = self.num_tasks if settings.temperature == "per_task" else 1
        log_alpha = torch.full((entries,), settings.initial_temperature).log()
        self.log_alpha = log_alpha.to(device).requires_grad_()
        self.target_entropy = -settings.target_entropy_scale * action_dim

        self.critic_smto = self._create_smto(config, "critic")
        self.actor_smto = self._create_smto(config, "actor")
        self.temperature_smto = self._create_smto(config, "temperature")
        self._buffer = Buffer()  # critic and actor take turns
        self.moved = False
        """Whether the state loaded last is from another kind of device."""
        self._smto_names = {loss: config.smto_of(loss).name for loss in ("actor", "temperature")}
        self.gramians: dict[str, Tensor] = {}
        """{loss: [task, task]} of the last update that was asked for them."""
        # Separate streams: exploration must not depend on the number of updates.
        self.exploration = torch.Generator(device).manual_seed(config.seed + 1)
        self.generator = torch.Generator(device).manual_seed(config.seed + 2)
        self._critic_gradients, self._actor_gradients = self.critic_gradients, self.actor_gradients

    # The optimisers are made when first needed: the first one imports torch's compiler, two seconds
    # for which the simulation need not wait.

    @cached_property
    def actor_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        return self._optimizer(self.actor.parameters(), config.actor_lr, l2=config.actor_l2)

    @cached_property
    def critic_optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer(self.critic.parameters(), self.config.critic_lr)

    @cached_property
    def temperature_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([self.log_alpha], lr=self.config.temperature_lr, fused=True)

    def _optimizer(
        self, parameters: Iterable[nn.Parameter], lr: float, *, l2: float = 0.0
    ) -> torch.optim.Optimizer:
        """l2: coupled weight decay, whose gradient is added to the SMTO's direction."""
        config = self.config
        match config.optimizer:
            case "adam":
                return torch.optim.Adam(
                    parameters, lr=lr, betas=config.betas, weight_decay=l2, fused=True
                )
            case "adamw":
                decay = config.weight_decay
                return torch.optim.AdamW(
                    parameters, lr=lr, betas=config.betas, weight_decay=decay, fused=True
                )
            case "sgd":
                return torch.optim.SGD(
                    parameters, lr=lr, momentum=config.betas[0], weight_decay=l2, fused=True
                )

    def _create_smto(self, config: Config, loss: Loss) -> SMTO:
        chosen = config.smto_of(loss)
        # What only the run knows; a stream of random numbers per loss.
        offset = {"critic": 3, "actor": 4, "temperature": 5}[loss]
        known = {
            "seed": config.seed + offset,
            "device": self.device,
            "total_steps": max(config.total_updates, 1),
        }
        own = {key: value for key, value in known.items() if key in options_of(chosen.name)}
        return create(chosen.name, self.num_tasks, **own | chosen.options)

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

    def update(
        self, batch: Batch, return_bound: Tensor | None = None, *, gramians: bool = False
    ) -> Metrics:
        """One step of critic, actor, temperature and target critic, in this order.

        return_bound [task]: upper clip of the Q targets, if target clipping is on.
        gramians: leave the Gramians of both losses in `self.gramians`; changes nothing else.
        """
        config = self.config
        alpha = self.alpha()
        next_noise = self._noise(batch.actions.shape, self.generator)
        noise = self._noise(batch.actions.shape, self.generator)

        critic = self._critic_gradients(batch, next_noise, alpha, return_bound)
        if gramians:
            self._look("critic", critic, self.critic_inputs(batch, next_noise, alpha, return_bound))
        self._step(self.critic_optimizer, self.critic, critic)

        actor = self._actor_gradients(batch.observations, noise, alpha)
        if gramians:
            self._look("actor", actor, self.actor_inputs(batch.observations, noise, alpha))
        self._step(self.actor_optimizer, self.actor, actor)

        log_prob = actor.auxiliary
        self.log_alpha.grad = self.temperature_gradient(log_prob)
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
            alpha * log_prob - actor.losses,  # the Q in the actor's loss
            none if critic.weights is None else critic.weights.float(),
            none if actor.weights is None else actor.weights.float(),
        )

    def _optimizers(self) -> list[tuple[torch.optim.Optimizer, float]]:
        """Each with its configured step size."""
        config = self.config
        return [
            (self.actor_optimizer, config.actor_lr),
            (self.critic_optimizer, config.critic_lr),
            (self.temperature_optimizer, config.temperature_lr),
        ]

    def scale_learning_rates(self, factor: float) -> None:
        """Set all step sizes to `factor` times the configured ones."""
        for optimizer, lr in self._optimizers():
            group = optimizer.param_groups[0]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr * factor)
            else:
                group["lr"] = lr * factor

    def make_capturable(self) -> None:
        """Step sizes become tensors: as numbers they would be fixed in a CUDA graph."""
        # Adam would warn of every run outside a graph, such as the looks at the Gramians.
        warnings.filterwarnings("ignore", message=".*capturable=True.*")
        for optimizer, _ in self._optimizers():
            group = optimizer.param_groups[0]
            lr = torch.tensor(float(group["lr"]), device=self.device)
            group.update(lr=lr, capturable=True)

    @property
    def smtos(self) -> list[SMTO]:
        return [self.critic_smto, self.actor_smto, self.temperature_smto]

    @property
    def generators(self) -> list[torch.Generator]:
        """All that an update draws from."""
        own = [smto.generator for smto in self.smtos if isinstance(smto, RandomSMTO)]
        return [self.generator, *own]

    def compile(self, batch: Batch, return_bound: Tensor | None = None) -> None:
        """Compile what lies between a batch like this one and the optimisers.

        Changes no state. Raises what torch.compile raises; the agent then goes on uncompiled.
        """
        noise, alpha = torch.zeros_like(batch.actions), self.alpha()
        critic = self._compile("critic", self.critic_inputs, batch, noise, alpha, return_bound)
        actor = self._compile("actor", self.actor_inputs, batch.observations, noise, alpha)
        self._critic_gradients, self._actor_gradients = critic, actor

    def _compile(
        self, loss: Loss, inputs: Callable[..., Sequence[Tensor]], *example: Any
    ) -> Callable[..., Combined]:
        """All up to the direction where the method's weights are constant, else up to what the
        method combines: its own work stays as it is."""
        smto, task_loss, network = self._problem(loss)
        if smto.compilable:
            whole = torch.compile(
                lambda *given: self._combine(loss, inputs(*given)), fullgraph=True
            )
            whole(*example)
            return whole
        # At every call, since the setting holds for one thread, and a compilation has its own.
        # AttributeError before PyTorch 2.11.
        with_backward = torch._dynamo.config.patch(trace_autograd_ops=True)
        layers = with_backward(
            torch.compile(
                lambda *given: layer_gradients(task_loss, network, inputs(*given)), fullgraph=True
            )
        )
        layers(*example)
        chunk_size, buffer = self.config.chunk_size, self._buffer
        return lambda *given: combined_layers(
            smto, network, layers(*given), chunk_size=chunk_size, buffer=buffer
        )

    def alpha(self) -> Tensor:
        """Entropy temperatures [task], detached."""
        return self.log_alpha.detach().exp().expand(self.num_tasks)

    def critic_inputs(
        self, batch: Batch, noise: Tensor, alpha: Tensor, return_bound: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of the critic's loss; noise [task, sample, action] of the next actions."""
        with torch.no_grad():
            targets = losses.bellman_target(
                self.actor,
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
        self, observations: Tensor, noise: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of the actor's loss; noise [task, sample, action]."""
        return self.encoder(observations), noise, alpha[:, None]

    def critic_gradients(
        self, batch: Batch, noise: Tensor, alpha: Tensor, return_bound: Tensor | None
    ) -> Combined:
        """Direction of the critic."""
        return self._combine("critic", self.critic_inputs(batch, noise, alpha, return_bound))

    def actor_gradients(self, observations: Tensor, noise: Tensor, alpha: Tensor) -> Combined:
        """Direction of the actor; auxiliary: the mean log-probability."""
        return self._combine("actor", self.actor_inputs(observations, noise, alpha))

    def _critic_loss(self, critic: Any, *args: Tensor) -> tuple[Tensor, Tensor]:
        loss = losses.critic_loss(critic, self.value, *args)
        return loss, loss

    def _actor_loss(self, actor: Any, *args: Tensor) -> tuple[Tensor, Tensor]:
        return losses.actor_loss(actor, self.critic, self.value, *args)

    def _problem(self, loss: Loss) -> tuple[SMTO, TaskLoss, nn.Module]:
        if loss == "critic":
            return self.critic_smto, self._critic_loss, self.critic
        return self.actor_smto, self._actor_loss, self.actor

    def _combine(self, loss: Loss, inputs: Sequence[Tensor]) -> Combined:
        smto, task_loss, network = self._problem(loss)
        chunk_size, buffer = self.config.chunk_size, self._buffer
        return combined_gradients(
            smto, task_loss, network, inputs, chunk_size=chunk_size, buffer=buffer
        )

    def _look(self, loss: Loss, combined: Combined, inputs: Sequence[Tensor]) -> None:
        """Keep the Gramian, the method's own or one made for this."""
        gramian = combined.gramian
        if gramian is None:
            _, task_loss, network = self._problem(loss)
            # In memory of its own: a larger shared buffer would move, under a captured update.
            gramian = task_gramian(task_loss, network, inputs, chunk_size=self.config.chunk_size)
        self.gramians[loss] = gramian

    @torch.no_grad()
    def temperature_gradient(self, log_prob: Tensor) -> Tensor:
        """The SMTO's direction for log alpha, from log-probabilities [task]."""
        loss = losses.temperature_loss(self.log_alpha, log_prob, self.target_entropy)
        # -exp(log alpha) c is its own derivative. One temperature: all tasks move it; a
        # temperature per task: the Jacobian is diagonal.
        jacobian = loss[:, None] if len(self.log_alpha) == 1 else loss.diag()
        return self.temperature_smto.direction(jacobian, loss)

    def warnings(self) -> list[str]:
        """What a user of the chosen methods should know at the start."""
        return [
            f"method {self._smto_names[loss]} wants positive losses, but the {loss} loss can be "
            "negative: it gets losses above a lower bound tracked from those seen so far"
            for loss, smto in (("actor", self.actor_smto), ("temperature", self.temperature_smto))
            if smto.wants_positive_losses
        ]

    def certificates(self) -> dict[str, Tensor]:
        """{"<loss>/<name>": scalar}: how well the solvers did in the last update."""
        return {
            f"{loss}/{name}": value
            for loss, smto in (("critic", self.critic_smto), ("actor", self.actor_smto))
            for name, value in smto.certificates().items()
        }

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
            "temperature_smto", "actor_optimizer", "critic_optimizer", "temperature_optimizer",
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
        """Raises CheckpointError, before anything is changed, for the state of another agent."""
        sized = {
            name: part.state_dict()
            for name, part in self._stateful().items()
            if not isinstance(part, torch.optim.Optimizer)  # empty before its first step
        }
        check_fit(sized | {"log_alpha": self.log_alpha}, state)
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        for optimizer, lr in self._optimizers():  # wherever it was saved from
            optimizer.param_groups[0].update(lr=lr, capturable=False)
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
        self.moved = not continue_stream(self.exploration, state["exploration"])
        continue_stream(self.generator, state["generator"])
