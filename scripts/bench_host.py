"""Where the host's time of a vector step goes, with simulation that costs nothing and no updates.

    python scripts/bench_host.py                              # 10, 80, 320 and 1,600 environments
    python scripts/bench_host.py --envs-per-task 32 --device cuda --markdown docs/performance.md

The real loop of `mt10.yaml` and real worker processes, over environments of Meta-World's shape that
stand still. Microseconds of a vector step, medians (of goals and episodes' ends, which come once in
500 steps: means); what a stage calls of another is counted there. `store` includes the reward
moments. On CUDA these are the host's, which waits for the device only where actions come back; the
policy's actions and storing are CUDA graphs, as in a run. `receive` waits for the busiest worker,
whose own time stands beside it; what is left of it is the hand-over. A row is printed as soon as it
is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import platform
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

    class Watched(Trainer):
        began = 0.0

        def _log_evaluate_save(self, *, may_save: bool) -> None:
            if worked:
                stages.end_step(time.perf_counter() - self.began)
            else:
                stages.restart()
            worked.append(envs.worker_seconds())
            if len(worked) > steps:
                raise _Enough
            self.began = time.perf_counter()

    device = set_up_learner(config)
    config, _ = settle(config, device)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        config = dataclasses.replace(config, run_dir=str(Path(folder, "run")))
        run = RunDirectory.create(config)
        trainer = Watched(config, run, envs, device, stack)
        trainer.open_recorder()  # for a warning, if something cannot be captured
        for owner, name, stage in (
            (trainer.collector, "act", "act"),
            (trainer.collector.transfer, "to_host", "to the host"),
            (trainer, "_check_finite", "finite checks"),
            (envs, "send", "send"),
            (trainer.collector.transfer, "to_device", "to the device"),
            (trainer.reward_scale, "observe", "reward scale"),
            (trainer.collector, "store", "store"),
            (trainer, "_goals", "goals"),
            (trainer, "_finish_episodes", "episodes' ends"),
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
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--envs-per-task", type=int, nargs="+", default=[1, 8, 32, 160])
    parser.add_argument("--steps", type=int, default=600, help="vector steps of a row")
    parser.add_argument("--workers", type=int, help="processes; default: all cores")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--markdown", type=Path, help="file with the marked place for the table")
    options = parser.parse_args()

    import torch
    from marked_table import replace_table

    from mtrl.device.setup import choose_device
    from mtrl.envs.vector import VectorEnv, auto_workers
    from mtrl.options.command_line import load_config

    device = choose_device(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    count = options.workers or "auto"
    lines = [
        f"torch {torch.__version__}, {where}, {auto_workers(count, 1 << 20)} workers.",
        "",
        f"| environments | {' | '.join(COLUMNS)} |",
        "|---" * (1 + len(COLUMNS)) + "|",
    ]
    print("\n".join(lines), flush=True)
    for copies in options.envs_per_task:
        config = load_config("mt10")
        learner = dataclasses.replace(
            config.learner, device=options.device, threads=options.threads or "auto"
        )
        # Too few for one to fall due.
        agent = dataclasses.replace(config.agent, updates_per_step=1e-9)
        train = dataclasses.replace(config.train, warmup_steps=0, envs_per_task=copies)
        config = dataclasses.replace(config, learner=learner, agent=agent, train=train)
        lanes = config.num_envs
        names = [name for name in config.task_names for _ in range(copies)]
        workers = auto_workers(count, lanes)
        with VectorEnv(names, [Still] * lanes, OBSERVATION, ACTION, workers=workers) as envs:
            spent = measure(config, envs, options.steps)
        cells = " | ".join(f"{spent.get(column, 0):,.0f}" for column in COLUMNS)
        lines.append(f"| {lanes:,} | {cells} |")
        print(lines[-1], flush=True)
    if options.markdown:
        replace_table(options.markdown, "bench_host", "\n".join(lines))


if __name__ == "__main__":
    main()
