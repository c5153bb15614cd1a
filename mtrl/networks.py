"""Actor, stacked critics, and the input encoding both share.

Every layer acts on the last dimension; leading dimensions are free ([task, sample, dim] or
[sample, dim]), so that the same module serves the joint loss and, under vmap, one task's loss.
Initialisation: Xavier-uniform weights, zero biases (Kurin et al. 2022).
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OBSERVATION_CLIP = 5.0
DEVIATION_FLOOR = 1e-2  # coordinates that hardly move in the warm-up are not blown up


class InputEncoder(nn.Module):
    """Standardise, add the task id: observations [task, ..., obs] -> inputs [task, ..., input]."""

    mean: Tensor
    deviation: Tensor
    identity: Tensor

    def __init__(
        self,
        num_tasks: int,
        observation_dim: int,
        *,
        observation_norm: bool = False,
        task_encoding: Literal["one_hot", "none"] = "one_hot",
    ) -> None:
        super().__init__()
        self.observation_norm = observation_norm
        self.task_encoding = task_encoding
        self.output_dim = observation_dim + (num_tasks if task_encoding == "one_hot" else 0)
        self.register_buffer("mean", torch.zeros(observation_dim))
        self.register_buffer("deviation", torch.ones(observation_dim))
        self.register_buffer("identity", torch.eye(num_tasks), persistent=False)

    def set_statistics(self, mean: Tensor, deviation: Tensor) -> None:
        """Fix the statistics [obs] used by observation_norm."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.clamp(min=DEVIATION_FLOOR))

    def forward(self, observations: Tensor) -> Tensor:
        if self.observation_norm:
            observations = (observations - self.mean) / self.deviation
            observations = observations.clamp(-OBSERVATION_CLIP, OBSERVATION_CLIP)
        if self.task_encoding == "none":
            return observations
        m = len(self.identity)
        shape = (m, *[1] * (observations.dim() - 2), m)
        one_hot = self.identity.view(shape).expand(*observations.shape[:-1], m)
        return torch.cat([observations, one_hot], dim=-1)


def _xavier(*shape: int) -> nn.Parameter:
    """Xavier-uniform weights [..., fan_in, fan_out]."""
    bound = math.sqrt(6.0 / (shape[-2] + shape[-1]))
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class LayerRecord(NamedTuple):
    """What per-task gradients of one layer are made of; rows are [task * sample]."""

    weight: nn.Parameter
    inputs: Tensor
    """[copies, row, in]"""
    product: Tensor
    """inputs @ weight, [copies, row, out]; without LayerNorm the bias is in it."""
    output: Tensor
    """With the bias, before the ReLU, [copies, row, out]."""


class MLP(nn.Module):
    """`copies` independent ReLU networks on the same input, as one batched product per layer.

    [..., input] -> [copies, ..., output]. With layer_norm, hidden layers are
    relu(LayerNorm(x W) + b), without a gain: the next layer's weights can express it.
    """

    unit: Tensor
    zero: Tensor
    tape: list[LayerRecord] | None = None
    """Where the forward records its layers, if somebody wants per-task gradients."""

    def __init__(
        self,
        copies: int,
        input_dim: int,
        output_dim: int,
        width: int,
        depth: int,
        layer_norm: bool,
        bf16: bool = False,
    ) -> None:
        """bf16: products between hidden layers in bf16; observations and outputs need more."""
        super().__init__()
        self.layer_norm, self.bf16 = layer_norm, bf16
        dims = [input_dim, *[width] * depth, output_dim]
        pairs = list(itertools.pairwise(dims))
        self.weights = nn.ParameterList(_xavier(copies, i, o) for i, o in pairs)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(copies, 1, o)) for _, o in pairs)
        # Constants: with a (unit) gain given, PyTorch takes its faster CPU kernel.
        self.register_buffer("unit", torch.ones(width), persistent=False)
        self.register_buffer("zero", torch.zeros(width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        copies, leading = self.weights[0].shape[0], x.shape[:-1]
        x = x.reshape(1, -1, x.shape[-1]).expand(copies, -1, -1)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            inputs = x
            if self.bf16 and 0 < layer < last:
                product = torch.bmm(x.bfloat16(), weight.bfloat16()).float()
            else:
                product = torch.bmm(x, weight)
            if layer == last or not self.layer_norm:
                x = product = product + bias
            else:
                x = F.layer_norm(product, product.shape[-1:], self.unit, self.zero) + bias
            if self.tape is not None:
                self.tape.append(LayerRecord(weight, inputs, product, x))
            if layer < last:
                x = F.relu(x, inplace=self.tape is None)
        return x.view(copies, *leading, x.shape[-1])


class Actor(nn.Module):
    """Tanh-Gaussian policy: inputs [..., input] -> mean, log_std [..., action] before the tanh."""

    def __init__(
        self,
        input_dim: int,
        action_dim: int,
        width: int,
        depth: int,
        layer_norm: bool = False,
        log_std_min: float = -20.0,
        log_std_max: float = 2.0,
        log_std_bound: Literal["clamp", "tanh"] = "clamp",
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.mlp = MLP(1, input_dim, 2 * action_dim, width, depth, layer_norm, bf16)
        self.log_std_min, self.log_std_max = log_std_min, log_std_max
        self.log_std_bound = log_std_bound

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.mlp(inputs)[0].chunk(2, dim=-1)
        low, high = self.log_std_min, self.log_std_max
        if self.log_std_bound == "clamp":
            return mean, log_std.clamp(low, high)
        return mean, low + 0.5 * (high - low) * (torch.tanh(log_std) + 1.0)


class Critic(nn.Module):
    """Independent Q functions: inputs [..., input], actions [..., action] -> [member, ..., output],
    without the last dimension where `outputs` is 1."""

    def __init__(
        self,
        input_dim: int,
        action_dim: int,
        width: int,
        depth: int,
        layer_norm: bool = False,
        bf16: bool = False,
        *,
        members: int = 2,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        self.mlp = MLP(members, input_dim + action_dim, outputs, width, depth, layer_norm, bf16)
        self.outputs = outputs

    def forward(self, inputs: Tensor, actions: Tensor) -> Tensor:
        out = self.mlp(torch.cat([inputs, actions], dim=-1))
        return out.squeeze(-1) if self.outputs == 1 else out


def sample_action(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reparameterised tanh-Gaussian sample and its log-probability [...].

    log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)) is exact where 1 - tanh^2 rounds to 0
    (Kurin et al. use log(relu(1 - a^2) + 1e-6)).
    """
    u = torch.addcmul(mean, log_std.exp(), noise)
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
    squash = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
    return torch.tanh(u), (gaussian - squash).sum(-1)
