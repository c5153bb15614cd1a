"""The training loop, and what it calls on: logging, evaluation, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

import numpy as np
import torch

from mtrl.agent import Agent, Metrics
from mtrl.collector import Collector
from mtrl.config import Config
from mtrl.device.memory import peak_memory_mib
from mtrl.envs.goals import LaneGoals
from mtrl.envs.vector import VectorEnv
from mtrl.evaluation import Evaluations
from mtrl.gradients.schedule import reset_due, schedule, updates_due
from mtrl.learner import Learner
from mtrl.options.first_update import check_first_update, has_own_network
from mtrl.replay import create_replay
from mtrl.run import checkpoint
from mtrl.run.callbacks import Callback, Callbacks
from mtrl.run.dashboard import REINFORCEMENT_LEARNING
from mtrl.run.directory import RunDirectory
from mtrl.run.log_window import LogWindow
from mtrl.run.recent_episodes import RecentEpisodes
from mtrl.run.recorder import Recorder
from mtrl.run.state import Status
from mtrl.run.stopping import Stopped
from mtrl.run.timing import StageTimer
from mtrl.smto.autoscale import AutoScale

Event = Callable[[bool], object]
"""What happens after a vector step; may_save: whether a checkpoint may be made there."""


class Trainer:
    """One run. `loop` is the algorithm; `events` are what happens around it, in their order."""

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        envs: VectorEnv,
        device: torch.device,
        stack: ExitStack,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """`stack` ends what the run starts: evaluation workers, threads and open files."""
        self.callbacks = Callbacks(callbacks, self._warn)
        self.config, self.run, self.device, self.stack = config, run, device, stack
        self.envs = envs
        self.writer = checkpoint.Writer(config.checkpoint.keep)
        stack.callback(self.writer.close)
        observation_dim, action_dim = envs.observation_dim, envs.action_dim
        self.agent = Agent(config, observation_dim, action_dim, device)
        self.replay = create_replay(config, observation_dim, action_dim, device)
        self.collector = Collector(self.agent, self.replay, observation_dim)
        self.total = config.whole_steps
        self.step = 0
        self.warmup = config.whole_warmup
        self.goals = LaneGoals(
            config.seed, envs.names, config.train.envs_per_task, config.env.num_goals
        )
        self.recent = RecentEpisodes(config.num_tasks, config.train.envs_per_task)
        self.elapsed = 0.0
        self.stop_signal = 0
        self.timer = StageTimer()
        self.window = LogWindow(config.task_names, envs, self.timer, device, Metrics._fields)
        self.learner = Learner(config, self.agent, self.replay, self.window, self.timer, self._warn)
        self.events: list[Event] = [self._log_if_due, self._evaluate_if_due, self._save_if_due]
        self.evaluations = Evaluations(
            config,
            self.agent,
            self.writer,
            run.checkpoints / "best.pt",
            self.callbacks,
            lambda step, result, seconds: self.recorder.evaluation(step, *result, seconds),
            learned_after=min(self.warmup, self.total - 1),  # one that only warms up has a best
        )
        stack.callback(self.evaluations.evaluator.close)

    def open_recorder(self) -> None:
        """Once the step is known (zero, or a checkpoint's)."""
        self.recorder = Recorder(
            self.run, self.config, self.step, self.total, REINFORCEMENT_LEARNING
        )
        self.stack.callback(self.recorder.close)

    @property
    def has_learned(self) -> bool:
        return self.learner.updates > 0

    @property
    def finished(self) -> bool:
        return self.step >= self.total

    def longer_than(self, stored: Config) -> list[str]:
        """Warnings, where what follows the length of a run had begun in a shorter one."""
        settings, lengths = self.config.agent, (stored.whole_steps, self.total)
        if lengths[0] == lengths[1]:
            return []
        warnings = [
            f"{loss}: autoscale keeps the exploration of the shorter run"
            for loss, part in self.agent.parts.items()
            if isinstance(part.smto, AutoScale)
        ]
        if settings.resets:
            warnings.append(
                f"agent.resets = {settings.resets} follows the new length: beside the resets that "
                "were made there are those of the longer run that are still to come"
            )
        was, now = (schedule(settings, (n - self.step) / n) for n in lengths)
        if was != now:
            warnings.append(
                f"agent.lr_decay = {settings.lr_decay:g} follows the new length: step sizes had "
                f"fallen to {was:.0%} and continue from {now:.0%}; a run of this length from the "
                "start is another one"
            )
        return warnings

    def _begin_learning(self) -> None:
        """After the warm-up: nothing may be compiled while something is captured."""
        learner = self.learner
        learner.finish_compiling(self._while_compiling)
        check_first_update(self.config, self.agent, learner.trial_batch, learner.return_bound())
        learner.begin()
        if self.config.learner.capture == "on":
            self.collector.capture(self._warn)

    def _warn(self, text: str) -> None:
        self.recorder.message(f"warning: {text}")

    def _while_compiling(self) -> None:
        """Not deaf: a dead worker or a signal is answered meanwhile."""
        self.envs.check()
        if self.stop_signal and self.step % self.config.episode_steps == 0:
            self._save_and_stop()  # every episode has just ended

    # -- the algorithm --------------------------------------------------------------------------

    def loop(self) -> None:
        learner, envs, collector, lap = self.learner, self.envs, self.collector, self.timer.lap
        collector.begin(envs.reset(self.goals.now))
        while not self.finished:
            self._reset_networks()  # here, so that what was trained until now is evaluated first
            if self.step >= self.warmup and not learner.has_begun:
                self._begin_learning()
            envs.send(collector.act(random=not learner.has_begun), self.goals.next)
            lap("act")
            if learner.has_begun:  # on what is stored, while the workers simulate
                learner.learn(self._updates_due(), left=1.0 - self.step / self.total)
            outcome = envs.receive()
            lap("simulate")
            collector.store(outcome)
            lap("store")
            self.step += self.config.num_envs
            self.goals.count(outcome.ended)
            self.recent.add(outcome)
            if self.step == self.warmup:
                self._measure_scales()
            may_save = bool(outcome.ended.all()) or not self.config.episodes_end_together
            for event in self.events:
                event(may_save)
        self.writer.wait()
        if self.callbacks.failure is not None:
            raise self.callbacks.failure

    def _updates_due(self) -> int:
        return updates_due(self.config.agent, (self.step - self.warmup) // self.config.num_envs)

    def _measure_scales(self) -> None:
        """Of observations and rewards, from what the warm-up has seen."""
        if self.config.network.observation_norm:
            self.agent.encoder.set_statistics(*self.replay.observation_statistics())
        self.replay.scale.refresh()

    def _reset_networks(self) -> None:
        last = self.step - self.config.num_envs
        if reset_due(self.config.agent, last, self.step, self.total):
            self.agent.reset(self.step)
            self.replay.scale.refresh()

    # -- around it ------------------------------------------------------------------------------

    def _log_if_due(self, _: bool) -> None:
        if self.crossed(self.config.logging.every) or self.finished:
            self.log()

    def _evaluate_if_due(self, _: bool) -> None:
        due = self.crossed(self.config.evaluation.every) and self.may_act
        if due or self.finished:
            self._evaluate(final=self.finished)
        if self.finished:
            self.evaluations.collect()
            self.exclude(self.timer.lap("evaluate"))

    def _save_if_due(self, may_save: bool) -> None:
        if not may_save:
            return
        asked = self.stop_signal or self.callbacks.asked_to_stop or self.callbacks.failure
        if asked and not self.finished:
            self._save_and_stop()
        if self.finished or self.step % self.config.checkpoint.every == 0:
            self.save()

    def crossed(self, every: int) -> bool:
        """Whether the last vector step reached a multiple of so many steps; 0 = never."""
        return every > 0 and self.step // every > (self.step - self.config.num_envs) // every

    def log(self) -> None:
        """Mean metrics since the last log; the one place where the loop waits for the device."""
        window, recorder = self.window, self.recorder
        if window.is_empty(self.step):
            return
        self.evaluations.record_finished(before=self.step)
        self.writer.check()
        self.elapsed += window.seconds
        sigma = self.replay.scale.moments.sigma.cpu().numpy()
        divisor = self.replay.scale.divisor(self.agent.temperature.alpha())
        values = window.times(self.step) | self.learner.diagnostics.flush()
        values |= recorder.per_task("train/episode_success", self.recent.success)
        values |= recorder.per_task("train/episode_return", self.recent.returns)
        values |= recorder.per_task("train/reward_std", sigma)
        if divisor is not None:
            known = torch.where(divisor.isinf(), torch.nan, divisor)  # inf: no episode has ended
            values |= recorder.per_task("train/reward_scale", known.cpu().numpy())
        values["memory/learner_mib"] = peak_memory_mib(self.device)
        values["train/replay_fill"] = self.replay.size / self.replay.slots
        values |= {f"train/{loss}_lr": p.optimizer.lr for loss, p in self.agent.parts.items()}
        values |= window.metrics(self.step)
        speeds = values["time/env_steps_per_s"], values["time/updates_per_s"]
        success = {
            "train": values["train/episode_success_mean"],
            "eval": self.evaluations.last_success,
        }
        self.callbacks.on_log(self.step, values)
        recorder.scalars(self.step, values)
        recorder.progress(self.step, success, *speeds)
        self.status("running")
        window.restart(self.step)
        self.timer.lap("log")

    def evaluate_untrained(self) -> None:
        """What all learning is measured against; unless only the end is evaluated."""
        if self.config.evaluation.every and self.may_act:
            self._evaluate(final=False)

    @property
    def may_act(self) -> bool:
        """A user's own network does not act before it has been checked, at the first update."""
        return self.learner.has_begun or not has_own_network(self.config)

    def _evaluate(self, *, final: bool) -> None:
        self.evaluations.start(self.step, final=final)
        for loss, cosines in self.learner.diagnostics.heat_maps.items():
            self.recorder.heat_map(self.step, f"gradients/{loss}/cosine", cosines)
        self.exclude(self.timer.lap("evaluate"))

    def exclude(self, seconds: float) -> None:
        """Keep time spent beside training out of the logged speeds."""
        self.elapsed += seconds
        self.window.exclude(seconds)

    # -- state ----------------------------------------------------------------------------------

    def status(self, status: Status) -> None:
        last, best = self.evaluations.last_success, self.evaluations.best_success
        self.run.write_status(
            status,
            step=self.step,
            total_steps=self.total,
            elapsed_s=round(self.elapsed, 1),
            protocol=self.config.protocol_stamp,
            success_mean=None if math.isnan(last) else last,
            best_success_mean=None if best < 0 else best,
        )

    def save(self, *, wait: bool = True) -> None:
        """A checkpoint of everything; where every episode has just ended, if they end together.

        wait: for an evaluation of an earlier step. Otherwise a resumed run makes it again.
        """
        self.log()  # refuses what is not finite: a bad state never replaces a good one
        if self.evaluations.collect_earlier(self.step, wait=wait):
            self.exclude(self.timer.lap("evaluate"))
        state = {
            "step": self.step,
            "episodes": self.goals.episodes.tolist(),
            **self.recent.state_dict(),
            **self.evaluations.state_dict(self.step),
            "elapsed": self.elapsed,
            "updates": self.learner.updates,
            "agent": self.agent.state_dict(),
            "replay": self.replay.state_dict(),
        }
        path = checkpoint.step_path(self.run.checkpoints, self.step)
        self.writer.save(path, state)
        self.callbacks.on_checkpoint(self.step, path)
        self.status("running")  # of the evaluation that was waited for, too
        self.exclude(self.timer.lap("checkpoint"))

    def _save_and_stop(self) -> NoReturn:
        self.save(wait=False)  # who stops it may not wait long
        self.writer.wait()
        raise self.callbacks.failure or Stopped(self.stop_signal, self.run)

    def load(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError, before anything is changed, for a checkpoint of another run."""
        checkpoint.check_resumable(state, self.config.num_envs)
        self.evaluations.load_state_dict(state)
        self.agent.load_state_dict(state["agent"])
        self.step = state["step"]
        self.goals.start_at(np.array(state["episodes"], dtype=np.int64))
        self.recent.load_state_dict(state)
        self.elapsed = state["elapsed"]
        self.learner.updates = state["updates"]
        self.replay.load_state_dict(state["replay"])
        self.window.restart(self.step)
