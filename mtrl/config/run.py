"""Options of a run: frozen nested dataclasses, strict YAML in, resolved YAML out.

The docstring under each field is its help text on the command line: meaning, unit, source. Beside
its type stand the bounds of a number; options/validation.py has what depends on several options.
"Environment steps" are always summed over tasks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from mtrl.config import benchmarks
from mtrl.config.agent import AgentConfig, CriticConfig, Loss, NetworkConfig, SmtoConfig
from mtrl.schema import (
    OFF_OR_POSITIVE,
    ConfigError,
    at_least,
    between,
    build,
    flatten,
    read_yaml,
    user_path,
    within,
)

PROTOCOLS: dict[str, dict[str, object]] = {
    "mw-plus": {"env.reward_version": "v2", "env.num_goals": 50, "env.horizon": 500},
    "kurin": {
        "env.reward_version": "v1",
        "env.num_goals": 1,
        "env.horizon": 150,
        "network.task_encoding": "none",
        "agent.temperature": "shared",
        "replay.capacity": 4_000_000,
    },
}


Camera = Literal[
    "corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV"
]
"""Meta-World's."""


@dataclass(frozen=True)
class EnvConfig:
    """Tasks, goals and simulation."""

    benchmark: str = "MT10"
    """MT1, MT10, MT25, MT50 (Meta-World) or toy. MT1 needs env.tasks with one task."""
    tasks: tuple[str, ...] = ()
    """A task list of your own, in this order; replaces the benchmark's. See `mtrl list tasks`;
    or registered Gymnasium environments with equal, continuous spaces (docs/extending.md)."""
    workers: Annotated[int | Literal["auto"], at_least(1)] = "auto"
    """Simulation processes; auto = min(cores, environments)."""
    horizon: int = 500
    """Steps of an episode, where it is truncated; Meta-World: at most 500, and no other end."""
    num_goals: Annotated[int, between(1, 50)] = 50
    """Goals per task, 1..50: the first of Meta-World's own list for this seed.
    1 = one fixed goal (Kurin et al.)."""
    reward_version: Literal["v1", "v2"] = "v2"
    """Meta-World's reward function: v2 (about 0..10 per step) or v1 (Kurin et al.)."""
    fast: bool = True
    """Step Meta-World faster, with bitwise identical results; false = Meta-World's own step."""


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run, and its videos."""

    total_steps: Annotated[int, at_least(1)] = 20_000_000
    """Environment steps in all, summed over tasks; rounded up to whole episodes."""
    warmup_steps: int = 15_000
    """Environment steps, summed over tasks, of uniformly random actions before the first update."""
    envs_per_task: Annotated[int, at_least(1)] = 1
    """Environments of each task, stepped together: more data for the same number of updates."""
    video_every: Annotated[int, OFF_OR_POSITIVE] = 0
    """Environment steps between videos of the deterministic policy, in videos/; 0 = none.
    The training waits for them."""
    video_size: int = 240
    """Pixels of a task's square picture, each way: a multiple of 16 from 128 to 1024."""
    video_camera: Camera = "corner2"
    """Where Meta-World's tasks are seen from. Other tasks have one view each."""
    video_episodes: int = 1
    """Episodes of each task in a video, each with a goal of its own; at most env.num_goals."""


@dataclass(frozen=True)
class ReplayConfig:
    """Replay buffer and reward normalisation."""

    capacity: int = 1_000_000
    """Transitions kept, in all tasks together; split evenly."""
    batch_size: int = 1280
    """Transitions per update, in all tasks together; split evenly, so divisible by the tasks."""
    reward_normalization: Literal[
        "none", "sample", "ema", "mean_reward", "return_range", "return_std"
    ] = "sample"
    """What a task's rewards are divided by. Stored raw and divided when sampled:
    sample: their standard deviation (Kurin et al.).
    mean_reward: their mean over the largest of all tasks' (ARS).
    return_range: the largest return plus the entropy bonus, over critic.support (BRC).
    return_std: the standard deviation of the returns, at least the largest over critic.support.
    Before they are stored: ema: a moving average's standard deviation (Sodhani et al. 2021).
    none: raw."""
    ema_alpha: Annotated[float, within("(0, 1]")] = 0.001
    """Averaging speed of reward_normalization=ema."""


@dataclass(frozen=True)
class DeviceConfig:
    """Where the updates run."""

    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:i. Data and networks live there."""
    threads: Annotated[int | Literal["auto"], at_least(1)] = "auto"
    """CPU threads of the learner; auto = as many as PyTorch takes, one for each core.
    Runs are bitwise reproducible for equal thread counts."""


@dataclass(frozen=True)
class LearnerConfig(DeviceConfig):
    """Where and how the updates run."""

    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """Precision of the networks' matrix products. bf16: those between hidden layers, on CUDA and on
    CPUs with AMX or AVX-512 BF16; parameters, the first and the last layer, losses and optimiser
    stay in fp32. tf32: on CUDA only. Where the hardware lacks it: fp32, with a warning.
    auto = tf32 on CUDA, fp32 on a CPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the update with torch.compile: on a CPU half the time per update, after half a minute
    (a few seconds once cached). Needs a C++ compiler and PyTorch 2.11.
    auto = where possible, for runs of 20,000 updates or more on a CPU, 100,000 or more on CUDA."""
    capture: Literal["auto", "on", "off"] = "auto"
    """Capture the update, acting and storing as CUDA graphs: a launch each instead of hundreds.
    auto = on CUDA. Not captured: methods whose steps differ (update_every, AutoScale while it
    explores), and aligned_mtl, conflict_free, imtl and imtl_g with more than 64 tasks or without
    Triton, where they wait for the device. If it fails: a warning."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Deterministic evaluation."""

    every: Annotated[int, OFF_OR_POSITIVE] = 500_000
    """Environment steps between evaluations, the first at step 0; 0 = only the final one."""
    episodes_per_task: Annotated[int, at_least(1)] = 10
    """Episodes per task in an evaluation during training; goals rotate from one to the next.
    At most env.num_goals."""
    final_episodes_per_task: Annotated[int, at_least(1)] = 50
    """Episodes per task in the evaluation that ends the run, at most env.num_goals."""
    stop_at_success: bool = True
    """End an evaluation episode at its first success.
    Same success rate, less time; returns are then partial."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints."""

    every: int = 500_000
    """Environment steps between checkpoints; a multiple of env.horizon * environments."""
    keep: Annotated[int, at_least(1)] = 2
    """Newest checkpoints kept, in addition to the best policy."""


@dataclass(frozen=True)
class LoggingConfig:
    """metrics.jsonl, TensorBoard and console."""

    every: Annotated[int, at_least(1)] = 10_000
    """Environment steps between two log lines (losses, temperatures, speed)."""
    csv: bool = False
    """Also write metrics.csv: step, tag, value."""
    wandb: bool = False
    """Also log to Weights & Biases: `pip install wandb`; set up by its own WANDB_* variables."""


@dataclass(frozen=True)
class DiagnosticsConfig:
    """Gradient conflict metrics."""

    every: Annotated[int, OFF_OR_POSITIVE] = 200
    """Updates between two diagnostic updates, whatever the method; 0 = off. Such an update costs
    a plain method one more backward per loss, so the default costs about 0.5% of its time."""


@dataclass(frozen=True)
class Config:
    """One run."""

    name: str = ""
    """Name of the experiment; the preset's file name if empty."""
    protocol: Literal["mw-plus", "kurin", "none"] = "mw-plus"
    """Published protocol this run claims to follow; departures from it are stamped next to it."""
    seed: int = 1
    """Seed of goals, networks, exploration and sampling; 0 or more, with Meta-World below 2^32."""
    run_dir: str = ""
    """Where the run is written; runs/<name>/<method>/seed_<seed> if empty."""
    plugins: tuple[str, ...] = ()
    """Python files that register methods, networks or environments (docs/extending.md)."""
    env: EnvConfig = field(default_factory=EnvConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)

    @property
    def task_names(self) -> tuple[str, ...]:
        return self.env.tasks or benchmarks.benchmark_tasks(self.env.benchmark)

    @property
    def num_tasks(self) -> int:
        return len(self.task_names)

    @property
    def num_envs(self) -> int:
        """Training environments: environment steps of one vector step."""
        return self.num_tasks * self.train.envs_per_task

    @property
    def episode_steps(self) -> int:
        """Environment steps of one episode of every training environment."""
        return self.env.horizon * self.num_envs

    @property
    def episodes_end_together(self) -> bool:
        """Always at the horizon, so that all environments are reset at once."""
        return self.task_names[0] in benchmarks.all_tasks()

    @property
    def whole_steps(self) -> int:
        """Environment steps of the run, rounded up to whole episodes: at its end every environment
        has just been reset."""
        return math.ceil(self.train.total_steps / self.episode_steps) * self.episode_steps

    @property
    def whole_warmup(self) -> int:
        """Environment steps of the warm-up, rounded up to whole vector steps."""
        return math.ceil(self.train.warmup_steps / self.num_envs) * self.num_envs

    @property
    def total_updates(self) -> int:
        """Updates of the whole run."""
        learning = max(self.whole_steps - self.whole_warmup, 0) // self.num_envs
        return self.agent.warmup_updates + math.floor(learning * self.agent.updates_per_step)

    def updates_of(self, loss: Loss) -> int:
        """Those of the whole run in which this loss is trained."""
        rests = 1 if loss == "critic" else self.agent.actor_every
        return math.ceil(self.total_updates / rests)

    def smto_of(self, loss: Loss) -> SmtoConfig:
        """The SMTO of one loss: agent.smto, where agent.<loss>_smto does not override it."""
        own = getattr(self.agent, f"{loss}_smto")
        both = self.agent.smto
        if loss == "temperature":
            return SmtoConfig(own.name, own.options)
        if own.name in (None, both.name):
            return SmtoConfig(both.name, both.options | own.options)
        return SmtoConfig(own.name, own.options)

    @property
    def method(self) -> str:
        """Name for paths and tables, e.g. `pcgrad`, or `pcgrad+unitary` for critic+actor."""
        names = [self.smto_of("critic").name, self.smto_of("actor").name]
        return names[0] if names[0] == names[1] else "+".join(names)

    @property
    def run_path(self) -> Path:
        if self.run_dir:
            return user_path(self.run_dir)
        return Path("runs") / (self.name or "run") / self.method / f"seed_{self.seed}"

    @property
    def protocol_stamp(self) -> str:
        """`mw-plus`, or `mw-plus modified (env.horizon=150)` where the run departs from it."""
        values = flatten(self)
        departures = [
            f"{key}={values[key]}"
            for key, value in PROTOCOLS.get(self.protocol, {}).items()
            if values[key] != value
        ]
        return (
            f"{self.protocol} modified ({', '.join(departures)})" if departures else self.protocol
        )


def load_yaml(path: Path) -> Config:
    """Read a configuration; missing keys take the defaults, unknown or ill-typed ones raise."""
    content = read_yaml(path)
    if isinstance(content, dict) and "problem" in content:
        raise ConfigError(
            "CONFIG",
            str(path),
            "is for `mtrl supervised`; docs/supervised.md has a command for many methods and seeds",
        )
    config: Config = build(Config, content)
    return config
