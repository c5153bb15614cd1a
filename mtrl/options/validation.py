"""Impossible values: each raises ConfigError with the key, the value and what is allowed.

Methods and their options are checked in methods.py: that needs PyTorch, and is left until the
simulation workers have been started.
"""

from __future__ import annotations

from mtrl.config import Config, TrainConfig, benchmarks
from mtrl.envs import gym_tasks
from mtrl.envs import tasks as env_tasks
from mtrl.files.errors import first_line
from mtrl.run.sinks import check_sinks
from mtrl.schema import ConfigError, check_bounds, flatten, nearest


def check_gym_tasks(config: Config) -> None:
    """Raise ConfigError unless the run's Gymnasium tasks, if it has some, can be made here."""
    if not env_tasks.is_gym(config.task_names[0]):
        return
    try:
        gym_tasks.dimensions(config.task_names, config.plugins)
    except Exception as error:  # whatever an environment raises where it cannot be made
        raise ConfigError("env.tasks", config.env.tasks, first_line(error)) from error


META_WORLD_SEED = 2**32 - 1
"""The largest that Meta-World takes: NumPy's global generator draws its goals."""
LARGEST_SEED = 2**63 - 1
"""PyTorch's generators take twice as much, but some get the seed plus a small number."""


def check_seed(seed: int, largest: int = LARGEST_SEED) -> None:
    """ConfigError for a seed that a generator would not take."""
    if not 0 <= seed <= largest:
        raise ConfigError("seed", seed, f"must be zero or positive, and at most {largest}")


def check_weight_decay(
    section: str, optimizer: str, l2_key: str, l2: float, weight_decay: float
) -> None:
    """ConfigError for a kind of weight decay that the optimiser does not have: l2 is coupled, under
    `l2_key` of the section; weight_decay is not."""
    l2_key, decay_key = section + l2_key, f"{section}weight_decay"
    if weight_decay and optimizer not in ("adamw", "muon"):
        allowed = f"needs {section}optimizer=adamw or muon; {optimizer} has {l2_key}"
        raise ConfigError(decay_key, weight_decay, allowed)
    if l2 and optimizer not in ("adam", "sgd"):
        raise ConfigError(l2_key, l2, f"is for adam and sgd; {optimizer} has {decay_key}")


def check_video(config: Config, prefix: str = "") -> None:
    """ConfigError for a picture that cannot be made; prefix: of the options' names."""
    train, goals = config.train, config.env.num_goals
    size, camera, episodes = train.video_size, train.video_camera, train.video_episodes
    if not (128 <= size <= 1024 and size % 16 == 0):
        raise ConfigError(f"{prefix}video_size", size, "must be a multiple of 16, from 128 to 1024")
    kind = env_tasks.kind(config.task_names[0])
    if camera != TrainConfig.video_camera and kind != "Meta-World":
        raise ConfigError(
            f"{prefix}video_camera", camera, f"only Meta-World's tasks have it; these are {kind}"
        )
    if not 1 <= episodes <= goals:
        raise ConfigError(
            f"{prefix}video_episodes", episodes, f"must be in 1..{goals}, env.num_goals"
        )


def validate(config: Config) -> None:
    """Raise ConfigError at the first impossible value.

    Bounds of single numbers stand beside their fields; here is what depends on more than one.
    """
    check_bounds(config)
    env, train, replay, agent = config.env, config.train, config.replay, config.agent
    values = flatten(config)

    def need(condition: bool, key: str, allowed: str) -> None:
        if not condition:
            raise ConfigError(key, values[key], allowed)

    if not env.tasks:
        known = benchmarks.BENCHMARKS
        need(
            env.benchmark in known or env.benchmark == "MT1",
            "env.benchmark",
            f"must be one of MT1, {', '.join(known)}{nearest(env.benchmark, known)}",
        )
        need(env.benchmark != "MT1", "env.tasks", "MT1 needs one task, e.g. reach-v3")
    need(env.benchmark != "MT1" or len(env.tasks) == 1, "env.tasks", "MT1 needs exactly one task")
    for task in env.tasks:
        known_tasks = benchmarks.all_tasks()
        need(
            task in known_tasks or env_tasks.is_gym(task),
            "env.tasks",
            f"unknown task {task!r}; `mtrl list tasks` shows all{nearest(task, known_tasks)}",
        )
    need(len(set(env.tasks)) == len(env.tasks), "env.tasks", "each task may stand only once")
    need(
        len({env_tasks.kind(task) for task in config.task_names}) == 1,
        "env.tasks",
        "toy, Meta-World and Gymnasium tasks cannot be mixed: their observations differ",
    )
    gym = env_tasks.is_gym(config.task_names[0])
    if gym:
        need(config.protocol == "none", "protocol", "must be none with Gymnasium tasks")
        check_gym_tasks(config)
    need(1 <= env.horizon <= 500 or gym, "env.horizon", "must be between 1 and 500")
    need(env.horizon >= 1, "env.horizon", "must be at least 1")

    m, n = config.num_tasks, config.num_envs
    need(
        n <= train.warmup_steps,
        "train.warmup_steps",
        f"must be at least {n} (one step of each environment), to fill the first batch",
    )
    need(
        train.warmup_steps <= train.total_steps,
        "train.warmup_steps",
        f"must not be longer than the run, train.total_steps = {train.total_steps}",
    )
    need(
        replay.batch_size >= m and replay.batch_size % m == 0,
        "replay.batch_size",
        f"must be a positive multiple of the {m} tasks, "
        f"e.g. {max(1, round(replay.batch_size / m)) * m}",
    )
    need(replay.capacity >= n, "replay.capacity", f"must be at least one per environment ({n})")
    need(
        config.network.log_std_min < config.network.log_std_max,
        "network.log_std_min",
        f"must be below network.log_std_max = {config.network.log_std_max}",
    )
    need(
        1 <= agent.n_step <= env.horizon,
        "agent.n_step",
        f"must be in 1..{env.horizon}, the horizon",
    )
    check_weight_decay("agent.", agent.optimizer, "actor_l2", agent.actor_l2, agent.weight_decay)
    check_video(config, "train.")
    episode = config.episode_steps
    every = config.checkpoint.every
    need(
        every >= 1 and every % episode == 0,
        "checkpoint.every",
        f"must be a multiple of env.horizon * environments = {episode}, "
        f"e.g. {max(1, round(every / episode)) * episode}",
    )
    meta_world = env_tasks.kind(config.task_names[0]) == "Meta-World"
    check_seed(config.seed, META_WORLD_SEED if meta_world else LARGEST_SEED)
    check_sinks(config.logging)
