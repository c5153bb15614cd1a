"""Encoder, actor and critics as a configuration has them."""

from __future__ import annotations

import torch

from mtrl.config import Config
from mtrl.networks.actor import Actor
from mtrl.networks.bodies import create_body
from mtrl.networks.critic import Critic
from mtrl.networks.encoder import InputEncoder
from mtrl.networks.layers import TaskTable
from mtrl.networks.values import Value


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
    body = create_body(
        net.body,
        input_dim,
        2 * action_dim,
        width=net.width,
        depth=net.depth,
        layer_norm=net.layer_norm,
        bf16=config.learner.precision == "bf16",
    )
    return Actor(body, net.log_std_min, net.log_std_max, net.log_std_bound)


def make_critic(
    config: Config, input_dim: int, outputs: int, *, per_task_head: bool = False
) -> Critic:
    net, critic = config.network, config.critic
    body = create_body(
        critic.body or net.body,
        input_dim,
        outputs,
        width=critic.width or net.width,
        depth=critic.depth or net.depth,
        layer_norm=net.layer_norm,
        bf16=config.learner.precision == "bf16",
        copies=critic.members,
        heads=config.num_tasks if per_task_head else None,
    )
    learned = net.task_encoding == "learned"
    return Critic(body, outputs, TaskTable(config.num_tasks, net.task_dim) if learned else None)


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
            config, inputs + action_dim, value.outputs, per_task_head=value.per_task_head
        )
    return actor.to(device), critic.to(device)
