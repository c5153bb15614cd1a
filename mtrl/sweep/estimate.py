"""How long a run takes, from a few seconds of it."""

from __future__ import annotations

import dataclasses
import subprocess
import tempfile
import time
from pathlib import Path

from mtrl.config import Config
from mtrl.run.state import Standing, read_metrics
from mtrl.sweep.grid import Trial
from mtrl.sweep.process import last_line, start, stop

WINDOW = 10  # vector steps of one log line
ENOUGH_S = 5.0
TIMEOUT_S = 120.0


class EstimateError(RuntimeError):
    """The short run did not come as far as its updates; the message says why."""


def estimate_hours(config: Config) -> float:
    """Hours of one run: training at the speed measured now, and its evaluations.

    Starts the run itself in a temporary directory, with short episodes and a short warm-up, and
    ends it once the speed is known (10 s; longer where an update takes seconds). Not compiled: a
    run that compiles its update takes less.
    """
    horizon, n = min(config.env.horizon, 50), config.num_envs
    episode = horizon * n
    short = dataclasses.replace(
        config,
        env=dataclasses.replace(config.env, horizon=horizon),
        train=dataclasses.replace(
            config.train,
            warmup_steps=episode,
            total_steps=max(config.train.total_steps, 10_000 * episode),
        ),
        agent=dataclasses.replace(config.agent, warmup_updates=0),
        learner=dataclasses.replace(config.learner, compile="off"),
        evaluation=dataclasses.replace(config.evaluation, every=0),
        checkpoint=dataclasses.replace(config.checkpoint, every=10**6 * episode),
        logging=dataclasses.replace(config.logging, every=WINDOW * n, wandb=False),
    )
    with tempfile.TemporaryDirectory(prefix="mtrl-estimate-") as folder:
        path = Path(folder, "run")
        trial = Trial("run", Path(folder), dataclasses.replace(short, run_dir=str(path)))
        trial.write_config()
        process = start(trial, Standing("waiting"))
        try:
            simulation, training = _speeds(trial, process)
        finally:
            stop(process, kill=True)
            process.wait()
    evaluations = config.evaluation
    during = config.train.total_steps // evaluations.every if evaluations.every else 0
    one, last = (
        min(episodes, config.env.num_goals)
        for episodes in (evaluations.episodes_per_task, evaluations.final_episodes_per_task)
    )
    episodes = during * one + last
    steps = episodes * config.num_tasks * config.env.horizon
    return (config.train.total_steps / training + steps / simulation) / 3600


def _speeds(trial: Trial, process: subprocess.Popen) -> tuple[float, float]:
    """Environment steps per second without and with updates."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        over = process.poll() is not None or time.monotonic() > deadline
        simulating: list[float] = []
        updating: list[float] = []
        for line in read_metrics(trial.path / "metrics.jsonl"):
            if "time/updates_per_s" not in line:
                continue
            speeds = updating if line["time/updates_per_s"] else simulating
            speeds.append(line["time/env_steps_per_s"])
        measured = updating[1:]  # the first line pays for warming up
        seconds = sum(WINDOW * trial.config.num_envs / speed for speed in measured)
        if measured and (over or seconds > ENOUGH_S):
            return _harmonic_mean(simulating or measured), _harmonic_mean(measured)
        if over:
            why = f"no update in {TIMEOUT_S:.0f} s" if process.poll() is None else ""
            raise EstimateError(why or last_line(trial.log_file))
        time.sleep(0.2)


def _harmonic_mean(speeds: list[float]) -> float:
    """Of windows of equally many steps."""
    return len(speeds) / sum(1 / speed for speed in speeds)
