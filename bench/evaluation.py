"""What an evaluation costs a run: in the background, as runs make it, against in line.

    python bench/evaluation.py                       # quickstart and mt10
    python bench/evaluation.py --configs best_mt10 --seconds 10 --rounds 5

The real loop with the preset's workers. After the warm-up it goes through rounds: so many seconds
of training alone give its speed; then one evaluation (its episodes count, an untrained policy, so
all of full length) in the background, then one in line. The cost of an evaluation is the time in
which the loop did nothing else, or did it more slowly: the time that passed, less what the vector
steps made meanwhile take alone. Medians over the rounds. Saved: the share of a run with the
preset's interval between evaluations.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Generator
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from device import machine, set_up
from harness import make_parser, run
from mtrl.config import Config
from mtrl.device.setup import set_up_learner, settle
from mtrl.envs.vector import make_vector_env
from mtrl.evaluation import goal_schedule
from mtrl.options.command_line import load_config
from mtrl.report.markdown import Table
from mtrl.run.directory import RunDirectory
from mtrl.schema import with_values
from mtrl.trainer import Trainer

COLUMNS = (
    *("preset", "episodes of each task", "in the background, s", "costs, s", "in line, s"),
    *("between evaluations, s", "saved"),
)


class _Enough(Exception):
    """All rounds have been made."""


class Round(NamedTuple):
    """Seconds."""

    step: float
    """Of a vector step, alone."""
    lasts: float
    costs: float
    """Of an evaluation in the background."""
    in_line: float


class Watch:
    """The one event of the loop."""

    def __init__(self, trainer: Trainer, seconds: float, rounds: int) -> None:
        self.trainer, self.seconds = trainer, seconds
        self.goals = goal_schedule(trainer.config, trainer.config.evaluation.episodes_per_task)
        self.rounds: list[Round] = []
        self._most, self._going = rounds, self._go()

    def __call__(self, may_save: bool) -> None:
        next(self._going)

    def _go(self) -> Generator[None]:
        trainer, evaluator = self.trainer, self.trainer.evaluations.evaluator
        while trainer.learner.updates < 20:
            yield
        evaluator.start(1, trainer.agent, self.goals)  # makes its workers
        evaluator.collect()
        while len(self.rounds) < self._most:
            steps, began = 0, time.perf_counter()
            while time.perf_counter() < began + self.seconds:
                yield
                steps += 1
            step = (time.perf_counter() - began) / steps
            steps, began = 0, time.perf_counter()
            evaluator.start(1, trainer.agent, self.goals)
            while not evaluator.finished():
                yield
                steps += 1
            lasts = time.perf_counter() - began
            evaluator.collect()
            began = time.perf_counter()
            evaluator.start(1, trainer.agent, self.goals)
            evaluator.collect()
            in_line = time.perf_counter() - began
            self.rounds.append(Round(step, lasts, lasts - steps * step, in_line))
        raise _Enough


def measure(config: Config, seconds: float, rounds: int) -> Round:
    """Medians."""
    device = set_up_learner(config.learner)
    config, _ = settle(config, device)
    with (
        TemporaryDirectory() as folder,
        make_vector_env(config, config.train.envs_per_task) as envs,
        ExitStack() as stack,
    ):
        config = dataclasses.replace(config, run_dir=str(Path(folder, "run")))
        trainer = Trainer(config, RunDirectory.create(config), envs, device, stack)
        watch = Watch(trainer, seconds, rounds)
        trainer.events = [watch]
        trainer.open_recorder()
        trainer.learner.prepare()
        with suppress(_Enough):
            trainer.loop()
    return Round(*map(statistics.median, zip(*watch.rounds, strict=True)))


def main() -> None:
    parser = make_parser(__file__, __doc__, device="auto", seconds=20.0)
    parser.add_argument("--configs", nargs="+", default=["quickstart", "mt10"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    table = Table(*COLUMNS, intro=f"{machine(set_up(options.device))}.")
    for name in options.configs:
        config = load_config(name)
        settings = {"learner.device": options.device, "train.warmup_steps": 50 * config.num_envs}
        config = with_values(config, settings)
        found = measure(config, options.seconds, options.rounds)
        between = config.evaluation.every / config.num_envs * found.step
        saved = (found.in_line - found.costs) / (between + found.in_line)
        times = (found.lasts, found.costs, found.in_line, between)
        episodes = str(config.evaluation.episodes_per_task)
        table.add(name, episodes, *(f"{value:.1f}" for value in times), f"{saved:.1%}")
    table.publish(options.markdown, options.csv)


if __name__ == "__main__":
    run(main)
