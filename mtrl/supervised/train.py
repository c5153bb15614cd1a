"""The supervised training loop, and selection, logging, saving and stopping around it.

x axis of all logs: iterations (mini-batches).
"""

from __future__ import annotations

import math
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtrl.device.memory import peak_memory_mib
from mtrl.device.setup import set_up_learner
from mtrl.gradients.diagnostics import Diagnostics
from mtrl.run import checkpoint
from mtrl.run.checkpoint import CheckpointError
from mtrl.run.dashboard import Dashboard
from mtrl.run.directory import RunDirectory
from mtrl.run.recorder import Recorder
from mtrl.run.state import Status
from mtrl.run.stopping import Stopped, TrainingError, outcome, signals
from mtrl.supervised.comparison import delta_m, mean_over_tasks
from mtrl.supervised.config import SupervisedConfig
from mtrl.supervised.dashboard import dashboard
from mtrl.supervised.data import Batches, Loader, Splits
from mtrl.supervised.learner import Learner, Score
from mtrl.supervised.preparation import training_split
from mtrl.supervised.problems import make_problem


class Trainer:
    """One run. `loop` is the algorithm; everything else serves it."""

    def __init__(
        self,
        config: SupervisedConfig,
        run: RunDirectory,
        splits: Splits,
        device: torch.device,
        stack: ExitStack,
    ) -> None:
        """`stack` ends what the run starts: threads and open files."""
        self.config, self.run, self.device, self.stack = config, run, device, stack
        self.problem = make_problem(config)
        self.held_out: Batches | None = None
        kept, apart = training_split(config, splits)
        if apart is not None:
            loader = Loader(apart, len(config.problem_tasks), device)
            self.held_out = Batches(loader, min(config.train.batch_size, loader.size), config.seed)
            stack.callback(self.held_out.close)
        train, self.validation, self.test = (
            Loader(split, len(config.problem_tasks), device)
            for split in splits._replace(train=kept)
        )
        self.batches = Batches(train, config.train.batch_size, config.seed, self.problem.augment)
        stack.callback(self.batches.close)
        self.total = config.train.epochs * self.batches.per_epoch
        self.learner = Learner(config, self.problem, self.total, device)
        self.step = 0
        self.best: dict[str, float] = {}
        self.scores: dict[str, float] = {}
        """The latest means, {"eval/accuracy_mean": ...}."""
        self.elapsed = 0.0
        self.stop_signal = 0
        self.diagnostics = Diagnostics()
        self._epoch_s = 0.0
        self._new_log_window()

    def open_recorder(self) -> None:
        """Once the step is known (zero, or a checkpoint's)."""
        self.recorder = Recorder(self.run, self.config, self.step, self.total, self._dashboard())
        self.stack.callback(self.recorder.close)

    def _dashboard(self) -> Dashboard:
        metrics = [metric.name for task in self.problem.tasks for metric in task.metrics]
        return dashboard(list(dict.fromkeys(metrics)))

    @property
    def has_learned(self) -> bool:
        return self.step > 0

    @property
    def finished(self) -> bool:
        return self.step >= self.total

    # -- the algorithm --------------------------------------------------------------------------

    def loop(self) -> list[Score]:
        """Train to the end; -> test scores of the selected models."""
        per_epoch, every = self.batches.per_epoch, self.config.diagnostics.every
        while not self.finished:
            epoch = self.step // per_epoch
            diagnostic = every > 0 and self.step % every == 0
            held_out = None if self.held_out is None else self.held_out[self.step]
            outcome = self.learner.update(
                self.batches[self.step], epoch, diagnostic=diagnostic, held_out=held_out
            )
            self.step += 1
            self._remember(outcome.losses, outcome.weights)
            if diagnostic and outcome.gramian is not None:
                certificates = self.learner.certificates()
                self.diagnostics.add({"shared": outcome.gramian}, certificates)
            end = self.step % per_epoch == 0
            if self.step % self.config.logging.every == 0 or end or self.stop_signal:
                self.log()
            if end:
                self._end_epoch(epoch + 1)
            if self.stop_signal and not self.finished:
                self.save()
                raise Stopped(self.stop_signal, self.run)
        scores = self.test_scores()
        values = self._values("test", scores)
        self.scores |= {tag: value for tag, value in values.items() if tag.endswith("_mean")}
        self.recorder.scalars(self.step, values)
        return scores

    def _end_epoch(self, epoch: int) -> None:
        self.recorder.scalars(self.step, {"epoch": epoch, "time/epoch_s": self._epoch_s})
        self._epoch_s = 0.0
        started = time.monotonic()
        self._select(self.learner.evaluate(self.validation))
        seconds = time.monotonic() - started
        self.elapsed += seconds
        self.recorder.scalars(self.step, {"time/eval_s": seconds})
        if epoch % self.config.checkpoint.every == 0 or self.finished:
            self.save()
        self._new_log_window()

    def _select(self, scores: list[Score]) -> None:
        """Record the validation scores and keep the models that are best so far."""
        values = self._values("eval", scores)
        criteria = self._criteria(scores)
        if self.config.train.reference:
            values |= {f"eval/{name}": value for name, value, _ in criteria}
        self.scores = {tag: value for tag, value in values.items() if tag.endswith("_mean")}
        self.recorder.scalars(self.step, values)
        if self.config.train.lr_patience:
            ((_, score, higher_is_better),) = criteria
            self.learner.step_size.hear(score, higher_is_better=higher_is_better)
        for name, value, higher in criteria:
            if not math.isfinite(value):
                raise TrainingError(f"non-finite {name} on the validation split")
            best = self.best.get(name, -math.inf if higher else math.inf)
            if value > best if higher else value < best:
                self.best[name] = value
                state = {"step": self.step, "network": self.learner.network.state_dict()}
                checkpoint.save(self._best_path(name), state)

    def _criteria(self, scores: list[Score]) -> list[tuple[str, float, bool]]:
        """(name, value, higher is better) of each model to select."""
        if reference := self.config.train.reference:
            found = {(s.task, s.metric): s.value for s in scores}
            single = {(s.task, s.metric): reference[f"{s.metric}/{s.task}"] for s in scores}
            return [("delta_m", delta_m(found, single), True)]
        if self.problem.selects_by_mean:
            mean = mean_over_tasks(scores[0].metric, [score.value for score in scores])
            return [(f"{scores[0].metric}_mean", mean, scores[0].higher_is_better)]
        return [(f"{s.metric}_{s.task}", s.value, s.higher_is_better) for s in scores]

    @property
    def _keeps_one_model(self) -> bool:
        return bool(self.config.train.reference) or self.problem.selects_by_mean

    def _best_path(self, criterion: str) -> Path:
        name = "best" if self._keeps_one_model else f"best_{criterion}"
        return self.run.checkpoints / f"{name}.pt"

    def test_scores(self) -> list[Score]:
        """Every metric on the test split, by the model that was selected for it."""
        last = self.learner.network.state_dict()
        last = {name: value.clone() for name, value in last.items()}
        scores: list[Score] = []
        for name in self.best:
            path = self._best_path(name)
            state = checkpoint.load(path)
            with _of_this_run(path):
                self.learner.network.load_state_dict(state["network"])
            measured = self.learner.evaluate(self.test)
            scores += [
                score
                for score in measured
                if self._keeps_one_model or name == f"{score.metric}_{score.task}"
            ]
        self.learner.network.load_state_dict(last)
        return scores

    @staticmethod
    def _values(prefix: str, scores: list[Score]) -> dict[str, float]:
        """{"<prefix>/<metric>/<task>": value}, and a mean for each metric of several tasks."""
        values = {f"{prefix}/{s.metric}/{s.task}": s.value for s in scores}
        for metric in dict.fromkeys(s.metric for s in scores):
            of_tasks = [s.value for s in scores if s.metric == metric]
            values[f"{prefix}/{metric}_mean"] = mean_over_tasks(metric, of_tasks)
        return values

    # -- around it ------------------------------------------------------------------------------

    def _new_log_window(self) -> None:
        self._losses: Tensor | None = None
        self._weights: Tensor | None = None
        self._updates = 0
        self._window_start = time.monotonic()

    def _remember(self, losses: Tensor, weights: Tensor | None) -> None:
        self._updates += 1
        self._losses = losses if self._losses is None else self._losses + losses
        if weights is not None:
            self._weights = weights if self._weights is None else self._weights + weights

    def log(self) -> None:
        """Mean metrics since the last log; the one place where the loop waits for the device."""
        if self._losses is None:
            return
        losses = (self._losses / self._updates).tolist()
        weights = [] if self._weights is None else (self._weights / self._updates).tolist()
        seconds = max(time.monotonic() - self._window_start, 1e-9)
        self.elapsed += seconds
        self._epoch_s += seconds
        for name, loss in zip(self.config.task_names, losses, strict=True):
            if not math.isfinite(loss):
                raise TrainingError(f"non-finite loss of task {name} before step {self.step}")
        values = self.recorder.per_task("train/loss", losses)
        if weights:
            values |= self.recorder.per_task("smto/shared/weight", weights)
        values |= self.diagnostics.flush()
        values["time/updates_per_s"] = self._updates / seconds
        values["memory/learner_mib"] = peak_memory_mib(self.device)
        self.recorder.scalars(self.step, values)
        rate = values["time/updates_per_s"]
        words = [f"loss {values['train/loss_mean']:.4f}"]
        words += [f"{tag} {value:.4f}" for tag, value in self.scores.items()]
        self.recorder.advance(self.step, [*words, f"{rate:.1f} updates/s"], rate)
        self.status("running")
        self._new_log_window()

    # -- state ----------------------------------------------------------------------------------

    def status(self, status: Status) -> None:
        self.run.write_status(
            status,
            reason="",
            step=self.step,
            total_steps=self.total,
            elapsed_s=round(self.elapsed, 1),
            protocol=self.config.protocol_stamp,
            **{tag.replace("/", "_"): value for tag, value in self.scores.items()},
        )

    def save(self) -> None:
        """A checkpoint of everything, at any iteration."""
        self.log()  # refuses non-finite losses: a bad state never replaces a good one
        state = {
            "step": self.step,
            "best": self.best,
            "scores": self.scores,
            "elapsed": self.elapsed,
            "epoch_s": self._epoch_s,
            "learner": self.learner.state_dict(),
            "identity": self._identity(),
        }
        checkpoint.save(checkpoint.step_path(self.run.checkpoints, self.step), state)
        checkpoint.prune(self.run.checkpoints, self.config.checkpoint.keep)

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint and the run that continues from it have in common."""
        sizes = [loader.size for loader in (self.batches.loader, self.validation, self.test)]
        names = {"problem": self.config.problem, "method": self.config.method}
        if self.config.tasks:
            names["tasks"] = ", ".join(self.config.task_names)
        return names | {"samples for training, validation, test": sizes}

    def load(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError if the state is another run's."""
        with _of_this_run(self.run.checkpoints):
            theirs = state.get("identity", {})
            for what, ours in self._identity().items():
                if theirs.get(what, ours) != ours:
                    raise ValueError(f"{what}: {theirs[what]}, here {ours}")
            self.step, self.best = state["step"], state["best"]
            self.scores, self.elapsed = state["scores"], state["elapsed"]
            self._epoch_s = state["epoch_s"]
            self.learner.load_state_dict(state["learner"])
        self._new_log_window()


@contextmanager
def _of_this_run(path: Path) -> Iterator[None]:
    """What goes wrong while a state is taken over, as a CheckpointError of one line."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"{path}: the checkpoint is another run's: no {error}") from None
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = textwrap.shorten(str(error), 300)
        raise CheckpointError(f"{path}: the checkpoint is another run's: {reason}") from None


def train(
    config: SupervisedConfig, run: RunDirectory, splits: Splits, *, resume: bool = False
) -> list[Score]:
    """Run to the end (or to a signal); -> test scores of the selected models.

    splits: `load_data(config)`. A run that is finished stays as it is, and is only tested.

    Raises ConfigError, TrainingError, CheckpointError, MemoryError or Stopped. Nothing is written
    until all is set up. From then on, status.json says how the run ended; a new run that fails
    before its first step leaves nothing.
    """
    device = set_up_learner(config.learner)
    with ExitStack() as stack:
        stack.callback(run.release)
        if resume:
            run.lock()
        trainer = Trainer(config, run, splits, device, stack)
        state: dict[str, Any] | None = None
        warnings: list[str] = []
        if resume:
            state, warnings = checkpoint.load_newest(run.checkpoints, finished=run.is_finished)
        if state is not None:
            trainer.load(state)
        else:
            trainer.learner.load_start_weights()
        if resume and trainer.finished and run.is_finished:
            print(f"mtrl: {run.path} is finished: only tested again", file=sys.stderr)
            return trainer.test_scores()
        if not resume:
            run.make()
        stack.enter_context(outcome(run, trainer, new=not resume))
        if resume:
            run.write_config(config)
        else:
            run.write(config)
        trainer.open_recorder()
        stack.enter_context(signals(trainer, "iteration"))
        fresh = not resume and not config.network.weights
        if fresh and config.starts_from_imagenet:
            warnings.append(
                "the encoder starts from RANDOM weights, the published ones from ImageNet: "
                "give a file with --network.weights to compare"
            )
        for warning in warnings:
            trainer.recorder.message(f"warning: {warning}")
        began = f"resumed at step {trainer.step:,}" if state else "started"
        trainer.recorder.message(
            f"{run.path}: {began}, {config.train.epochs} epochs of "
            f"{trainer.batches.per_epoch} iterations, {config.num_tasks} tasks, "
            f"{config.method} in {config.gradient_space} space, {config.protocol_stamp}, "
            f"on {device}"
        )
        trainer.status("running")
        scores = trainer.loop()
        trainer.status("finished")
        return scores
