"""A user's own network and methods on the first batch, before it is learned from.

What a method gives for a loss, and a network for an observation, is only known from real ones.
Our own are not checked, and nothing is checked later: the loop stays as fast as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtrl.agent import Agent, create_smto
from mtrl.config import LOSSES, Config, Loss
from mtrl.files.user_code import file_of, is_own
from mtrl.networks import describe_network
from mtrl.networks.registry import Body
from mtrl.options.plugins import reason_of
from mtrl.replay import Batch
from mtrl.schema import ConfigError
from mtrl.smto import SMTO
from mtrl.smto.first_step import Unusable, checked

OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)


def has_own_network(config: Config) -> bool:
    """Whether a user's own code makes the network, so that nobody knows yet what it gives."""
    return is_own(describe_network(config.network.architecture).make)


def check_first_update(
    config: Config, agent: Agent, sample: Callable[[], Batch], bound: Tensor | None
) -> None:
    """ConfigError where an own network or method gives what no update can use.

    sample: a batch as the updates have; bound: as `Agent.update` has it. Changes no state.
    """
    smtos = {loss: create_smto(config, loss, agent.device) for loss in LOSSES}  # not the run's
    own = {loss: smto for loss, smto in smtos.items() if is_own(type(smto))}
    own_network = has_own_network(config)
    if not (own or own_network):
        return
    batch = sample()
    with torch.random.fork_rng([agent.device] if agent.device.type == "cuda" else []):
        if own_network:
            _check_network(config, agent, batch)
        for loss, smto in own.items():
            try:
                with checked(smto):
                    _try_out(agent, loss, smto, batch, bound)
            except OUT_OF_MEMORY:
                raise
            except Exception as error:  # whatever a user's method raises
                given = getattr(config.agent, f"{loss}_smto").name
                key = "agent.smto.name" if given is None else f"agent.{loss}_smto.name"
                known = isinstance(error, Unusable)
                reason = str(error) if known else f"raised {reason_of(error, file_of(type(smto)))}"
                raise _refused(key, config.smto_of(loss).name, reason, loss) from error


def _try_out(agent: Agent, loss: Loss, smto: SMTO, batch: Batch, bound: Tensor | None) -> None:
    """Make the direction of one loss with a method that is not the agent's own, and drop it."""
    noise, alpha = torch.zeros_like(batch.actions), agent.temperature.alpha()
    if loss == "critic":
        agent.critic.direction(*agent.critic.prepare(batch, noise, alpha, bound), smto=smto)
    elif loss == "actor":
        agent.actor.direction(*agent.actor.prepare(batch.observations, noise, alpha), smto=smto)
    else:
        agent.temperature.direction(smto, torch.zeros_like(alpha))


def _check_network(config: Config, agent: Agent, batch: Batch) -> None:
    inputs = agent.encoder(batch.observations)
    with_actions = torch.cat([inputs, batch.actions], -1)
    expected: dict[Loss, tuple[Any, Tensor, int, int]] = {
        "actor": (agent.actor.network.body, inputs, 1, 2 * agent.action_dim),
        "critic": (
            agent.critic.network.body,
            with_actions,
            config.critic.members,
            agent.value.outputs,
        ),
    }
    for loss, (body, x, copies, outputs) in expected.items():
        try:
            if isinstance(body, Body):
                body.check(x, copies, outputs)
        except Unusable as error:
            name = config.network.architecture
            raise _refused("network.architecture", name, str(error), loss) from None


def _refused(key: str, name: str, reason: str, loss: Loss) -> ConfigError:
    return ConfigError(key, name, f"{reason} (of the {loss}, at the first update)")
