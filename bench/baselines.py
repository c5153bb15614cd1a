"""What an update is measured against: a plain eager loop, and the bare matrix products."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtrl.device.cuda_graph import WARM_UPS, Captured
from mtrl.networks.actor import sample_action
from mtrl.replay import Batch
from updates import ACTION, DEPTH, OBSERVATION, SAMPLES, Update


def dims(inputs: int, width: int, outputs: int) -> list[int]:
    return [inputs, *[width] * DEPTH, outputs]


class PlainLoop:
    """Soft Actor-Critic as it is usually written; all tasks in one batch."""

    def __init__(self, m: int, width: int, device: torch.device) -> None:
        def network(inputs: int, outputs: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for a, b in itertools.pairwise(dims(inputs, width, outputs)):
                layers += [nn.Linear(a, b), nn.ReLU()]
            return nn.Sequential(*layers[:-1]).to(device)

        inputs = OBSERVATION + m
        self.actor = network(inputs, 2 * ACTION)
        self.critics = [network(inputs + ACTION, 1) for _ in range(2)]
        self.targets = [network(inputs + ACTION, 1) for _ in range(2)]
        self.log_alpha = torch.zeros(m, 1, device=device, requires_grad=True)
        critic_parameters = [p for critic in self.critics for p in critic.parameters()]
        self.optimizers = [
            torch.optim.Adam(parameters, lr=3e-4)
            for parameters in (critic_parameters, self.actor.parameters(), [self.log_alpha])
        ]
        self.identity = torch.eye(m, device=device)

    def encode(self, observations: Tensor) -> Tensor:
        one_hot = self.identity[:, None].expand(-1, observations.shape[1], -1)
        return torch.cat([observations, one_hot], -1)

    def policy(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor(inputs).chunk(2, -1)
        return sample_action(mean, log_std.clamp(-20, 2), torch.randn_like(mean))

    def step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def update(self, batch: Batch) -> None:
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            inputs = self.encode(batch.next_observations)
            action, log_prob = self.policy(inputs)
            joint = torch.cat([inputs, action], -1)
            value = torch.minimum(*[target(joint).squeeze(-1) for target in self.targets])
            goal = batch.rewards + 0.99 * (1 - batch.terminated) * (value - alpha * log_prob)
        inputs = self.encode(batch.observations)
        joint = torch.cat([inputs, batch.actions], -1)
        losses = [F.mse_loss(critic(joint).squeeze(-1), goal) for critic in self.critics]
        self.step(self.optimizers[0], torch.stack(losses).sum())
        action, log_prob = self.policy(inputs)
        joint = torch.cat([inputs, action], -1)
        value = torch.minimum(*[critic(joint).squeeze(-1) for critic in self.critics])
        self.step(self.optimizers[1], (alpha * log_prob - value).mean())
        entropy = log_prob.detach() - ACTION
        self.step(self.optimizers[2], -(self.log_alpha.exp() * entropy).mean())
        with torch.no_grad():
            for critic, target in zip(self.critics, self.targets, strict=True):
                for new, old in zip(critic.parameters(), target.parameters(), strict=True):
                    old.lerp_(new, 0.005)


class Products:
    """The matrix products of one update and nothing else."""

    def __init__(self, m: int, width: int, device: torch.device) -> None:
        rows, inputs = m * SAMPLES, OBSERVATION + m
        self.calls: list[tuple[Tensor, Tensor]] = []

        def tensor(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device)

        def layers(copies: int, sizes: list[int], *, forward: int, into: int, weights: int) -> None:
            """`into`: backward passes into the activations; 2: into the network's input too."""
            for index, (a, b) in enumerate(itertools.pairwise(sizes)):
                x, w, g = tensor(copies, rows, a), tensor(copies, a, b), tensor(copies, rows, b)
                self.calls += [(x, w)] * forward
                if into and (index or into == 2):
                    self.calls.append((g, w.transpose(1, 2)))
                self.calls += [(x.transpose(1, 2), g)] * weights

        actor, critic = dims(inputs, width, 2 * ACTION), dims(inputs + ACTION, width, 1)
        layers(1, actor, forward=1, into=0, weights=0)  # the target's policy
        layers(2, critic, forward=1, into=0, weights=0)  # the target
        layers(2, critic, forward=1, into=1, weights=1)  # the critics' step
        layers(1, actor, forward=1, into=1, weights=1)  # the actor's step
        layers(2, critic, forward=1, into=2, weights=0)  # the critics in it

    def update(self, batch: Batch) -> None:
        for one, two in self.calls:
            torch.bmm(one, two)

    def captured(self) -> Update:
        """On CUDA, as one graph: launched one by one, the host would be measured."""
        generators: list[torch.Generator] = []
        products = Captured(
            lambda: [torch.bmm(one, two) for one, two in self.calls],
            generators,
            self.calls[0][0].device,
            print,
            name="the products",
        )
        for _ in range(WARM_UPS + 1):
            products()
        return lambda _: products()
