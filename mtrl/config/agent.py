"""Options of the agent: networks, critics, multi-task optimisers, and Soft Actor-Critic itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from mtrl.schema import (
    NOT_NEGATIVE,
    POSITIVE,
    ZERO_OR_POSITIVE,
    Bound,
    at_least,
    between,
    within,
)

Loss = Literal["critic", "actor", "temperature"]
LOSSES: tuple[Loss, ...] = get_args(Loss)


@dataclass(frozen=True)
class NetworkConfig:
    """Actor and critics."""

    architecture: str = "shared"
    """How the tasks share a network, in actor and critics alike; see `mtrl list networks` and
    docs/networks.md."""
    options: dict[str, Any] = field(default_factory=dict)
    """The architecture's own options, e.g. experts=6. On top of the file's for the same
    architecture."""
    body: Literal["mlp", "residual"] = "mlp"
    """mlp: hidden layers with ReLU. residual: a first layer, then blocks that are added to their
    input, each of two layers, all with LayerNorm (BRC)."""
    width: Annotated[int, at_least(1)] = 400
    """Units per hidden layer, actor and critics."""
    depth: Annotated[int, at_least(1)] = 3
    """Hidden layers of an mlp, or residual blocks; actor and critics."""
    layer_norm: bool = False
    """LayerNorm (no gain) before every ReLU of an mlp; residual networks always have their own."""
    observation_norm: bool = False
    """Subtract the mean of the warm-up data, divide by their standard deviation, clip to +-5."""
    task_encoding: Literal["one_hot", "learned", "none"] = "one_hot"
    """What is appended to the networks' input. one_hot: the task id. learned: a vector of unit
    length per task, which the critic learns and the actor is given (BRC). none: nothing (Kurin et
    al.)."""
    task_dim: Annotated[int, at_least(1)] = 32
    """Length of a learned task vector."""
    log_std_min: float = -20.0
    """Lower bound of the policy's log standard deviation."""
    log_std_max: float = 2.0
    """Upper bound of the policy's log standard deviation."""
    log_std_bound: Literal["clamp", "tanh"] = "clamp"
    """How the bounds are imposed: clamp, or a rescaled tanh (Kurin et al.)."""


@dataclass(frozen=True)
class CriticConfig:
    """What the critics say of a state and an action."""

    kind: Literal["scalar", "categorical", "popart"] = "scalar"
    """scalar: a number, squared error. popart: a number, normalised per task by the moments of its
    targets, with a last layer for every task (Hessel et al. 2019): critics need no normalised
    rewards then, but the actor's loss and the temperature still see them. categorical: a
    distribution of the return over fixed bins, cross-entropy (Bellemare et al. 2017); needs
    returns that fit the support, so replay.reward_normalization=return_range or return_std."""
    bins: Annotated[int, at_least(2)] = 51
    """Atoms of a categorical critic."""
    support: Annotated[float, POSITIVE] = 10.0
    """Atoms lie evenly in +-support, into which return_range and return_std scale the returns."""
    popart_rate: Annotated[float, within("(0, 1]")] = 3e-4
    """Share of the newest batch in PopArt's moments."""
    members: Annotated[int, at_least(1)] = 2
    """Independent critics with their own targets' copies."""
    ensemble: Literal["min", "mean"] = "min"
    """Which value of the critics the target and the actor use: min (Fujimoto et al. 2018), or the
    mean (BRC). Categorical: the distribution with the smallest mean, or the mean distribution."""
    body: Literal["mlp", "residual"] | None = None
    """mlp or residual; None = network.body."""
    width: Annotated[int | None, at_least(1)] = None
    """Units per hidden layer of the critics; None = network.width."""
    depth: Annotated[int | None, at_least(1)] = None
    """Hidden layers or residual blocks of the critics; None = network.depth."""


@dataclass(frozen=True)
class SmtoConfig:
    """The multi-task optimiser of both losses."""

    name: str = "unitary"
    """Multi-task optimiser of the actor and critic losses; see `mtrl list methods`."""
    options: dict[str, Any] = field(default_factory=dict)
    """The method's own options, e.g. c=0.4 update_every=10, or "weights=[1, 2, 1]" for fixed.
    On top of the file's for the same method."""


@dataclass(frozen=True)
class LossSmtoConfig:
    """Another multi-task optimiser for one loss."""

    name: str | None = None
    """Overrides agent.smto.name for this loss alone."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of this loss's method; for the same method, on top of agent.smto.options."""


@dataclass(frozen=True)
class TemperatureSmtoConfig:
    """The multi-task optimiser of the temperature loss."""

    name: str = "unitary"
    """Multi-task optimiser of the temperature loss; a per_task temperature has no conflicts."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of this loss's method."""


@dataclass(frozen=True)
class AgentConfig:
    """Multi-task Soft Actor-Critic."""

    gamma: Annotated[float, within("[0, 1)")] = 0.99
    """Discount per step."""
    n_step: int = 1
    """Rewards of the next steps of an episode that a target sums before it bootstraps; fewer at the
    episode's end. The entropy bonus is counted at the bootstrap only."""
    tau: Annotated[float, within("(0, 1]")] = 0.005
    """Target networks move by this fraction after every update."""
    actor_lr: Annotated[float, POSITIVE] = 3e-4
    """Adam step size of the actor."""
    critic_lr: Annotated[float, POSITIVE] = 3e-4
    """Adam step size of the critics."""
    temperature_lr: Annotated[float, NOT_NEGATIVE] = 3e-4
    """Adam step size of log temperature."""
    optimizer: Literal["adam", "adamw", "sgd", "muon"] = "adam"
    """Optimiser of actor and critics, with which the SMTO's direction is applied. The temperature's
    is always Adam. muon: for weight matrices, with AdamW for all else (Jordan et al. 2024)."""
    betas: Annotated[tuple[float, float], within("[0, 1)")] = (0.9, 0.999)
    """Decay rates of Adam's and AdamW's two moments; the first is also the momentum
    of SGD and Muon."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    """Decoupled weight decay of actor and critics, with adamw and muon; per unit of the step
    size."""
    lr_decay: Annotated[float, within("[0, 1]")] = 0.0
    """Last fraction of the run over which all step sizes fall to zero; 0 = constant. A run that
    `mtrl resume` makes longer follows its new length."""
    lr_schedule: Literal["linear", "cosine"] = "linear"
    """How they fall."""
    actor_l2: Annotated[float, NOT_NEGATIVE] = 0.0
    """l2 regularisation of the actor: coupled weight decay of Adam and SGD (Kurin et al.: 3e-4)."""
    temperature: Literal["shared", "per_task"] = "per_task"
    """One entropy temperature for all tasks (Kurin et al.) or one per task."""
    initial_temperature: Annotated[float, POSITIVE] = 1.0
    """Entropy temperature at the start."""
    target_entropy_scale: Annotated[float, NOT_NEGATIVE] = 1.0
    """Target entropy = -scale * action dimensions."""
    noise_repeat: Annotated[int, between(1, 1000)] = 1
    """An environment keeps its exploration noise for up to so many steps, drawn from Zeta(2)
    (FlashSAC: 16); 1 = fresh noise at every step."""
    actor_every: Annotated[int, at_least(1)] = 1
    """Actor and temperature are updated at one of so many updates of the critics."""
    resets: Annotated[int, ZERO_OR_POSITIVE] = 0
    """How often actor and critics start again from new weights, evenly over the run, without memory
    in their optimisers and SMTOs; the replay stays (ARS)."""
    max_grad_norm: Annotated[float | None, Bound("positive", lambda n: n > 0)] = None
    """Clip the norm of the actor's and of the critics' final direction; None = off."""
    target_clip: bool = False
    """Clip Q targets to max_raw_reward / sigma / (1 - gamma) per task (Kurin et al., IMTL)."""
    updates_per_step: Annotated[float, within("(0, 1000]")] = 1.0
    """Updates per vector step (one step of every environment); may be fractional."""
    warmup_updates: Annotated[int, ZERO_OR_POSITIVE] = 0
    """Updates made at once when the warm-up ends (Kurin et al.: 1500)."""
    smto: SmtoConfig = field(default_factory=SmtoConfig)
    critic_smto: LossSmtoConfig = field(default_factory=LossSmtoConfig)
    actor_smto: LossSmtoConfig = field(default_factory=LossSmtoConfig)
    temperature_smto: TemperatureSmtoConfig = field(default_factory=TemperatureSmtoConfig)
    chunk_size: Annotated[int | None, at_least(1)] = None
    """Parameters whose task gradients are in memory at a time, for methods that need the Gramian.
    None = all (fastest). For networks whose gradients times tasks do not fit."""
