"""Encoder, actor and critics as a configuration has them."""

from __future__ import annotations

import torch
from torch import nn

from mtrl.config import Config
from mtrl.files.user_code import is_own
from mtrl.networks.actor import Actor
from mtrl.networks.critic import Critic
from mtrl.networks.encoder import InputEncoder
from mtrl.networks.layers import TaskTable, is_recorded, layers_of
from mtrl.networks.registry import Body, create_network, describe_network
from mtrl.networks.shape import Shape
from mtrl.networks.values import Value
from mtrl.schema import ConfigError
from mtrl.smto.first_step import Unusable


def make_encoder(config: Config, observation_dim: int) -> InputEncoder:
    return InputEncoder(
        config.num_tasks,
        observation_dim,
        observation_norm=config.network.observation_norm,
        task_encoding=config.network.task_encoding,
        task_dim=config.network.task_dim,
    )


def make_actor(config: Config, input_dim: int, action_dim: int) -> Actor:
    net = config.network
    shape = Shape(
        config.task_names,
        input_dim,
        2 * action_dim,
        width=net.width,
        depth=net.depth,
        body=net.body,
        layer_norm=net.layer_norm,
        bf16=config.learner.precision == "bf16",
    )
    body = _make_body(config, shape)
    return Actor(body, net.log_std_min, net.log_std_max, net.log_std_bound)


def make_critic(
    config: Config,
    input_dim: int,
    action_dim: int,
    outputs: int,
    *,
    per_task_head: bool = False,
) -> Critic:
    net, critic = config.network, config.critic
    shape = Shape(
        config.task_names,
        input_dim + action_dim,
        outputs,
        actions=action_dim,
        copies=critic.members,
        width=critic.width or net.width,
        depth=critic.depth or net.depth,
        body=critic.body or net.body,
        layer_norm=net.layer_norm,
        bf16=config.learner.precision == "bf16",
        task_head=per_task_head,
    )
    body = _make_body(config, shape)
    learned = net.task_encoding == "learned"
    return Critic(body, outputs, TaskTable(config.num_tasks, net.task_dim) if learned else None)


def _make_body(config: Config, shape: Shape) -> nn.Module:
    """ConfigError for what the architecture cannot be."""
    net = config.network
    try:
        body = create_network(net.architecture, shape, net.options)
    except Unusable as error:
        raise ConfigError("network.architecture", net.architecture, str(error)) from None
    except ValueError as error:
        reason = f"network {net.architecture}: {error}"
        raise ConfigError("network.options", dict(net.options), reason) from None
    if not is_recorded(body):
        needs = "needs a network that is made of recorded layers alone (docs/extending.md)"
        if any(layer.of_one_task for layer in layers_of(body)):
            raise ConfigError(
                "network.architecture",
                net.architecture,
                "has recorded layers with a part for every task beside other modules: they work "
                "in a network that is made of recorded layers alone (docs/extending.md)",
            )
        if net.task_encoding == "learned":
            raise ConfigError("network.task_encoding", net.task_encoding, needs)
        if config.critic.kind == "popart":
            raise ConfigError("critic.kind", config.critic.kind, needs)
    if isinstance(body, Body) and is_own(describe_network(net.architecture).make):
        try:
            body.check_gradients(shape)
        except Unusable as error:
            raise ConfigError("network.architecture", net.architecture, str(error)) from None
    return body


def make_networks(
    config: Config,
    inputs: int,
    action_dim: int,
    value: Value,
    device: torch.device,
    seed: int,
) -> tuple[Actor, Critic]:
    """Actor and critics, whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):  # built on the CPU: equal weights on any device
        torch.manual_seed(seed)
        actor = make_actor(config, inputs, action_dim)
        critic = make_critic(
            config, inputs, action_dim, value.outputs, per_task_head=value.per_task_head
        )
    return actor.to(device), critic.to(device)
