"""`mtrl bench`: what a configuration spends its time on, on this machine, in under a minute.

Runs the real training loop for a while, in a temporary directory, and sets the update against the
rate at which this machine multiplies matrices of the networks' shape.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from mtrl.agent import Agent
from mtrl.config import Config
from mtrl.device.cuda_graph import WARM_UPS
from mtrl.device.memory import forget_peak_memory, peak_memory_mib
from mtrl.device.setup import set_up_learner, settle
from mtrl.envs.vector import VectorEnv
from mtrl.evaluation import goal_schedule
from mtrl.run.directory import RunDirectory
from mtrl.trainer import Trainer

CUDA_UPDATES = 100  # timed by themselves
WARMUP = 50  # vector steps: enough to sample from, and to fill caches


class _Enough(Exception):
    """The measured window is over."""


@dataclass(frozen=True)
class Measurement:
    """What the loop did while it was watched."""

    env_steps_per_s: float
    updates_per_s: float
    stages: dict[str, tuple[float, float]]
    """{stage: (milliseconds of a lap, share of the time)}; rare stages have share 0."""
    busiest_worker_ms: float
    """Simulation of one vector step in the worker with most to do."""
    learner_ms: float
    """Everything else in one vector step: all that the loop does but waiting for the workers. On
    CUDA at least its updates, which continue while the loop waits."""
    step_ms: float
    """One vector step."""
    update_ms: float
    """One update; on CUDA by itself, since the loop only launches it."""
    update_gflop: float
    """Matrix products of one update."""
    peak_gflops: float
    """This machine's rate at such products of the hidden layers' shape, fp32 (TF32 if chosen)."""
    learner_mib: float
    """Peak memory: tensors on a CUDA device, else the process."""
    replay_mib: float
    """The whole buffer, of which the learner has touched only what is filled."""
    worker_mib: float
    """Resident memory of the largest worker."""

    @property
    def overlap(self) -> float:
        """max(simulation, learner) / wall: 1 = the shorter one costs nothing."""
        return max(self.busiest_worker_ms, self.learner_ms) / self.step_ms

    @property
    def product_share(self) -> float:
        """Rate of the update's matrix products over this machine's, 1 = nothing else."""
        return self.update_gflop / (self.update_ms / 1e3) / self.peak_gflops


class _Watch:
    """The one event of a measured run: it ends some time after the warm-up."""

    def __init__(self, trainer: Trainer, seconds: float) -> None:
        self.trainer, self.seconds = trainer, seconds
        self._until = float("inf")
        # Updates until all kinds of them are compiled and captured.
        self._first = (WARM_UPS + 1) * trainer.config.agent.actor_every

    def __call__(self, may_save: bool) -> None:
        trainer = self.trainer
        if self._until == float("inf") and trainer.learner.updates > self._first:
            self._until = time.perf_counter() + self.seconds
            trainer.window.restart(trainer.step)
        if time.perf_counter() > self._until:
            raise _Enough


def _update_ms(trainer: Trainer) -> float:
    if trainer.device.type != "cuda":
        return 1e3 * trainer.timer.means().get("update", float("nan"))
    torch.cuda.synchronize(trainer.device)
    started = time.perf_counter()
    trainer.learner.learn(CUDA_UPDATES, left=1.0)
    torch.cuda.synchronize(trainer.device)
    return 1e3 * (time.perf_counter() - started) / CUDA_UPDATES


def measure(
    config: Config, envs: VectorEnv, seconds: float = 20.0, *, rare: bool = True
) -> Measurement:
    """envs: `make_vector_env(config, config.train.envs_per_task)`, closed by the caller.

    rare: time the stages outside the loop too (evaluation, checkpoint, log line).
    """
    device = set_up_learner(config.learner)
    with contextlib.suppress(OSError):
        forget_peak_memory(device)
    config, _ = settle(config, device)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        config = dataclasses.replace(
            config,
            run_dir=str(Path(folder, "run")),
            train=dataclasses.replace(config.train, warmup_steps=WARMUP * config.num_envs),
            agent=dataclasses.replace(config.agent, warmup_updates=0),
            logging=dataclasses.replace(config.logging, wandb=False),  # a measurement is no run
        )
        trainer = Trainer(config, RunDirectory.create(config), envs, device, stack)
        trainer.events = [_Watch(trainer, seconds)]
        trainer.open_recorder()
        trainer.learner.prepare()
        with contextlib.suppress(_Enough):
            trainer.loop()
        return _summary(trainer, rare=rare)


def _summary(trainer: Trainer, *, rare: bool) -> Measurement:
    window, timer, n = trainer.window, trainer.timer, trainer.config.num_envs
    wall, steps = window.seconds, (trainer.step - window.first_step) / n
    times, busiest_s = window.times(trainer.step), window.busiest_worker_s
    waited, total = timer.seconds["simulate"], sum(timer.seconds.values())
    stages = {
        stage: (1e3 * seconds / timer.laps[stage], seconds / total)
        for stage, seconds in timer.seconds.items()
    }

    def checkpoint() -> None:
        trainer.save()
        trainer.writer.wait()

    def evaluate() -> None:
        """The second time: the first makes the workers and their models."""
        goals = goal_schedule(trainer.config, 1)
        evaluator = trainer.evaluations.evaluator
        evaluator.start(trainer.step, trainer.agent, goals)
        evaluator.collect()

    beside: dict[str, Callable[[], object]] = {
        "log": trainer.log,
        "checkpoint": checkpoint,
        "evaluate": evaluate,
    }
    learner_mib, update_ms = peak_memory_mib(trainer.device), _update_ms(trainer)
    learner_ms = 1e3 * (wall - waited) / steps
    if trainer.device.type == "cuda":
        learner_ms = max(learner_ms, update_ms * times["time/updates_per_s"] * wall / steps)
    if rare:
        evaluate()
    for stage, work in beside.items() if rare else ():
        begun = time.perf_counter()
        work()
        stages[stage] = (1e3 * (time.perf_counter() - begun), 0.0)
    return Measurement(
        env_steps_per_s=times["time/env_steps_per_s"],
        updates_per_s=times["time/updates_per_s"],
        stages=stages,
        busiest_worker_ms=1e3 * busiest_s,
        learner_ms=learner_ms,
        step_ms=1e3 * wall / steps,
        update_ms=update_ms,
        update_gflop=_update_flop(trainer) / 1e9,
        peak_gflops=_peak_flops(trainer) / 1e9,
        learner_mib=learner_mib,
        replay_mib=trainer.replay.storage.nbytes / 2**20,
        worker_mib=max(psutil.Process(pid).memory_info().rss for pid in trainer.envs.worker_pids)
        / 2**20,
    )


def _update_flop(trainer: Trainer) -> int:
    """Of an update outside any compiled function, where every product is seen."""
    envs = trainer.envs
    agent = Agent(trainer.config, envs.observation_dim, envs.action_dim, trainer.device)
    with FlopCounterMode(display=False) as counter:
        agent.update(trainer.replay.sample(trainer.learner.samples, agent.generator))
    return int(counter.get_total_flops())


def _peak_flops(trainer: Trainer) -> float:
    """Products of the twin critics' hidden layer, in fp32 (TF32 if chosen)."""
    config, device = trainer.config, trainer.device
    batch, width = config.replay.batch_size, config.network.width
    x = torch.randn(2, batch, width, device=device)
    weight = torch.randn(2, width, width, device=device)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(20):
            torch.bmm(x, weight)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return 20 * 2 * 2 * batch * width * width / statistics.median(times)


UNITS = {
    "sample": "update",
    "update": "update",
    "log": "time",
    "checkpoint": "time, outside the loop",
    "evaluate": "episode of every task, outside the loop",
}


def table(name: str, m: Measurement) -> Table:
    result = Table(
        title=f"{name}: {m.env_steps_per_s:,.0f} environment steps/s, "
        f"{m.updates_per_s:,.1f} updates/s"
    )
    result.add_column("stage")
    result.add_column("milliseconds", justify="right")
    result.add_column("per")
    result.add_column("of the time", justify="right")
    for stage, (milliseconds, share) in m.stages.items():
        shown = f"{share:.0%}" if share else ""
        result.add_row(stage, f"{milliseconds:,.2f}", UNITS.get(stage, "vector step"), shown)
    return result


def findings(m: Measurement) -> list[str]:
    """Overlap, rate, what bounds the run, and memory, a line each."""
    waits = m.stages["simulate"][1]
    bound = "the workers" if m.busiest_worker_ms > m.learner_ms else "the learner"
    return [
        f"overlap: simulation takes {m.busiest_worker_ms:.1f} ms a vector step in the busiest "
        f"worker, the learner {m.learner_ms:.1f} ms, both together {m.step_ms:.1f} ms: "
        f"{m.overlap:.2f} of the possible",
        f"matrix products: {m.update_gflop:.2f} GFLOP an update, at {m.product_share:.0%} of this "
        f"machine's {m.peak_gflops:,.0f} GFLOP/s (fp32 or TF32)",
        f"bound by {bound}: the loop waits {waits:.0%} of the time for the simulation",
        f"memory: learner {m.learner_mib:,.0f} MiB at its peak; the replay, when full, "
        f"{m.replay_mib:,.0f} MiB; largest worker {m.worker_mib:,.0f} MiB",
    ]
