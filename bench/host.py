"""Where the host's time of a vector step goes, with simulation that costs nothing and no updates.

    python bench/host.py                              # 10, 80, 320 and 1,600 environments
    python bench/host.py --envs-per-task 32 --device cuda --markdown docs/performance.md

The real loop of `mt10.yaml` and real worker processes, over environments of Meta-World's shape that
stand still. Microseconds of a vector step, medians (of goals and episodes' ends, which come once in
500 steps: means); what a stage calls of another is counted there. `store` includes the reward
moments. On CUDA these are the host's, which waits for the device only where actions come back; the
policy's actions and storing are CUDA graphs, as in a run. `receive` waits for the busiest worker,
whose own time stands beside it; what is left of it is the hand-over. A row is printed as soon as it
is measured.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from harness import make_parser, run
from mtrl.report.markdown import Table
from mtrl.schema import with_values

if TYPE_CHECKING:  # the workers import this file: what they do not need is imported later
    from mtrl.config import Config
    from mtrl.envs.vector import VectorEnv

OBSERVATION, ACTION, HORIZON = 39, 4, 500
COLUMNS = (
    *("all but receive", "act", "to the host", "finite checks", "send", "to the device"),
    *("reward scale", "store", "goals", "episodes' ends", "everything else"),
    *("receive", "the busiest worker"),
)


class Still(gymnasium.Env):
    """Always the same observation and reward; an episode lasts HORIZON steps."""

    def __init__(self) -> None:
        self.observation = np.ones(OBSERVATION)
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        self.steps = 0
        return self.observation, {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation, 1.0, False, self.steps >= HORIZON, {}


class Stages:
    """Seconds inside the methods that are watched, each without those it calls."""

    def __init__(self) -> None:
        self._steps: dict[str, list[float]] = defaultdict(list)
        self._now: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def watch(self, owner: Any, name: str, stage: str) -> None:
        method: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(method)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                spent = time.perf_counter() - started
                self._now[stage] += spent - self._inner.pop()
                self._inner[-1] += spent

        setattr(owner, name, watched)

    def restart(self) -> None:
        """Forget what is not of a whole step."""
        self._now.clear()

    def end_step(self, seconds: float) -> None:
        """seconds: of the whole step."""
        self._now["everything else"] = seconds - sum(self._now.values())
        for stage, spent in self._now.items():
            self._steps[stage].append(spent)
        self._now.clear()

    def summary(self) -> dict[str, float]:
        """{stage: seconds of a step}."""
        steps = len(self._steps["everything else"])
        return {
            stage: statistics.median(spent) if len(spent) == steps else sum(spent) / steps
            for stage, spent in self._steps.items()
        }


class _Enough(Exception):
    """The steps asked for are made."""


def measure(config: Config, envs: VectorEnv, steps: int) -> dict[str, float]:
    """{stage: microseconds of a vector step}."""
    from mtrl.device.setup import set_up_learner, settle
    from mtrl.run.directory import RunDirectory
    from mtrl.trainer import Trainer

    stages = Stages()
    worked: list[NDArray[np.float64]] = []

    began = 0.0

    def watch(may_save: bool) -> None:
        nonlocal began
        if worked:
            stages.end_step(time.perf_counter() - began)
        else:
            stages.restart()
        worked.append(envs.worker_seconds())
        if len(worked) > steps:
            raise _Enough
        began = time.perf_counter()

    device = set_up_learner(config.learner)
    config, _ = settle(config, device)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        config = dataclasses.replace(config, run_dir=str(Path(folder, "run")))
        run = RunDirectory.create(config)
        trainer = Trainer(config, run, envs, device, stack)
        trainer.events = [watch]
        trainer.open_recorder()  # for a warning, if something cannot be captured
        for owner, name, stage in (
            (trainer.collector, "act", "act"),
            (trainer.collector.transfer, "to_host", "to the host"),
            (envs, "_check_finite", "finite checks"),
            (envs, "send", "send"),
            (trainer.collector.transfer, "to_device", "to the device"),
            (trainer.replay.scale, "observe", "reward scale"),
            (trainer.collector, "store", "store"),
            (trainer.goals, "count", "goals"),
            (trainer.recent, "add", "episodes' ends"),
            (envs, "receive", "receive"),
        ):
            stages.watch(owner, name, stage)
        with suppress(_Enough):
            trainer.loop()
    spent = {stage: 1e6 * seconds for stage, seconds in stages.summary().items()}
    worker = statistics.median(np.diff(worked, axis=0).max(1).tolist())
    host = sum(spent.values()) - spent["receive"]
    return {**spent, "all but receive": host, "the busiest worker": 1e6 * worker}


def main() -> None:
    from device import machine, set_up
    from mtrl.envs.vector import VectorEnv, auto_workers
    from mtrl.options.command_line import load_config

    parser = make_parser(__file__, __doc__, device="auto", threads=None)
    parser.add_argument("--envs-per-task", type=int, nargs="+", default=[1, 8, 32, 160])
    parser.add_argument("--steps", type=int, default=600, help="vector steps of a row")
    parser.add_argument("--workers", type=int, help="processes; default: all cores")
    options = parser.parse_args()
    device = set_up(options.device, options.threads)
    count = options.workers or "auto"
    intro = f"{machine(device)}, {auto_workers(count, 1 << 20)} workers."
    table = Table("environments", *COLUMNS, intro=intro)
    for copies in options.envs_per_task:
        settings = {
            "learner.device": options.device,
            "learner.threads": options.threads or "auto",
            "agent.updates_per_step": 1e-9,  # too few for one to fall due
            "train.warmup_steps": 0,
            "train.envs_per_task": copies,
        }
        config = with_values(load_config("mt10"), settings)
        lanes = config.num_envs
        names = [name for name in config.task_names for _ in range(copies)]
        workers = auto_workers(count, lanes)
        with VectorEnv(names, [Still] * lanes, OBSERVATION, ACTION, workers=workers) as envs:
            spent = measure(config, envs, options.steps)
        table.add(f"{lanes:,}", *(f"{spent.get(column, 0):,.0f}" for column in COLUMNS))
    table.publish(options.markdown, options.csv)


if __name__ == "__main__":
    run(main)
